"""What the last selftest of a device found, remembered between processes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata

from pydantic import TypeAdapter, ValidationError

from fdllm.record.atomic import read_cache, write_cache
from fdllm.record.identity import digest_of, source_hashes
from fdllm.record.provenance import cpu_name

NOT_RUN = "not run"
_FILE = "selftest.json"


@dataclass(frozen=True)
class Selftested:
    """The outcome on a device, with this torch and this source."""

    failed: tuple[str, ...] = ()  # the checks that failed, each in a line
    # types and paths in which a row's tokens depend on the batch
    depends_on_batch: tuple[str, ...] = ()
    # a step's time with CUDA graphs by its time without, the worst that was measured, by type; only
    # of types in which every check of the graphs passed
    graphs: Mapping[str, float] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """As a record's provenance has it: ``passed``, or ``failed`` and the first reason."""
        if not self.failed:
            return "passed"
        more = f", and {len(self.failed) - 1} more" if len(self.failed) > 1 else ""
        return f"failed: {self.failed[0]}{more}"

    @property
    def batch_words(self) -> str:
        """Whether a row's tokens depend on the batch, as a record's provenance has it."""
        if not self.depends_on_batch:
            return "tokens do not depend on the batch"
        return f"tokens depend on the batch in {', '.join(self.depends_on_batch)}"


def keep(accelerator: str | None, found: Selftested) -> None:
    """Remember an outcome in the place of the device's last one; no accelerator is the processor.

    Raises:
        FdllmError: the cache cannot be written.
    """
    write_cache(_FILE, read_cache(_FILE) | {_key(accelerator): asdict(found)})


def last(accelerator: str | None) -> Selftested | None:
    """The device's last outcome with this torch and this source; None where there is none."""
    try:
        return TypeAdapter(Selftested).validate_python(read_cache(_FILE).get(_key(accelerator)))
    except ValidationError:
        return None


def choose(asked: bool | None, accelerator: str | None, dtype: str) -> bool | None:  # noqa: FBT001 - as asked
    """Whether to ask for compiled kernels or graphs: as a user said, else as a selftest found.

    Args:
        asked: what the user said; None for nothing.
        accelerator: the GPU's name; None for the processor, where nothing has to be found first.
        dtype: the weights' type.
    """
    if asked is not None or accelerator is None:
        return asked
    found = last(accelerator)
    return found is not None and found.graphs.get(dtype, 1.0) < 1.0


def _key(accelerator: str | None) -> str:
    device = cpu_name() if accelerator is None else accelerator
    source = digest_of(source_hashes())[:12]
    return f"{device}, torch {metadata.version('torch')}, source {source}"
