"""The check-up of the place: partition, account, scheduler, and the image of the runs."""

from __future__ import annotations

import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from checkups import by_name, of
from fdllm.doctor import checks_here
from fdllm.doctor.examine import examine
from fdllm.doctor.findings import blocking
from fdllm.doctor.remote import ask_node
from helpers import ROOT
from hub.server import GRANTED


def site_commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """A PATH on which only these commands are."""
    folder.mkdir()
    for name, text in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


SINFO = "echo 'short|up|2|1:00:00'; echo 'long|down|1|infinite'"
DEFAULT = "echo PartitionName=short Default=YES"


@pytest.mark.parametrize(
    ("partition", "state", "said"),
    [
        ("short", "ok", "'short' is up"),
        ("long", "warn", "'long' is down"),
        ("shrot", "fail", "no partition 'shrot'; it lists long, short"),
        ("short,nowhere", "fail", "no partition 'nowhere'"),
        (None, "ok", "the site's default"),
    ],
)
def test_partitions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    partition: str | None,
    state: str,
    said: str,
) -> None:
    site_commands(tmp_path / "bin", monkeypatch, sbatch="", sinfo=SINFO, scontrol=DEFAULT)
    asked = replace(of(tmp_path), executor="slurm", partition=partition)
    (found,) = checks_here.scheduler(asked)
    assert (found.name, found.state) == ("partition", state)
    assert said in found.found
    assert bool(found.remedy) == (state != "ok")


def test_the_partitions_of_another_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = '[ "$1 $2" = "-M x" ] || exit 1; echo CLUSTER: x; '
    scripts = {"sinfo": there + SINFO, "scontrol": there + DEFAULT}
    site_commands(tmp_path / "bin", monkeypatch, sbatch="", **scripts)
    asked = replace(of(tmp_path), executor="slurm", clusters="x")
    for partition in ("short", None):
        (found,) = checks_here.scheduler(replace(asked, partition=partition))
        assert found.state == "ok"


@pytest.mark.parametrize(
    ("sacctmgr", "state"),
    [("echo lab; echo other", "ok"), ("echo other", "fail"), ("exit 1", "warn"), (None, "warn")],
)
def test_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sacctmgr: str | None, state: str
) -> None:
    more = {} if sacctmgr is None else {"sacctmgr": sacctmgr}
    site_commands(tmp_path / "bin", monkeypatch, sbatch="", sinfo=SINFO, **more)
    asked = replace(of(tmp_path), executor="slurm", partition="short", account="lab")
    _, found = checks_here.scheduler(asked)
    assert (found.name, found.state) == ("account", state)


def test_a_scheduler_that_is_down_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(of(tmp_path), executor="slurm")
    down = "echo 'Unable to contact slurm controller' >&2; exit 1"
    site_commands(tmp_path / "bin", monkeypatch, sbatch="", sinfo=down)
    (found,) = checks_here.scheduler(asked)
    assert found.state == "fail"
    assert "Unable to contact slurm controller" in found.found
    site_commands(tmp_path / "empty", monkeypatch)
    (found,) = checks_here.scheduler(asked)
    assert "--executor local" in found.remedy


def test_an_image_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(of(tmp_path), root=ROOT, image=tmp_path / "fdllm.sif")
    (found,) = blocking(examine(asked))
    assert (found.name, found.state) == ("image", "fail")
    assert "nox -s container" in found.remedy
    (tmp_path / "fdllm.sif").write_bytes(b"image")
    site_commands(tmp_path / "bin", monkeypatch)
    (found,) = blocking(examine(asked))
    assert "no 'apptainer' on the PATH" in found.found


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("singularity", "no 'singularity' on the PATH to run it"),
        ("/opt/absent/bin/singularity", "no '/opt/absent/bin/singularity' to run it"),
    ],
)
def test_the_command_of_the_site_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    (tmp_path / "fdllm.sif").write_bytes(b"image")
    asked = replace(of(tmp_path), image=tmp_path / "fdllm.sif", apptainer=program)
    site_commands(tmp_path / "bin", monkeypatch, apptainer="")
    (found,) = checks_here.image(asked)
    assert said in found.found
    site_commands(tmp_path / "other", monkeypatch, singularity="")
    there = replace(asked, apptainer=str(tmp_path / "other/singularity"))
    assert [one.state for one in checks_here.image(there)] == ["ok"]


def test_singularity_is_handed_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is looked at and fetched in an image is so by the command that the site names."""
    (tmp_path / "fdllm.sif").write_bytes(b"image")
    log = tmp_path / "log"
    text = f"echo \"$@\" >'{log}'; export >>'{log}'; echo '[]'"
    site_commands(tmp_path / "bin", monkeypatch, singularity=text)
    monkeypatch.setenv("HF_TOKEN", GRANTED)
    asked = replace(of(ROOT), image=tmp_path / "fdllm.sif", apptainer="singularity")
    assert ask_node(asked, "fetch") == []
    command, *environment = log.read_text().splitlines()
    assert command.startswith("exec --nv --cleanenv --no-home")
    assert GRANTED not in command
    (token,) = (line for line in environment if "ENV_HF_TOKEN=" in line)
    assert token.split()[1] == f"SINGULARITYENV_HF_TOKEN='{GRANTED}'"
    assert not any("APPTAINERENV" in line for line in environment)
    assert ask_node(asked, "check") == []
    assert GRANTED not in log.read_text()


APPTAINER = """
for word; do
    shift
    case $word in *.sif) break ;; esac
done
# --cleanenv: what has the prefix comes in, and nothing else.
exec env -i PATH=/usr/bin:/bin $(env | sed -n 's/^APPTAINERENV_//p') PYTHONPATH={path} "$@"
"""


@pytest.mark.slow
def test_in_an_image_that_holds_other_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for Apptainer runs the worker of another checkout, with a clean environment."""
    old = tmp_path / "old"
    shutil.copytree(ROOT / "src" / "fdllm", old / "fdllm")
    with (old / "fdllm" / "core" / "reuse.py").open("a") as file:
        file.write("# edited since\n")
    image = tmp_path / "fdllm.sif"
    image.write_bytes(b"image")
    path = f"{old}:{':'.join(p for p in sys.path if p.endswith('site-packages'))}"
    # The image's interpreter is this one.
    script = APPTAINER.replace("{path}", path).replace('"$@"', f'{sys.executable} "${{@:2}}"')
    place = tmp_path / "bin"
    place.mkdir()
    (place / "apptainer").write_text(f"#!/bin/bash\n{script}")
    (place / "apptainer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
    monkeypatch.setenv("HF_TOKEN", GRANTED)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    found = by_name(examine(replace(of(ROOT), image=image)))
    assert found["image"].state == "ok"
    assert found["model (image)"].state == "ok", found
    source = found["source (image)"]
    assert source.state == "fail"
    assert "src/fdllm/core/reuse.py" in source.found
    assert "nox -s container" in source.remedy


def test_in_an_image_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "fdllm.sif"
    image.write_bytes(b"image")
    site_commands(tmp_path / "bin", monkeypatch, apptainer="echo no such image >&2; exit 255")
    (found,) = blocking(examine(replace(of(ROOT), image=image)))
    assert "exit code 255: no such image" in found.found
    assert "build the image anew" in found.remedy
