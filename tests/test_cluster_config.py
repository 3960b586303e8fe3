"""What ``fdllm.toml`` may say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from command import Command
from fake_slurm import FakeSlurm
from fdllm.cluster.cluster_config import ClusterConfig, Resources, load_cluster_config
from fdllm.errors import UsageError
from fdllm.runs import Cell, ModelChoice, Run
from helpers import ROOT

EXAMPLE = ROOT / "fdllm.toml.example"


def run(task: str = "gsm8k", model: str = "org/model") -> Run:
    return Run(
        experiment="00_baseline",
        task=task,
        cell=Cell(name="k2_middle", k=2, subset="middle"),
        model=ModelChoice(name=model),
    )


def site_of(folder: Path, text: str) -> ClusterConfig:
    (folder / "fdllm.toml").write_text(text, encoding="utf-8")
    return load_cluster_config(folder)


def test_without_a_file_there_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FDLLM_SITE", raising=False)
    assert load_cluster_config(tmp_path) == ClusterConfig()


def test_the_example_is_read_and_says_the_defaults(tmp_path: Path) -> None:
    site = site_of(tmp_path, EXAMPLE.read_text())
    usual = ClusterConfig().resources_of(run())
    assert site.resources_of(run()) == usual
    assert site.model_copy(update={"resources": Resources()}) == ClusterConfig()


def test_every_key_of_the_example_is_one() -> None:
    """With each comment sign ahead of a key taken away it is still read, and holds every key."""
    text = re.sub(r"(?m)^# (?=[a-z_]+ = |\[)", "", EXAMPLE.read_text())
    data = tomllib.loads(text)
    site = ClusterConfig.read(data, "example")
    assert set(data) == set(ClusterConfig.model_fields)
    assert set(data["resources"]) == set(Resources.model_fields)
    assert site.resources_of(run("mmlu")).time_min == 2880
    assert site.resources_of(run("gsm8k")).time_min == 1440


def sites() -> list[str]:
    """The example's blocks of sites, as a person copies them."""
    blocks = re.findall(r"(?m)(?:^#   .*\n)+", EXAMPLE.read_text().partition("# --- sites")[2])
    return [re.sub(r"(?m)^#   ", "", block) for block in blocks]


