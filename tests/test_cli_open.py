"""``fdllm open``: which page, whether it is there, and whether a browser is asked."""

from __future__ import annotations

import json
import shutil
import webbrowser

import pytest

from command import Command

TASK = ("--task", "tiny_arithmetic")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a browser was asked to show; there is a display."""
    asked: list[str] = []

    def show(url: str) -> bool:
        asked.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", show)
    monkeypatch.setenv("DISPLAY", ":0")
    return asked


def test_a_page_that_is_not_there_is_written_and_opened(
    fdllm: Command, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fdllm("sweep", *TASK, "--model", "tiny", "--config", "k1_first", "k2_last") == 0
    shutil.rmtree(fdllm.root / "results")  # a clone has what git keeps
    page = fdllm.root / "results/00_baseline/report.html"
    assert fdllm.raw("open", "00_baseline") == 0, fdllm.err
    assert fdllm.out == f"{page}\n"
    assert fdllm.err == f"wrote {page}\n"
    assert "git keeps no texts" in page.read_text()
    assert opened == [page.as_uri()]
    page.write_text("as it is")
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert fdllm.raw("open", "00_baseline") == 0
    assert (fdllm.out, fdllm.err) == (f"{page}\n", "")
    assert page.read_text() == "as it is"
    assert len(opened) == 1, "no display, no browser of the terminal"
    assert fdllm.raw("open", "--json") == 0, fdllm.err
    index = fdllm.root / "results/index.html"
    assert json.loads(fdllm.out) == {"page": str(index)}
    assert 'href="00_baseline/report.html"' in index.read_text()


@pytest.mark.parametrize("name", ["00_baseline", None])
def test_nothing_to_open_is_one_sentence(
    name: str | None, fdllm: Command, opened: list[str]
) -> None:
    assert fdllm.raw("open", *([name] if name else [])) == 1
    assert "sweep first" in fdllm.err
    assert opened == []


def test_an_unknown_experiment_is_told(fdllm: Command) -> None:
    assert fdllm.raw("open", "00_baselin") == 2
    assert "00_baseline" in fdllm.err


def test_an_empty_page_is_not_written(fdllm: Command, opened: list[str]) -> None:
    fdllm("sweep", *TASK, "--model", "tiny", "--config", "k1_first")
    (fdllm.root / "results/00_baseline/tiny_arithmetic/k1_first/summary.json").unlink()
    shutil.rmtree(fdllm.root / "artifacts")
    assert fdllm.raw("open", "00_baseline") == 1
    assert "has no finished cell to show" in fdllm.err
    assert not (fdllm.root / "results/00_baseline/report.html").exists()
    assert opened == []
