"""The image is built, tests itself, computes, and holds nothing that it should not."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.image import Image
from fdllm.cluster.render import container_command
from helpers import ROOT

pytestmark = pytest.mark.timeout(1500)
CELL = ("--task", "tiny_arithmetic", "--config", "k2_middle", "--limit", "10")


def digest(image: Image) -> str:
    with image.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's folders, without the package: the image has its own."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "experiments", root / "experiments")
    return root


def test_it_passes_its_own_tests(image: Image) -> None:
    done = image.apptainer("test", str(image.path))
    assert done.returncode == 0, done.stdout
    assert "a decoded block: well" in done.stdout


def test_a_record_names_the_image(image: Image, place: Path) -> None:
    told = {"APPTAINERENV_HF_TOKEN": "hf_told"}
    done = image.apptainer("exec", str(image.path), "eval", *CELL, cwd=place, environment=told)
    assert done.returncode == 0, done.stdout
    [path] = (place / "results").rglob("summary.json")
    record: Any = json.loads(path.read_text())
    sessions = record["provenance"]["sessions"]
    assert [one["image_sha256"] for one in sessions] == [digest(image)]
    assert re.fullmatch(r"C kernels for x86[-_]64(-v[234])?", sessions[0]["compile"])
    assert "hf_told" not in "".join(
        file.read_text(errors="replace") for file in place.rglob("*") if file.is_file()
    )

    again = image.apptainer("run", "--app", "eval", str(image.path), *CELL, cwd=place)
    assert again.returncode == 0, again.stdout
    status = image.apptainer(
        *("run", "--app", "status", str(image.path), "--json"),
        *("--task", "tiny_arithmetic", "--limit", "10"),
        cwd=place,
    )
    assert status.returncode == 0, status.stdout
    assert '"done"' in status.stdout


def test_a_node_sees_only_what_is_bound(image: Image, place: Path) -> None:
    command = container_command(
        image.path,
        ["sh", "-c", 'echo "$FDLLM_ROOT ${SECRET-unset} $APPTAINER_CONTAINER"; ls "$FDLLM_ROOT"'],
        binds=[str(place)],
        gpu=False,
    )
    handed = {"SECRET": "seen", "APPTAINERENV_FDLLM_ROOT": str(place)}
    done = image.apptainer(*command[1:], environment=handed)
    assert f"{place} unset {image.path}\n" in done.stdout, done.stdout
    assert "experiments" in done.stdout


def test_doctor_runs(image: Image, place: Path) -> None:
    done = image.apptainer(
        *("run", "--app", "doctor", str(image.path), "--json", "--model", "tiny"),
        *("--task", "tiny_arithmetic", "--executor", "local"),
        cwd=place,
    )
    assert done.returncode in {0, 1}, done.stdout
    assert '"source"' in done.stdout


def test_no_token_and_no_machine_in_it(image: Image) -> None:
    # The letters in brackets keep the pattern from finding itself.
    look = r"""
        home=$(awk -F: '$3 == 0 { print $6 }' /etc/passwd)
        cat /.singularity.d/labels.json
        env | grep -iE 'token|pip_' && echo FOUND-IN-ENVIRONMENT
        grep -rIlE 'hf_[a]_token_of_the_builder' \
            /opt/fdllm /etc "$home" /.singularity.d && echo FOUND-A-TOKEN
        ls /usr/bin | grep -E '^cc$|gcc|-as$' && echo FOUND-A-COMPILER
        ls -d /var/cache/apt/*.bin 2>/dev/null && echo FOUND-A-CACHE
        ls -A /mnt | grep . && echo FOUND-WHAT-WAS-BOUND
        ls -Ad /opt/fdllm/source "$home/.cache" "$home/.config/pip" /etc/pip.conf 2>&1 |
            grep -v 'No such file' && echo FOUND-LEFTOVERS
        find /opt/fdllm -name .git -o -name pip.conf | grep . && echo FOUND-FILES
        true
    """
    done = image.apptainer(
        *("exec", "--cleanenv", "--no-home", "--contain", str(image.path), "sh", "-c", look)
    )
    assert re.search(r'image\.revision": "[0-9a-f]{10,40}"', done.stdout), done.stdout
    assert "FOUND" not in done.stdout, done.stdout
