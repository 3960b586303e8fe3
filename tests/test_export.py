"""A release stands by itself, holds nothing of the machine, and hides no defect."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from rocrate.rocrate import ROCrate

import fdllm
from cells import write_study
from command import Command
from fdllm.errors import FdllmError
from fdllm.record.paths import Layout
from fdllm.release.files import text_of
from fdllm.release.scrub import check_texts, scrub_summary
from fdllm.report.records import load_records
from fdllm.report.sums import check_release
from helpers import ROOT
from stubs import change_code

CONFIGS = ("k1_first", "k1_middle", "k2_middle")
TABLE = "results/00_baseline"
TASK = ("--task", "tiny_arithmetic")


@pytest.fixture
def fdllm_command(finished: Command) -> Command:
    """A checkout with a part of a grid that is done, on one task."""
    for name in ("requirements.lock", "CITATION.cff", "LICENSE"):
        shutil.copy(ROOT / name, finished.root / name)
    layout = Layout.of(finished.root)
    for record in records(finished.root):
        if record.parent.name not in CONFIGS:
            shutil.rmtree(layout.artifacts / layout.part(record.parent))
            shutil.rmtree(record.parent)
    cells = [cell for cell in load_records(layout, "00_baseline") if cell.task == "tiny_arithmetic"]
    write_study(cells, {"k2_middle": 0.8})
    publish(finished.root)
    return finished


def publish(root: Path) -> None:
    """Copies under ``artifacts`` are what the records say, of studies too."""
    for name in ("*/summary.json", "timing/study.json"):
        for path in root.glob(f"{TABLE}/*/{name}"):
            shutil.copy(path, root / "artifacts" / path.relative_to(root / "results"))


def export(command: Command, out: Path, *more: str) -> int:
    return command("export", *TASK, "--out", str(out), *more)


def records(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{TABLE}/*/*/summary.json"))


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data | changes), encoding="utf-8")


def computed_by(root: Path, path: Path, **facts: str) -> None:
    """A record of another session, whose journal nobody kept."""
    provenance = json.loads(path.read_text())["provenance"]
    provenance["sessions"][0] |= facts
    edit(path, provenance=provenance)
    (path.parent / "journal.jsonl").unlink()
    publish(root)


def test_damage_is_refused_and_named(fdllm_command: Command, tmp_path: Path) -> None:
    for path in records(fdllm_command.root):
        throughput = json.loads(path.read_text())["throughput"]
        edit(path, throughput=throughput | {"seconds": 99.0, "tokens_per_second": 1.0})
    publish(fdllm_command.root)
    assert export(fdllm_command, tmp_path / "release") == 1
    assert "k1_first/summary.json: throughput.seconds is 99.0; computed" in fdllm_command.err
    assert re.search(r" and \d+ more\. ", fdllm_command.err)
    assert list(tmp_path.glob("*release*")) == []


def test_a_page_that_is_no_text_is_named(fdllm_command: Command, tmp_path: Path) -> None:
    page = fdllm_command.root / "experiments" / "00_baseline" / "proposal.md"
    page.write_bytes(b"\xff")
    assert export(fdllm_command, tmp_path / "out") == 1
    assert f"fdllm export: {page} is no UTF-8 text: byte 1 of 1 is 0xff" in fdllm_command.err
    assert not (tmp_path / "out").exists()


def test_smoke_tests_stay_out_unless_asked_for(fdllm_command: Command, tmp_path: Path) -> None:
    assert fdllm_command("sweep", *TASK, "--limit", "5", "--config", "k1_first") == 0
    cut = f"{TABLE}/tiny_arithmetic_limit_5@*/*/summary.json"
    assert export(fdllm_command, tmp_path / "release") == 0, fdllm_command.err
    assert "left out, smoke tests: tiny_arithmetic_limit_5@" in fdllm_command.err
    assert "--smoke-tests takes them" in fdllm_command.err
    assert not list((tmp_path / "release").glob(cut))
    for name, asked in (("all", ["--smoke-tests"]), ("one", ["--limit", "5"])):
        assert export(fdllm_command, tmp_path / name, *asked) == 0, fdllm_command.err
        assert len(list((tmp_path / name).glob(cut))) == 1
        assert "left out" not in fdllm_command.err
    shutil.rmtree(tmp_path / "one")
    for root in ("results", "artifacts"):
        (whole,) = fdllm_command.root.glob(f"{root}/00_baseline/tiny_arithmetic@*")
        shutil.rmtree(whole)
    assert export(fdllm_command, tmp_path / "one") == 1
    assert "nothing to export but smoke tests" in fdllm_command.err


def test_a_narrow_selection_has_its_own_report(
    fdllm_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the checkout, which stands on records that are not in it."""
    assert fdllm_command("sweep", "--task", "tiny_choice", "--config", "k1_first") == 0
    assert fdllm_command("report", *TASK, "tiny_choice") == 0, fdllm_command.err
    out = tmp_path / "release"
    assert export(fdllm_command, out, "--config", "k1_first", "k2_middle") == 0, fdllm_command.err
    text = (out / "experiments/00_baseline/results.md").read_text()
    assert "k2_middle" in text
    assert "k1_middle" not in text
    assert "tiny_choice" not in text
    shutil.rmtree(fdllm_command.root)
    monkeypatch.setenv("FDLLM_ROOT", str(out))
    assert fdllm_command.raw("report", "--check") == 0, fdllm_command.out
    assert "2 records computed anew: every one as written" in fdllm_command.out


