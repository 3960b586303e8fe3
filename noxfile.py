"""What can be done with a clone: ``pip install nox``, then ``nox -s NAME -- ARGUMENTS``.

Everything after ``--`` goes unchanged to the command that a session runs. The sessions share one
virtual environment, ``.nox/fdllm``: torch is installed once, under the versions of
``requirements.lock``, and a session that finds it up to date starts at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox
from nox.project import dependency_groups, load_toml

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "none"  # `Environment` below is shared; nox's are one a session
nox.options.error_on_external_run = False

LOCK = Path("requirements.lock")
HASHES = Path("requirements.hashes.lock")
PYLOCK = Path("pylock.toml")
CODE = ("src", "tests", "noxfile.py")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# pdoc sees only what has been imported, and `import fdllm` leaves torch's half for later.
PDOC = """
import fdllm, runpy
vars(fdllm).update({name: getattr(fdllm, name) for name in fdllm.__all__})
runpy.run_module("pdoc", run_name="__main__", alter_sys=True)
"""
# Two workers, a whole file to each: what a file's tests share, a bench or a model, is made once.
TWO = ("-n", "2", "--dist", "loadfile")
# What a user set for pip, here or in its files, would lead out of an environment, or into it.
INTO = {"PIP_USER": "0", "PIP_TARGET": "", "PIP_PREFIX": "", "PIP_ROOT": "", "PYTHONPATH": ""}
# Of a CUDA build of torch; torch names them exactly itself, and a CPU machine has none of them.
GPU_ONLY = re.compile(r"(nvidia|cuda|triton)\b", re.IGNORECASE)


# --- checks: the default sessions -----------------------------------------------------------------


@nox.session
def lint(session: nox.Session) -> None:
    """Rules and formatting. ``-- --fix`` repairs what can be repaired."""
    tools = Environment(session, "lint").install("lint")
    tools.python("ruff", "check", *session.posargs)
    tools.python("ruff", "format", *([] if "--fix" in session.posargs else ["--diff"]))


@nox.session
def types(session: nox.Session) -> None:
    """Static types, strictly; each script by itself, as experiments share their file names."""
    project = Environment(session).install("project", "types")
    project.python("mypy", *session.posargs, *CODE)
    for folder in ("benchmarks", "benchmarks/*", "experiments/*", "scripts", "scripts/*"):
        for script in sorted(Path().glob(f"{folder}/*.py")):
            project.python("mypy", str(script))


@nox.session
def tests(session: nox.Session) -> None:
    """All tests but the cluster's. Arguments go to pytest, ``-- -n0 --pdb`` say."""
    project = Environment(session).install("project", "test")
    project.python("pytest", *TWO, "-m", "not cluster", *session.posargs)


@nox.session
def quick(session: nox.Session) -> None:
    """The tests that take less than a few seconds each: while working. Arguments go to pytest."""
    project = Environment(session).install("project", "test")
    project.python("pytest", *TWO, "-m", "not cluster and not slow", *session.posargs)


@nox.session
def cluster(session: nox.Session) -> None:
    """Sweeps and faults through a real SLURM of one node (Debian, root). Arguments go to pytest."""
    project = Environment(session).install("project", "test")
    project.python("pytest", "-m", "cluster", *(session.posargs or ["tests/cluster"]))


# --- the work -------------------------------------------------------------------------------------


@nox.session
def validate(session: nox.Session) -> None:
    """Ten rows of each tiny task, all nine configs, on the embedded model, offline."""
    project = Environment(session).install("project")
    project.fdllm("validate", *session.posargs, env=OFFLINE)


@nox.session
def sweep(session: nox.Session) -> None:
    """A whole grid: ``nox -s sweep -- --task mmlu``. Computes only what is missing."""
    Environment(session).install("project").fdllm("sweep", *session.posargs)


@nox.session
def container(session: nox.Session) -> None:
    """Build the image from Apptainer.def: ``fdllm.sif``. Arguments go to ``apptainer build``."""
    apptainer = shutil.which("apptainer")
    if apptainer is None:
        session.error(
            "the image needs Apptainer 1.2 or later on Linux, and there is no 'apptainer' on the "
            "PATH; load the site's module, or install it (Debian: sudo .ci/apptainer.sh install)"
        )
    said = (
        session.run(  # 128: this is no clone
            *("git", "log", "-1", "--format=%H %ct"),
            silent=True,
            external=True,
            success_codes=[0, 128],
        )
        if shutil.which("git")
        else ""
    )
    known = re.fullmatch(r"([0-9a-f]{40}) (\d+)\s*", str(said))
    commit, time = known.groups() if known else ("unknown", "315532800")
    epoch = os.environ.get("SOURCE_DATE_EPOCH", time)
    version = load_toml("pyproject.toml")["project"]["version"]
    labels = {"version": version, "commit": commit, "epoch": epoch}
    given = (f"--build-arg={name}={value}" for name, value in labels.items())
    session.run(
        apptainer,
        "build",
        "--force",
        *given,
        *session.posargs,
        "fdllm.sif",
        "Apptainer.def",
        env={"SOURCE_DATE_EPOCH": epoch},
        external=True,
    )
    if Path("fdllm.sif").is_file():  # no sandbox
        _bear(Path("fdllm.sif"), int(epoch))


