"""Folders that are links to a larger disk: what an image sees of them; one that leads nowhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from checkups import of
from fdllm.cli.request import choose_model
from fdllm.cluster import visible
from fdllm.cluster.cluster_config import ClusterConfig
from fdllm.cluster.visible import binds, dead_links, places_of
from fdllm.doctor import checks_here
from fdllm.errors import FdllmError
from fdllm.plan import Planner
from fdllm.record.atomic import make_folder
from fdllm.record.paths import Layout
from fdllm.runs import ModelChoice, Run
from stubs import facts, make_run

MODEL = "org/name"


def lead_away(path: Path, scratch: Path) -> Path:
    """Put a folder where there is room, and a link to it, by two more links, in its place."""
    real = scratch / "disk" / f"real_{path.name}"
    real.mkdir(parents=True)
    if path.is_dir():
        shutil.copytree(path, real, dirs_exist_ok=True)
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    (scratch / "by").mkdir(exist_ok=True)
    (scratch / "by" / path.name).symlink_to(f"../disk/{real.name}")
    path.symlink_to(scratch / "by" / path.name)
    return real


def snapshot(home: Path) -> Path:
    """A model as the Hub's client keeps it."""
    repo = home / "hub/models--org--name"
    folder = repo / "snapshots" / ("c" * 40)
    (repo / "blobs").mkdir(parents=True)
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("c" * 40)
    (repo / "blobs/ab12").write_text('{"num_hidden_layers": 12}')
    (folder / "config.json").symlink_to("../../blobs/ab12")
    return folder


def bound(root: Path, home: Path, run: Run, results: Path | None = None) -> list[Path]:
    planner = Planner(root, Layout.of(root, results), facts)
    cluster = ClusterConfig(image=root / "i.sif", hf_home=home)
    return [Path(one) for one in binds(planner, cluster, run, root)]


def seen(path: Path, within: list[Path]) -> bool:
    """Whether a process that sees these folders alone, under these names, can follow a path."""
    for _ in range(20):
        if not any(path.is_relative_to(place) for place in within):
            return False
        for part in [*reversed(path.parents), path]:
            # A bound folder is no link inside, whatever it is here.
            if part.is_symlink() and not any(place.is_relative_to(part) for place in within):
                rest = path.relative_to(part)
                path = Path(os.path.normpath(part.parent / part.readlink())) / rest
                break
        else:
            return path.exists()
    return False


@pytest.mark.parametrize("what", ["results", "logs", "artifacts", "results/00_baseline"])
def test_of_a_checkout(root: Path, tmp_path: Path, what: str) -> None:
    lead_away(root / what, tmp_path / "scratch")
    places = bound(root, tmp_path / "home", make_run(root))
    assert seen(root / what, places), places
    assert tmp_path / "scratch" not in places, "no more than that"


def test_experiments_and_what_results_names(root: Path, tmp_path: Path) -> None:
    lead_away(root / "experiments/00_baseline", tmp_path / "scratch")
    lead_away(tmp_path / "out", tmp_path / "scratch")
    places = bound(root, tmp_path / "home", make_run(root), tmp_path / "out")
    for path in (root / "experiments/00_baseline/experiment.toml", tmp_path / "out"):
        assert seen(path, places), places


HOME = {
    "HF_HOME": lambda home: home,
    "hub": lambda home: home / "hub",
    "datasets": lambda home: home / "datasets",
    "model": lambda home: home / "hub/models--org--name",
    "blobs": lambda home: home / "hub/models--org--name/blobs",
    "snapshot": lambda home: home / "hub/models--org--name/snapshots" / ("c" * 40),
}