def test_round_trip(fdllm_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "release"
    assert export(fdllm_command, out) == 0, fdllm_command.err
    assert "3 records" in fdllm_command.out

    before = {c.name: c for c in load_records(Layout.of(fdllm_command.root), "00_baseline")}
    after = {c.name: c for c in load_records(Layout.of(out), "00_baseline")}
    assert set(after) == set(before) == set(CONFIGS)
    for name, cell in after.items():
        assert cell.samples == before[name].samples
        assert cell.summary.fingerprint == before[name].summary.fingerprint
        assert cell.summary.counts == before[name].summary.counts
    here, there = (fdllm.results(root=one) for one in (fdllm_command.root, out))
    own = ["folder", "model"]
    assert here.drop(columns=own).equals(there.drop(columns=own))
    for name in ("requirements.lock", "CITATION.cff", "LICENSE"):
        assert (out / name).read_bytes() == (ROOT / name).read_bytes()
    (study,) = out.glob(f"{TABLE}/*/timing/study.json")
    assert len(json.loads(study.read_text(encoding="utf-8"))["configs"]) == 3
    assert "the timing study has 5 documents" in (out / TABLE / "report.html").read_text(
        encoding="utf-8"
    )
    code = "experiments/00_baseline/generation_functions.py"
    assert (out / code).read_bytes() == (fdllm_command.root / code).read_bytes()
    assert not list(tmp_path.glob(".release*"))


def test_report_accepts_it_elsewhere(
    fdllm_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(fdllm_command, tmp_path / "release") == 0, fdllm_command.err
    elsewhere = tmp_path / "elsewhere" / "release"
    shutil.copytree(tmp_path / "release", elsewhere)
    shutil.rmtree(fdllm_command.root)
    monkeypatch.setenv("FDLLM_ROOT", str(elsewhere))
    assert (elsewhere / TABLE / "report.html").is_file()
    assert fdllm_command.raw("report", "--check") == 0, fdllm_command.out + fdllm_command.err
    assert "as written" in fdllm_command.out

    path = records(elsewhere)[0]
    edit(path, headline=json.loads(path.read_text())["headline"] | {"value": 0.987})
    assert fdllm_command.raw("report", "--check") == 1
    assert "DIFFER" in fdllm_command.out


def test_sums_are_of_every_file(fdllm_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "release"
    assert export(fdllm_command, out) == 0
    lines = (out / "SHA256SUMS").read_text().splitlines()
    pairs = [line.split("  ", 1) for line in lines]
    listed = {name: digest for digest, name in pairs}
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert set(listed) == files - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


def test_a_release_is_held_to_its_own_list_and_metadata(
    fdllm_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "release"
    assert check_release(fdllm_command.root).num_figures == 0, "no release"
    assert export(fdllm_command, out) == 0
    whole = check_release(out)
    assert (whole.differences, whole.num_figures > 20) == ((), True)
    (out / "LICENSE").write_text("mine")
    (out / "more.txt").write_text("new")
    (out / "CITATION.cff").unlink()
    assert {one.where: one.written for one in check_release(out).differences}.keys() == {
        "LICENSE",
        "more.txt",
        "CITATION.cff",
    }
    monkeypatch.setenv("FDLLM_ROOT", str(out))
    assert fdllm_command.raw("report", "--check") == 1
    assert "more.txt: SHA-256 is not listed" in fdllm_command.out
    path = records(out)[0]
    provenance = json.loads(path.read_text())["provenance"]
    edit(path, provenance=provenance | {"finished": "2001-01-01T00:00:00+00:00"})
    assert any("endTime" in one.figure for one in check_release(out).differences)
    (out / "SHA256SUMS").unlink()
    assert [one.where for one in check_release(out).differences] == ["SHA256SUMS"]


def test_crate_is_read_by_its_library(fdllm_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "release"
    assert export(fdllm_command, out) == 0
    crate = ROCrate(out)
    files = {unquote(one.id) for one in crate.data_entities if one.id != "./"}
    on_disk = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert files == on_disk - {"SHA256SUMS", "ro-crate-metadata.json"}
    runs = [one for one in crate.get_entities() if one.type == "CreateAction"]
    assert len(runs) == len(CONFIGS)
    for run in runs:
        assert (
            run["instrument"].id == crate.mainEntity.id == "experiments/00_baseline/experiment.toml"
        )
        given = {one["name"]: one for one in run["object"] if one.type == "PropertyValue"}
        assert given["config"]["value"] in CONFIGS
        assert {one["exampleOfWork"].id for one in given.values()} == {
            one.id for one in crate.mainEntity["input"]
        }
        names = {one.id.rpartition("/")[2] for one in run["result"]}
        assert {"summary.json", "samples.jsonl", "results.json", "columns.json.xz"} <= names
        assert run["startTime"] <= run["endTime"]
    assert "ComputationalWorkflow" in crate.mainEntity.type
    profiles = {one.id.partition("ro/")[2] for one in crate.root_dataset["conformsTo"]}
    assert {"wfrun/process/0.5", "wfrun/workflow/0.5"} <= profiles
    assert {"@id": "https://w3id.org/ro/crate/1.1"} in crate.metadata.properties()["conformsTo"]


def test_nothing_of_the_machine(fdllm_command: Command, tmp_path: Path) -> None:
    """The stub's model is a folder, so its name is a place of this machine."""
    out = tmp_path / "release"
    assert export(fdllm_command, out) == 0
    for path in out.rglob("*"):
        if path.is_file():
            text = text_of(path)
            for place in (fdllm_command.root, tmp_path, Path.home(), sys.prefix):
                assert str(place) + "/" not in text, path
            assert f'"{socket.gethostname()}"' not in text, path
    summary = json.loads(records(out)[0].read_text())
    assert summary["model"].startswith("model-")
    assert "host" not in summary["provenance"]["sessions"][0]
    assert summary["provenance"]["sessions"][0]["packages"]


@pytest.mark.parametrize("secret", ["hf_" + "a1B2" * 9, "ghp_" + "a1B2" * 9])
def test_token_is_refused_and_not_shown(
    fdllm_command: Command, tmp_path: Path, secret: str
) -> None:
    page = fdllm_command.root / "experiments/00_baseline/notes.md"
    page.write_text(f"one line\nmy token is {secret}\n")
    out = tmp_path / "release"
    assert export(fdllm_command, out, "--allow", "places") == 1
    assert "experiments/00_baseline/notes.md, line 2" in fdllm_command.err
    assert secret not in fdllm_command.err + fdllm_command.out
    assert not out.exists()


def test_own_token_is_refused_whatever_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct horse battery")
    with pytest.raises(FdllmError, match="page.md, line 1") as caught:
        check_texts([("page.md", "correct horse battery")], (), allow_places=True)
    assert "horse" not in str(caught.value)
    check_texts([("page.md", "another horse")], (), allow_places=False)


def test_places_are_refused_unless_asked_for(fdllm_command: Command, tmp_path: Path) -> None:
    page = fdllm_command.root / "experiments/00_baseline/notes.md"
    page.write_text(f"see {fdllm_command.root}/results\n")
    assert export(fdllm_command, tmp_path / "release") == 1
    assert "names a folder of this machine" in fdllm_command.err
    assert export(fdllm_command, tmp_path / "release", "--allow", "places") == 0


def test_stale_records_need_asking_for(fdllm_command: Command, tmp_path: Path) -> None:
    change_code(fdllm_command.root)
    out = tmp_path / "release"
    assert export(fdllm_command, out) == 1
    assert "is stale: experiment: experiments/00_baseline/generation_functions.py" in (
        fdllm_command.err
    )
    assert "--allow stale" in fdllm_command.err
    assert not out.exists()
    assert export(fdllm_command, out, "--allow", "stale") == 0, fdllm_command.err
    assert len(records(out)) == len(CONFIGS)
    assert (out / "README.md").read_text().count("is stale") == len(CONFIGS)


def test_invalid_records_are_never_in_it(fdllm_command: Command, tmp_path: Path) -> None:
    broken = records(fdllm_command.root)[0].parent / "samples.jsonl"
    broken.write_text(broken.read_text()[:-20])
    out = tmp_path / "release"
    assert export(fdllm_command, out) == 1
    assert "is invalid" in fdllm_command.err
    assert export(fdllm_command, out, "--allow", "invalid") == 0
    assert len(records(out)) == len(CONFIGS) - 1
    assert "is invalid" in (out / "README.md").read_text()


def test_mixed_records_need_asking_for(fdllm_command: Command, tmp_path: Path) -> None:
    path = records(fdllm_command.root)[0]
    computed_by(fdllm_command.root, path, machine="another machine")
    out = tmp_path / "release"
    assert export(fdllm_command, out) == 1
    assert "is mixed: machine differs" in fdllm_command.err
    assert export(fdllm_command, out, "--allow", "mixed") == 0, fdllm_command.err
    assert "is mixed" in (out / "README.md").read_text()


def test_what_is_missing_is_said(fdllm_command: Command, tmp_path: Path) -> None:
    (fdllm_command.root / "LICENSE").unlink()
    out = tmp_path / "release"
    assert export(fdllm_command, out) == 0
    for text in (fdllm_command.err, (out / "README.md").read_text()):
        assert "k3_last (pending)" in text
        assert "LICENSE is missing" in text


def test_folder_in_use_is_left_alone(fdllm_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "release"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    assert export(fdllm_command, out) == 2
    assert "exists already" in fdllm_command.err
    assert [path.name for path in out.iterdir()] == ["precious.txt"]


def test_image_is_named(fdllm_command: Command, tmp_path: Path) -> None:
    path = records(fdllm_command.root)[0]
    computed_by(fdllm_command.root, path, image_sha256="ab" * 32)
    assert export(fdllm_command, tmp_path / "release") == 0, fdllm_command.err
    assert (tmp_path / "release/image.sha256").read_text() == "ab" * 32 + "\n"


def test_journals_keep_their_answers(fdllm_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "release"
    assert export(fdllm_command, out) == 0
    for path in records(out):
        source = fdllm_command.root / path.parent.relative_to(out) / "journal.jsonl"
        old = [line for line in source.read_text().splitlines() if '"session"' not in line]
        new = (path.parent / "journal.jsonl").read_text().splitlines()
        assert [line for line in new if '"session"' not in line] == old
        assert not any('"host"' in line for line in new)


def test_hub_ids_keep_their_name() -> None:
    for name in ("tiny", "Efficient-Large-Model/Fast_dLLM_v2_7B"):
        assert scrub_summary({"model": name, "provenance": {}})["model"] == name


def test_command_line_loads_nothing_for_it() -> None:
    code = "import sys, fdllm.cli; print(*{'pandas', 'rocrate', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
