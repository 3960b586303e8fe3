"""What a task must see inside an image: its places as they are named, and where links lead to.

A folder of a checkout or of a cache may be a link to a larger disk, or hold links to one. Inside an
image the link is there, and what it leads to is not unless that is bound too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fdllm.caches import hub_cache, token_file
from fdllm.cluster.cluster_config import ClusterConfig
from fdllm.errors import UsageError
from fdllm.experiment.load import FOLDER
from fdllm.plan import Planner
from fdllm.runs import Run

_HUB = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
_OTHERS = ("HF_DATASETS_CACHE", "NLTK_DATA")
_MOST_LINKS = 40  # on one way, as the system has it


def places_of(planner: Planner, cluster: ClusterConfig, run: Run, workdir: Path) -> list[Path]:
    """What a run reads and writes, as it is named: checkout, records, caches, the model's files.

    Not all of it need be there, but checkout, records and ``HF_HOME`` will be.
    """
    layout, paths, home = planner.layout, planner.layout.run(run), cluster.hub_home
    own = (paths.folder, paths.artifacts, paths.logs)
    named = any(os.environ.get(name) for name in _HUB)
    hub = hub_cache() if named or cluster.hf_home is None else home / "hub"
    others = [name for text in map(os.environ.get, _OTHERS) for name in (text or "").split(":")]
    return [
        *(planner.root, workdir, layout.results, home),
        *(planner.root / FOLDER / run.experiment, layout.artifacts, layout.logs),
        # Each folder down to the run's, as any of them may be a link.
        *(one for path in own for one in (path.parents[1], path.parent, path)),
        *(hub.absolute(), home / "datasets"),
        *(Path(name).expanduser().absolute() for name in others if name),
        *([] if cluster.offline else [token_file().absolute()]),
        *([] if run.include is None else [run.include]),
        *_files_of(run.model.name, hub.absolute()),
    ]


def _files_of(model: str, hub: Path) -> Iterator[Path]:
    """A checkpoint's folder, or the Hub's folders of it, and the links in them."""
    folder = Path(model).expanduser().absolute()
    if folder.is_dir():
        yield from (folder, *filter(Path.is_symlink, sorted(folder.iterdir())))
        return
    own = hub / f"models--{model.replace('/', '--')}"
    yield from (own, own / "blobs", *sorted(own.glob("snapshots/*")))
    # Of another revision files may be gone; whether this one is whole, its own check says.
    yield from (path for path in sorted(own.glob("snapshots/*/*")) if path.exists())


def dead_links(places: Iterable[Path]) -> dict[Path, Path]:
    """The links on the ways to some places that lead nowhere, and where each leads to."""
    ways = (one for place in places for step in _way(place) for one in _down_to(step))
    dead = (one for one in ways if one.is_symlink() and not one.exists())
    return {one: Path(os.path.realpath(one)) for one in dead}


def _way(place: Path) -> Iterator[Path]:
    """A path as it is named, and what it is behind each link on the way to where it lies."""
    for _ in range(_MOST_LINKS):
        yield place
        link = next(filter(Path.is_symlink, _down_to(place)), None)
        if link is None:
            return
        place = Path(os.path.normpath(link.parent / link.readlink() / place.relative_to(link)))


def _down_to(path: Path) -> list[Path]:
    return [*reversed(path.parents), path]


def binds(planner: Planner, cluster: ClusterConfig, run: Run, workdir: Path) -> list[str]:
    """What a task needs bound: its places, and what they are behind each link.

    Raises:
        UsageError: a folder's name cannot be written as a bind.
    """
    places = places_of(planner, cluster, run, workdir)
    wanted = {planner.root, workdir, planner.layout.results, cluster.hub_home}
    wanted |= {step for place in places for step in _way(place) if step.exists()}
    kept: list[Path] = []
    for place in sorted(wanted):  # a folder comes ahead of what lies in it
        if not any(place.is_relative_to(other) for other in kept):
            kept.append(place)
    for place in kept:
        if ":" in str(place) or "," in str(place):
            raise UsageError(f"'{place}' holds a ':' or ',', which no bind can name; move it")
    return [str(place) for place in kept]
