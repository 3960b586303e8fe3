"""A real image, built once a session by a real Apptainer, as `.ci/apptainer.sh` sets it up."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.slurm import REQUIRE, require_or_skip
from helpers import ROOT

SCRIPT = ROOT / ".ci" / "apptainer.sh"
# Seconds of compression are worth more here than the image's size.
FAST = ("--mksquashfs-args", "-comp zstd -Xcompression-level 1")


@dataclass(frozen=True)
class Image:
    """An image and what runs it.

    Attributes:
        path: the file.
        programs: folder to put on the PATH, for ``apptainer``.
    """

    path: Path
    programs: Path

    def environment(self, **more: str) -> dict[str, str]:
        """The environment with ``apptainer`` on the PATH."""
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, **more}

    def apptainer(
        self, *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of Apptainer's; both of what it printed is in ``stdout``."""
        return subprocess.run(
            ["apptainer", *arguments],
            env=self.environment(**(environment or {})),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


def build_image(folder: Path) -> Image:
    """Build ``Apptainer.def`` on a local root; ``FDLLM_TEST_IMAGE`` names one that is there."""
    if os.geteuid() != 0 or os.environ.get(REQUIRE) != "1" or platform.machine() != "x86_64":
        require_or_skip(f"building the image installs packages: root, x86_64 and {REQUIRE}=1")
    programs = Path(_script("install").split("PATH=")[1].split(":")[0])
    named = os.environ.get("FDLLM_TEST_IMAGE")
    image = Image(Path(named) if named else folder / "fdllm.sif", programs)
    if named:
        return image
    _script("base", str(folder / "base"))
    _script("pip", str(folder / "pip"))
    done = image.apptainer(
        *("build", "--bind", f"{folder / 'pip'}:/mnt", *FAST),
        *("--build-arg", "bootstrap=localimage", "--build-arg", f"base={folder / 'base'}"),
        *("--build-arg", "commit=0123456789", str(image.path), "Apptainer.def"),
        environment={"HF_TOKEN": "hf_a_token_of_the_builder"},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    shutil.rmtree(folder / "base")
    return image


def _script(*arguments: str) -> str:
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