@pytest.mark.parametrize("what", HOME)
def test_of_the_caches(root: Path, tmp_path: Path, what: str) -> None:
    home = tmp_path / "home"
    config = snapshot(home) / "config.json"
    if what == "snapshot":  # whose files lead out of it, as far up as they did
        (tmp_path / "scratch/blobs").mkdir(parents=True)
        (tmp_path / "scratch/blobs/ab12").write_text("{}")
    lead_away(HOME[what](home), tmp_path / "scratch")
    if what == "snapshot":
        real = tmp_path / "scratch/disk" / f"real_{'c' * 40}/config.json"
        real.unlink()
        real.symlink_to("../../blobs/ab12")
    run = make_run(root).model_copy(update={"model": ModelChoice(name=MODEL)})
    places = bound(root, home, run)
    assert seen(home, places), places
    assert seen(config, places), places


def test_a_models_folder_and_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one name out here and in there, as records lie in a folder of that name."""
    real = lead_away(root / "model", tmp_path / "scratch")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(real / "model.safetensors", tmp_path / "elsewhere/w")
    (real / "model.safetensors").symlink_to(tmp_path / "elsewhere/w")
    name = choose_model(str(root / "model"), ())
    assert name == str(real)
    run = make_run(root).model_copy(update={"model": ModelChoice(name=name)})
    places = bound(root, tmp_path / "home", run)
    for file in ("config.json", "model.safetensors"):
        assert seen(Path(name, file), places), places
    monkeypatch.chdir(tmp_path)
    assert choose_model("elsewhere", ()) == "elsewhere", "nothing leads there"
    assert choose_model(MODEL, ()) == MODEL


def test_the_file_of_a_login_where_nodes_may_ask(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "login/token"
    token.parent.mkdir()
    token.touch()
    monkeypatch.setattr(visible, "token_file", lambda: token)
    planner = Planner(root, Layout.of(root), facts)
    for offline in (True, False):
        cluster = ClusterConfig(hf_home=tmp_path / "home", offline=offline)
        assert (str(token) in binds(planner, cluster, make_run(root), root)) is not offline


def gone(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


@pytest.mark.parametrize("make", [gone, lambda link, _: gone(link, link)])
@pytest.mark.parametrize("what", ["results", "logs", "home", "home/hub", "home/datasets"])
def test_one_that_leads_nowhere_is_named_with_its_target(
    root: Path, tmp_path: Path, what: str, make: Callable[[Path, Path], None]
) -> None:
    link, target = (root if what in ("results", "logs") else tmp_path) / what, tmp_path / "gone"
    make(link, target)
    planner = Planner(root, Layout.of(root), facts)
    cluster = ClusterConfig(hf_home=tmp_path / "home")
    places = tuple(places_of(planner, cluster, make_run(root), root))
    assert list(dead_links(places)) == [link]
    (found,) = checks_here.links(replace(of(root), places=places))
    assert (found.name, found.state) == (f"link {link.name}", "fail")
    assert str(link) in found.found
    assert make is not gone or f"a link to {target}, which" in found.found
    assert checks_here.existing(link / "a") == tmp_path or make is not gone
    if what == "results" and make is gone:
        with pytest.raises(FdllmError, match=f"{link} is a link to .*, which is not there"):
            make_folder(planner.layout.run(make_run(root)).folder)
    link.unlink()
    assert not list(checks_here.links(replace(of(root), places=places)))


def test_a_file_that_a_model_lacks_is_its_own_folders_matter(root: Path, tmp_path: Path) -> None:
    home, run = tmp_path / "home", make_run(root)
    old = snapshot(home).parent / ("d" * 40)
    old.mkdir()
    (old / "config.json").symlink_to("../../blobs/cleaned")
    hub = run.model_copy(update={"model": ModelChoice(name=MODEL)})
    planner, cluster = Planner(root, Layout.of(root), facts), ClusterConfig(hf_home=home)
    assert not dead_links(places_of(planner, cluster, hub, root)), "another revision's"
    gone(root / "model/vocab.json", tmp_path / "gone")
    assert list(dead_links(places_of(planner, cluster, run, root))) == [root / "model/vocab.json"]
