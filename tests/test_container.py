"""The image's command lines, its hash, and what its definition may say."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from fdllm.cluster.render import container_command
from fdllm.errors import FdllmError
from fdllm.record.image import image_digest, own_image_digest
from helpers import ROOT

DEFINITION = (ROOT / "Apptainer.def").read_text(encoding="utf-8")


def test_command_line() -> None:
    command = container_command(
        Path("/images/a b.sif"),
        ["fdllm", "job", "map.json"],
        binds=["/data/ü x", "/c:/inside:ro"],
        gpu=True,
    )
    assert command == [
        *("apptainer", "exec", "--nv", "--cleanenv", "--no-home"),
        *("--bind", "/data/ü x", "--bind", "/c:/inside:ro"),
        *("/images/a b.sif", "fdllm", "job", "map.json"),
    ]


def test_without_a_gpu_no_driver_is_asked_for() -> None:
    command = container_command(Path("i.sif"), ["eval"], binds=[], gpu=False)
    assert command == ["apptainer", "exec", "--cleanenv", "--no-home", "i.sif", "eval"]


def test_hash_of_an_image_follows_its_content(tmp_path: Path) -> None:
    image = tmp_path / "a.sif"
    for text in (b"one", b"another"):
        image.write_bytes(text)
        expected = hashlib.sha256(text).hexdigest()
        assert [image_digest(image), image_digest(image)] == [expected, expected]


def test_kept_hash_is_used_while_size_and_time_agree(tmp_path: Path) -> None:
    image = tmp_path / "a.sif"
    image.write_bytes(b"one")
    first = image_digest(image)
    time = image.stat().st_mtime_ns
    image.write_bytes(b"two")
    os.utime(image, ns=(time, time))
    assert image_digest(image) == first
    os.utime(image, ns=(time, time + 1))
    assert image_digest(image) == hashlib.sha256(b"two").hexdigest()


def test_damaged_kept_hash_is_computed_again(tmp_path: Path) -> None:
    image = tmp_path / "a.sif"
    image.write_bytes(b"one")
    (tmp_path / "a.sif.sha256").write_text("nonsense")
    assert image_digest(image) == hashlib.sha256(b"one").hexdigest()


def test_missing_image_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(FdllmError, match="nox -s container"):
        image_digest(tmp_path / "a.sif")


def test_a_process_knows_its_image(tmp_path: Path) -> None:
    image = tmp_path / "a.sif"
    image.write_bytes(b"one")
    inside = {"APPTAINER_CONTAINER": str(image)}
    assert own_image_digest({}) is None
    assert own_image_digest(inside) == image_digest(image)
    assert own_image_digest({"SINGULARITY_CONTAINER": str(image)}) == image_digest(image)
    assert own_image_digest(inside | {"FDLLM_IMAGE_SHA256": "told"}) == "told"


def test_a_record_without_its_images_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FdllmError, match=r"--bind .*FDLLM_IMAGE_SHA256"):
        own_image_digest({"APPTAINER_CONTAINER": str(tmp_path / "gone.sif")})


def test_definition_pins_its_base_and_invents_no_digest() -> None:
    assert re.search(r"^\s+base=python:\d+\.\d+\.\d+-slim-\w+$", DEFINITION, re.MULTILINE)
    assert not re.search(r"sha256:[0-9a-f]{8}", DEFINITION)
    assert "--require-hashes" in DEFINITION


def test_definition_copies_named_sources_only() -> None:
    files = DEFINITION.split("%files")[1].split("%post")[0].split("\n")
    sources = {line.split()[0] for line in files if line.strip()}
    assert sources == {
        *("src", "pyproject.toml", "requirements.lock", "requirements.hashes.lock"),
        *("README.md", "LICENSE", "experiments/_template"),
    }


def test_hashes_are_those_of_the_lock_but_torch() -> None:
    """For every system: the one file that nox, an installation by hand and the image read."""

    def pins(name: str) -> dict[str, str]:
        text = (ROOT / name).read_text(encoding="utf-8")
        found = re.findall(r"^(\S+)==(\S+)", text, re.MULTILINE)
        return {re.sub(r"[-_.]+", "-", one).lower(): version for one, version in found}

    text = (ROOT / "requirements.hashes.lock").read_text(encoding="utf-8")
    packages = re.split(r"\n(?=\S)", text.partition("edit.\n")[2].strip())
    assert all(re.fullmatch(r"\S+( \\\n +--hash=sha256:[0-9a-f]{64})+", one) for one in packages)
    locked = pins("requirements.lock")
    assert locked.pop("torch")
    assert pins("requirements.hashes.lock") == locked
