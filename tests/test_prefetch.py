"""Prefetch: what tasks and model take comes into the caches, and is proved offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkups import checkup, fdllm
from hub.run import run_cases
from hub.sentences import train_sentences
from hub.server import GRANTED, Hub
from stubs import read_only

pytestmark = pytest.mark.slow

GPQA = "gpqa_main_n_shot"


def test_then_a_node_without_a_network_can_run(hub: Hub, tmp_path: Path) -> None:
    fetched = checkup(
        "prefetch", "--task", "gsm8k", GPQA, home=tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=GRANTED
    )
    assert fetched.code == 0, fetched.out + fetched.err
    assert {f["state"] for f in fetched.findings.values()} == {"ok"}
    assert set(fetched.findings) == {"model", "task gsm8k", f"task {GPQA}"}

    # Neither a token nor a Hub: from the caches alone, with a run at the end of it.
    after = checkup("doctor", "--task", "gsm8k", GPQA, home=tmp_path)
    assert after.code == 0, after.out
    asked = [{"task": "gsm8k", "limit": 2}, {"task": GPQA, "limit": 2}]
    assert [one["value"] for one in run_cases(asked, tmp_path, endpoint=None).found] == [1.0, 1.0]

    # Again: nothing is missing, and no token is needed any more.
    again = checkup("prefetch", "--task", "gsm8k", GPQA, home=tmp_path, HF_ENDPOINT=hub.url)
    assert again.code == 0, again.out


def test_what_cannot_be_had_does_not_stop_the_rest(hub: Hub, tmp_path: Path) -> None:
    ended = checkup("prefetch", "--task", GPQA, "gsm8k", home=tmp_path, HF_ENDPOINT=hub.url)
    assert ended.code == 1
    assert ended.findings["task gsm8k"]["state"] == "ok"
    gated = ended.findings[f"task {GPQA}"]
    assert gated["state"] == "fail"
    assert "token" in gated["found"]
    assert "https://huggingface.co/datasets/Idavidrein/gpqa" in gated["remedy"]


def test_humaneval_and_ifeval(hub: Hub, tmp_path: Path) -> None:
    """ifeval's tokenizer cannot be fetched from here, so it is trained where it is looked for."""
    asked = ("--task", "humaneval", "ifeval")
    without = checkup("prefetch", *asked, home=tmp_path, HF_ENDPOINT=hub.url)
    assert without.code == 1
    assert without.findings["task humaneval"]["state"] == "ok"
    assert "punkt_tab" in without.findings["task ifeval"]["found"]

    train_sentences(tmp_path)
    ended = checkup("prefetch", *asked, home=tmp_path, HF_ENDPOINT=hub.url)
    assert ended.code == 0, ended.out
    # Fetching asked nobody's consent; running does.
    consent = ("--allow-code-execution", "--allow-readable-files")
    agreed = checkup("doctor", *asked, *consent, home=tmp_path)
    assert agreed.code == 0, agreed.out
    assert agreed.findings["sandbox humaneval"]["state"] == "ok"


def test_a_shared_copy_that_is_read_only(hub: Hub, tmp_path: Path) -> None:
    """Its files are read; what is made of them goes into a folder of one's own."""
    home, mine = tmp_path / "home", {"HF_DATASETS_CACHE": str(tmp_path / "mine")}
    records = ("--results", str(tmp_path / "records"), "--json", "--model", "tiny")
    flags = (*records, "--task", "gsm8k")
    assert fdllm("prefetch", *flags, home=home, HF_ENDPOINT=hub.url).code == 0
    with read_only(home):
        for environment in ({}, {"HF_ENDPOINT": hub.url}):
            found = fdllm("doctor", *flags, home=home, **environment).findings["task gsm8k"]
            assert found["state"] == "fail"
            assert found["remedy"].startswith("set HF_DATASETS_CACHE to a folder of yours")
        hub.seen.clear()
        fetched = fdllm("prefetch", *flags, home=home, HF_ENDPOINT=hub.url, **mine)
        assert fetched.code == 0, fetched.out
        assert not [path for method, path, _ in hub.seen if method == "GET" and "resolve" in path]
        doctor = fdllm("doctor", "--executor", "local", *flags, home=home, **mine)
        assert doctor.code == 0, doctor.out
