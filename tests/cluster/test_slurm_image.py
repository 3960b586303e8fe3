"""The nine configs through SLURM with every task inside the image: the same records, no token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.checkout import BASELINE, DONE, GRID, Checkout
from cluster.faults import FaultTable
from cluster.image import Image
from cluster.slurm import Slurm, wait_until
from fdllm.record.image import image_digest

pytestmark = pytest.mark.timeout(1500)
TOKEN = "hf_" + "TokenOfThisTest" * 2
CONFIG = "k2_middle"


def contained(place: Path, slurm: Slurm, image: Image) -> Checkout:
    """A checkout whose jobs run in the image, submitted by somebody who holds a token."""
    return Checkout(
        place,
        slurm,
        executor=("--executor", "slurm", "--image", str(image.path), "--no-doctor"),
        environment={"PATH": image.environment()["PATH"], "HF_TOKEN": TOKEN},
    )


@pytest.fixture(scope="module")
def swept(slurm: Slurm, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The nine configs."""
    checkout = contained(tmp_path_factory.mktemp("swept") / "a root", slurm, image)
    checkout.sweep(experiment=BASELINE)
    checkout.settle(BASELINE)
    return checkout


@pytest.fixture
def held(slurm: Slurm, image: Image, tmp_path: Path) -> Iterator[Checkout]:
    """A run that stands in the middle of a sample, inside the image."""
    checkout = contained(tmp_path / "root", slurm, image)
    checkout.hold()
    checkout.sweep("--config", CONFIG)
    checkout.await_held()
    yield checkout
    slurm.ask("scancel", "--user=root")
    slurm.end_of_queue()


def test_nine_done_cells_that_name_the_image(swept: Checkout, image: Image) -> None:
    assert swept.states(BASELINE) == DONE
    for config in GRID:
        summary = json.loads((swept.folder(config, BASELINE) / "summary.json").read_text())
        (session,) = summary["provenance"]["sessions"]
        assert session["image_sha256"] == image_digest(image.path)
        assert session["slurm_job_id"]
    assert "nothing to do" in swept.sweep(experiment=BASELINE)


def test_no_token_in_any_file(swept: Checkout) -> None:
    files = [path for path in swept.root.rglob("*") if path.is_file()]
    assert len(files) > 9 * 4
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def command_lines() -> Iterator[tuple[Path, list[bytes]]]:
    """Of all processes of this machine, as `ps` shows them to everybody."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            yield folder, (folder / "cmdline").read_bytes().split(b"\0")


def test_the_token_is_in_no_command_line_but_arrives(held: Checkout) -> None:
    assert held.states()[CONFIG] == "running"
    lines = list(command_lines())
    assert not [words for _, words in lines if any(TOKEN.encode() in word for word in words)]
    inside = [
        folder for folder, words in lines if b"job" in words and words[0].endswith(b"/python3")
    ]
    assert inside, [words[:6] for _, words in lines if b"job" in words]
    for folder in inside:
        environment = (folder / "environ").read_bytes().split(b"\0")
        assert f"HF_TOKEN={TOKEN}".encode() in environment


def test_the_warning_arrives_in_the_image(held: Checkout, faults: FaultTable) -> None:
    (job,) = held.slurm.running()
    held.slurm.ask("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: "SIGUSR1" in held.logs(), 60, held.logs)
    held.release()
    held.slurm.end_of_queue()
    assert held.states()[CONFIG] == "done", held.logs()
    assert len(held.lives(CONFIG)) == 2
    happened = "ended after the sample in flight, requeued, went on"
    faults.add("warning signal, in the image", happened, held, [CONFIG], most=0)


def test_scancel_in_the_image(held: Checkout, faults: FaultTable) -> None:
    held.slurm.ask("scancel", "--user=root")
    held.slurm.end_of_queue()
    cell = held.cells()[CONFIG]
    assert cell["state"] == "failed", held.logs()
    assert Path(cell["log"]).stat().st_size
    held.release()
    held.sweep("--config", CONFIG)
    held.slurm.end_of_queue()
    assert held.states()[CONFIG] == "done", held.logs()
    happened = f"{cell['reason']}; resubmitted"
    faults.add("scancel, in the image", happened, held, [CONFIG], most=1)