@pytest.mark.parametrize("text", sites(), ids=["snellius", "jean-zay", "perlmutter", "narval"])
def test_a_sites_block_is_what_sbatch_is_asked_for(
    text: str, fdllm: Command, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the block to the ``sbatch`` that it becomes, shown and done."""
    (fdllm.root / "fdllm.toml").write_text(text)
    monkeypatch.delenv("FDLLM_SITE", raising=False)
    data = tomllib.loads(text)
    said = data["resources"]
    command = (
        "sweep --task tiny_arithmetic --config k1_first --executor slurm --no-doctor --timing 0"
    )
    assert fdllm(*command.split(), "--dry-run") == 0, fdllm.err
    lines = fdllm.out.splitlines()
    assert f"#SBATCH --time={said['time_min']}" in lines
    assert set(data.get("setup", [])) <= set(lines)
    assert fdllm(*command.split()) == 0, fdllm.err
    asked = slurm.asked("101")
    assert f"--time={said['time_min']}" in asked
    assert f"--cpus-per-task={said['cpus']}" in asked
    assert [one for one in asked if re.fullmatch(r"--gres=gpu(:\w+)?:1", one)]
    for name in ("partition", "account", "qos", "constraint"):
        assert (f"--{name}={said.get(name)}" in asked) == (name in said), name
    assert set(said.get("extra", [])) <= set(asked)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partition = 'gpu'", "unknown key 'partition'"),
        ("[resources]\nparttion = 'gpu'", "did you mean 'partition'"),
        ("[resources]\npartition = 'gpu two'", "must be one word"),
        ("[resources]\naccount = 'a`id`'", "must be one word"),
        ("[resources]\ntime_min = 0", "'time_min': Input should be greater than or equal to 1"),
        ("[resources]\ncpus = 0", "'cpus': Input should be greater than or equal to 1"),
        ("[resources]\nmemory_gb = 0", "'memory_gb': Input should be greater than or equal to 1"),
        ("max_jobs = 0", "'max_jobs': Input should be greater than or equal to 1"),
        ("warn_s = 9", "'warn_s': Input should be greater than or equal to 10"),
        ("warn_s = 65536", "'warn_s': Input should be less than or equal to 65535"),
        ("[resources]\nextra = ['exclude=node7']", "no option of sbatch"),
        ("[resources]\nextra = ['--array=0-3']", "'--array' is set for each submission"),
        ("[resources]\nextra = ['--wait']", "'--wait' is set for each submission"),
        ("[resources]\nextra = ['-a0-3']", "'-a0-3' is set for each submission"),
        ("[resources]\nextra = ['-o x']", "'-o' is set for each submission"),
        (
            '[resources]\nextra = ["--comment=it\'s"]',
            "is no option of sbatch: No closing quotation",
        ),
        ('[resources]\nextra = ["--exclude=a\\nrm -rf x"]', "no option of sbatch"),
        ("warn_s = 600\n[resources]\ntime_min = 10", "nothing would be computed"),
        ("[tasks.mmlu]\ntime_min = 2", "task mmlu has only 2 min"),
        ("[tasks.mmlu]\ntime = 200", "unknown key 'time'"),
        ("[resources\n", "cannot be read"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        site_of(tmp_path, text)


@pytest.mark.parametrize("line", ["--wait-all-nodes=1", "--dependency-x", "-x node7", "-Dx"])
def test_an_option_of_a_like_name_is_none_of_those(tmp_path: Path, line: str) -> None:
    assert site_of(tmp_path, f"[resources]\nextra = ['{line}']").resources.extra == (line,)


def test_another_file_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDLLM_SITE", str(tmp_path / "site.toml"))
    with pytest.raises(UsageError, match="FDLLM_SITE names"):
        load_cluster_config(tmp_path / "root")
    (tmp_path / "site.toml").write_text("max_jobs = 3\nimage = 'images/a.sif'\nhf_home = '$X/hf'")
    monkeypatch.setenv("X", "/scratch")
    site = load_cluster_config(tmp_path / "root")
    assert site.max_jobs == 3
    assert site.image == tmp_path / "images" / "a.sif"
    assert site.hf_home == Path("/scratch/hf")
    assert site.apptainer == "apptainer"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("singularity", "singularity"),
        ("/opt/bin/singularity", "/opt/bin/singularity"),
        ("$X/bin/apptainer", "/scratch/bin/apptainer"),
        ("bin/apptainer", "{}/bin/apptainer"),
    ],
)
def test_the_command_of_an_image_is_a_name_or_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, found: str
) -> None:
    monkeypatch.setenv("X", "/scratch")
    assert site_of(tmp_path, f"apptainer = '{given}'").apptainer == found.format(tmp_path)


def test_a_gpu_is_asked_for_unless_the_model_is_the_embedded_one() -> None:
    assert ClusterConfig().resources_of(run()).gres == "gpu:1"
    assert ClusterConfig().resources_of(run("tiny_choice", "tiny")).gres is None
    none = ClusterConfig.read({"resources": {"gres": ""}}, "site")
    assert none.resources_of(run()).gres == ""
    assert not none.resources_of(run()).has_gpu


@pytest.mark.parametrize("option", ["--gpus=1", "--gpus-per-node=a100:1", "-G 1"])
def test_a_gpu_may_be_asked_for_as_the_site_has_it(option: str) -> None:
    """So an image is given the driver (``--nv``) there too."""
    site = ClusterConfig.read({"resources": {"gres": "", "extra": [option]}}, "site")
    assert site.resources_of(run()).has_gpu


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"partition": "gpu"}, {"partition": "gpu", "time_min": 2880}),
        ({"time_min": 30}, {"time_min": 30}),
        ({"time_min": None}, {"time_min": 2880}),
        ({"gres": ""}, {"gres": ""}),
    ],
)
def test_a_flag_stands_above_the_file(flags: dict[str, Any], found: dict[str, Any]) -> None:
    site = ClusterConfig.read({"tasks": {"mmlu": {"time_min": 2880}}, "max_jobs": 2}, "site")
    changed = site.changed(flags, max_jobs=None)
    resources = changed.resources_of(run("mmlu")).model_dump()
    assert {name: resources[name] for name in found} == found
    assert changed.max_jobs == 2
    assert site.changed({}, max_jobs=5).max_jobs == 5
