"""Who imports whom in ``src/fdllm``, read from the text without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from helpers import ROOT

SOURCE = ROOT / "src"


@dataclass(frozen=True)
class Import:
    """One imported name.

    Attributes:
        importer: the module whose text holds it.
        imported: the module that it names; of ours, the deepest that exists.
        line: where.
        eager: it happens as soon as ``importer`` is imported: not inside a function, not for the
            type checker only.
    """

    importer: str
    imported: str
    line: int
    eager: bool


def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed, by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return found


def imports(trees: dict[str, ast.Module]) -> list[Import]:
    """Every import of these modules, at any depth of their text."""
    return [
        Import(importer, imported, node.lineno, eager)
        for importer, tree in trees.items()
        for node, eager in _statements(tree, eager=True)
        for imported in _names(node, set(trees))
    ]


def _statements(
    parent: ast.AST, *, eager: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, eager
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for inner in node.body:
                yield from _statements(ast.Module([inner], []), eager=False)
            for inner in node.orelse:
                yield from _statements(ast.Module([inner], []), eager=eager)
        else:
            deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _statements(node, eager=eager and not deferred)


def _names(node: ast.Import | ast.ImportFrom, ours: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    for alias in node.names:  # `from fdllm import tiny` names a module, `from fdllm.x import y` not
        whole = f"{base}.{alias.name}"
        yield whole if whole in ours else base