def _bear(image: Path, epoch: int) -> None:
    """Let an image bear this time and no random id, so that two builds of a commit are equal.

    Apptainer up to 1.4 writes both into each file, in the format SIF 01: a header with an id and
    two times from byte 48 on, then descriptors of 585 bytes with two times each.
    """
    with image.open("r+b") as file:
        header = file.read(128)
        if header[32:45] != b"SIF_MAGIC\x0001\x00":
            return
        free, total, start = struct.unpack_from("<3q", header, 80)
        times = struct.pack("<2q", epoch, epoch)
        file.seek(48)
        file.write(bytes(16) + times)
        for one in range(total - free):
            file.seek(start + 585 * one + 41)
            file.write(times)


@nox.session
def report(session: nox.Session) -> None:
    """Write the tables of what has been computed into the experiment's ``results.md``."""
    Environment(session).install("project").fdllm("report", *session.posargs)


@nox.session
def train(session: nox.Session) -> None:
    """Train the embedded model again, from nothing: up to two hours on two cores."""
    project = Environment(session).install("project")
    sums = "--sums --start tests/embedded_sure --causal-steps 0 --mixed-steps 0 --steps 2400"
    for flags in ([], sums.split()):
        project.run("python", "scripts/train_tiny.py", *flags, *session.posargs)


# --- upkeep ---------------------------------------------------------------------------------------


@nox.session
def docs(session: nox.Session) -> None:
    """The Python interface as HTML, into ``site/``."""
    project = Environment(session).install("project", "docs")
    parts = (path.stem for path in Path("src/fdllm").iterdir() if not path.stem.startswith("__"))
    options = ("--docformat", "google", "--output-directory", "site")
    pages = ("fdllm", *sorted(f"fdllm.{part}" for part in parts))
    project.run("python", "-c", PDOC, *options, *pages)


@nox.session
def lock(session: nox.Session) -> None:
    """Resolve pyproject.toml anew in a clean environment and write both ``requirements`` locks.

    Local labels (``+cpu``) and what only a CUDA build of torch brings are left out, so that one
    file serves machines with and without a GPU.
    """
    clean = Environment(session, "lock", clear=True)
    clean.pip("install", ".")
    frozen = clean.pip("freeze", "--all", "--exclude", "fdllm", "--exclude", "pip").splitlines()
    pins = [line.partition("+")[0] for line in frozen if not GPU_ONLY.match(line)]
    header = "# Versions of everything that a run imports. Written by `nox -s lock`; do not edit."
    LOCK.write_text("\n".join([header, *pins]) + "\n", encoding="utf-8")
    _write_hashes(session)


@nox.session
def pylock(session: nox.Session) -> None:
    """Write ``pylock.toml`` (PEP 751): ``requirements.lock`` by hash, with torch and its CUDA."""
    resolve = ("pyproject.toml", "--constraint", LOCK.name, "--format", "pylock.toml")
    _compile(session, *resolve, "--output-file", PYLOCK.name)
    locked = {one["name"]: one["version"] for one in load_toml(PYLOCK)["packages"]}
    pins = _pinned(LOCK.read_text(encoding="utf-8"))
    if wrong := sorted(name for name, version in pins.items() if locked.get(name) != version):
        session.error(f"{PYLOCK} and {LOCK} differ in {', '.join(wrong)}: run nox -s lock")


@nox.session
def sbom(session: nox.Session) -> None:
    """Write ``fdllm.cdx.json``: what a run imports as a CycloneDX bill of materials."""
    tools = Environment(session, "bundle").install("bundle")
    options = ("--pyproject", "pyproject.toml", "--output-reproducible", "-o", "fdllm.cdx.json")
    tools.run("cyclonedx-py", "requirements", LOCK.name, *options, *session.posargs)


def _write_hashes(session: nox.Session) -> None:
    """Pin each package of the lock by its files' hashes, but torch, whose builds differ."""
    options = ("--no-deps", "--generate-hashes", "--no-header", "--no-emit-package", "torch")
    lines = _compile(session, LOCK.name, *options, "--no-annotate")
    header = (
        "# requirements.lock without torch, by hash, for every system and Python from 3.11 on.\n"
        "# Written by `nox -s lock`; do not edit."
    )
    HASHES.write_text(f"{header}\n{lines.strip()}\n", encoding="utf-8")


