"""Fixtures of the tests that need a real SLURM: each session starts one of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.checkout import Checkout
from cluster.faults import FaultTable
from cluster.image import Image, build_image
from cluster.slurm import Slurm, own_cluster

HERE = Path(__file__).parent
TABLE = pytest.StashKey[FaultTable]()


@pytest.hookimpl(tryfirst=True)  # ahead of -m, which reads the marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a cluster, or the parts of one."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A SLURM of this session's own: one node, two processors, nobody else's jobs."""
    with own_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image, built on a local root by this session's first test that wants it."""
    return build_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def checkout(slurm: Slurm, tmp_path: Path) -> Iterator[Checkout]:
    """A new checkout; whatever a test leaves in the queue is cancelled."""
    yield Checkout(tmp_path / "root", slurm)
    slurm.ask("scancel", "--user=root")
    slurm.end_of_queue()


@pytest.fixture(scope="session")
def undisturbed(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The slow experiment's sweep through SLURM, with nothing in its way."""
    checkout = Checkout(tmp_path_factory.mktemp("undisturbed") / "root", slurm)
    checkout.sweep()
    checkout.settle()
    return checkout


@pytest.fixture(scope="session")
def faults(undisturbed: Checkout, request: pytest.FixtureRequest) -> FaultTable:
    """Takes a row for each fault; the table is printed when all tests have ended."""
    return request.config.stash.setdefault(TABLE, FaultTable(undisturbed))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The table of faults, for a note."""
    table = config.stash.get(TABLE, None)
    if table is not None and table.rows:
        terminalreporter.section("faults", sep="=")
        for line in table.lines():
            terminalreporter.line(line)
