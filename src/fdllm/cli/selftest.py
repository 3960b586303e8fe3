"""``fdllm selftest``: is every data type and path of this device right?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdllm.cli.options import Command, flag
from fdllm.cli.output import complain, say, say_json
from fdllm.errors import FdllmError
from fdllm.record import selftested

if TYPE_CHECKING:
    from fdllm.selftest.checks import Check

_HEADER = f"{'model':8}{'type':10}{'path':10}{'batch':>5}{'error':>10}{'bound':>10}  verdict"


@dataclass(frozen=True, kw_only=True)
class SelftestCommand(Command):
    """Is every data type and path of this device right, against float32 on a CPU."""

    device: str = flag("cpu, cuda or cuda:N (a GPU if there is)", default="auto")
    json: bool = flag("print the checks as JSON", default=False)

    def run(self) -> int:
        """Check, show, remember; 1 where a check failed."""
        from fdllm.core.checkpoint import resolve_device  # noqa: PLC0415 - torch comes in here
        from fdllm.selftest import result  # noqa: PLC0415

        device = resolve_device(self.device)
        if not self.json:
            say(_HEADER)
        found = result.run_selftest(device, (lambda _: None) if self.json else show)
        try:
            selftested.keep(found.accelerator, found.kept)
        except FdllmError as error:
            complain(f"fdllm selftest: records will not name this result: {error}")
        if self.json:
            say_json(found.as_dict())
        else:
            for dtype, ratios in found.graphs.items():
                told = ", ".join(f"{phase} {ratio:.2f}" for phase, ratio in ratios.items())
                say(f"CUDA graphs, {dtype}: times a step without them: {told}")
            if found.accelerator is not None:
                say(found.kept.batch_words)
            say(f"{found.device}: {len(found.checks)} checks, {found.kept.words}")
        return int(bool(found.kept.failed))


def show(check: Check) -> None:
    """A check as a line."""
    why = f": {'; '.join(check.problems)}" if check.problems else ""
    say(
        f"{check.model:8}{check.dtype:10}{check.path:10}{check.batch:5}"
        f"{check.error:10.2g}{check.bound:10.2g}  {check.verdict}{why}"
    )