def _compile(session: nox.Session, *arguments: str) -> str:
    """Have uv resolve for every system at once; what it printed comes back."""
    tools = Environment(session, "bundle").install("bundle")
    everywhere = ("--universal", "--python-version", "3.11", "--no-config", "--quiet")
    return str(tools.run("uv", "pip", "compile", *everywhere, *arguments, silent=True))


def _pinned(lock: str) -> dict[str, str]:
    """Versions by normalized name."""
    pins = (line.split("==") for line in lock.splitlines() if "==" in line)
    return {_plain(name): version for name, version in pins}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --- how an environment comes about ---------------------------------------------------------------


class Environment:
    """A virtual environment under ``.nox`` that outlives the session that made it.

    Args:
        session: whose commands run in it.
        name: its folder.
        clear: start from nothing.
    """

    def __init__(self, session: nox.Session, name: str = "fdllm", *, clear: bool = False) -> None:
        self.session = session
        self.folder = Path(".nox", name)
        with self._alone():
            if clear or not (self.folder / "bin" / "pip").exists():
                self._create()

    def _create(self) -> None:
        """Make it of the Python that nox runs on, and say what that may lack."""
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        kinds = load_toml("pyproject.toml")["project"]["classifiers"]
        tried = [kind.rpartition(" ")[2] for kind in kinds if ":: Python :: 3." in kind]
        if here not in tried:
            self.session.warn(
                f"the pinned packages were tried with Python {', '.join(tried)}, and this is "
                f"{here}: where one does not install, run nox with one of those"
            )
        self.session.log(f"creating {self.folder}")
        try:
            venv.create(self.folder, with_pip=True, clear=True)
        except subprocess.CalledProcessError:
            self.session.error(
                f"{sys.executable} makes no environment with pip, as ensurepip is missing or "
                "fails; Debian and Ubuntu: sudo apt install python3-venv, then the same again"
            )

    def install(self, *parts: str) -> Environment:
        """Install ``project`` or a dependency group, where that is not done for these pins yet."""
        with self._alone():
            for part in parts:
                stamp = self.folder / f"installed-{part}"
                if stamp.exists() and stamp.read_text(encoding="utf-8") == _pins():
                    continue
                self.session.log(f"installing '{part}' into {self.folder}: once, perhaps minutes")
                self._fetch(part)
                stamp.write_text(_pins(), encoding="utf-8")
        return self

    def _fetch(self, part: str) -> None:
        """Install a part, by uv where there is one; what a run imports by hash, but for torch."""
        uv = shutil.which("uv")
        told = ("--python", str(self.folder / "bin" / "python"))

        def install(*arguments: str) -> None:
            if uv:
                self.session.run(
                    uv, "pip", "install", *told, *arguments, env=INTO, silent=True, external=True
                )
            else:
                self.pip("install", *arguments)

        if part == "project":
            install("--no-deps", "--require-hashes", "--requirement", str(HASHES))
        # The tools of a folder of their own may need other versions than a run.
        pins = () if part == "bundle" else ("--constraint", str(LOCK))
        install(*pins, *_requirements(part))

    def pip(self, *arguments: str) -> str:
        """Run pip; what it printed is returned, and shown only where it failed."""
        return str(self.run("python", "-m", "pip", *arguments, silent=True, env=INTO))

    def python(self, module: str, *arguments: str) -> None:
        """Run a module."""
        self.run("python", "-m", module, *arguments)

    def fdllm(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        """Run the project's own command."""
        self.run("fdllm", *arguments, env=env)

    def run(
        self, program: str, *arguments: str, env: dict[str, str] | None = None, silent: bool = False
    ) -> object:
        """Run a program of the environment; where ``silent``, return what it printed."""
        path = self.folder.absolute() / "bin" / program
        return self.session.run(path, *arguments, env=env, silent=silent, external=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep two nox commands from installing into one environment at the same time."""
        self.folder.parent.mkdir(exist_ok=True)
        with self.folder.with_suffix(".lock").open("w") as lock_file:
            fcntl.flock(lock_file, fcntl.LOCK_EX)
            yield


def _requirements(part: str) -> tuple[str, ...]:
    """What pip installs for ``project``, or for the dependency group of that name."""
    if part == "project":
        return ("--editable", ".")
    return dependency_groups(load_toml("pyproject.toml"), part)


def _pins() -> str:
    """A digest of all that decides what gets installed, and where the clone lies."""
    pyproject = load_toml("pyproject.toml")
    tables = {key: pyproject[key] for key in ("build-system", "project", "dependency-groups")}
    text = json.dumps([str(Path.cwd()), tables, LOCK.read_text(encoding="utf-8")])
    return hashlib.sha256(text.encode()).hexdigest()
