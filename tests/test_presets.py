"""``--preset``: whose settings win, what becomes part of a run's identity, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fdllm.errors import UsageError
from fdllm.evaluate.tasks import TASKS
from fdllm.plan import Planner, State
from fdllm.presets.reader import BUILT_IN, load_preset
from fdllm.record.paths import Layout, TaskFolder
from fdllm.runs import Cell, Evaluating, ModelChoice, Run, Sweep
from fdllm.task_facts import TaskFacts
from stubs import do_run

BENCHMARKS = ("mmlu", "gpqa_main_n_shot", "gsm8k", "minerva_math", "ifeval")


def facts(name: str) -> TaskFacts:
    return TaskFacts(TASKS[name].kind, f"definition of {name}")


def planner(root: Path) -> Planner:
    return Planner(root, Layout.of(root), facts)


def sweep(root: Path, task: str, preset: str | None, **changes: Any) -> Sweep:
    values: dict[str, Any] = {
        "experiment": "00_baseline",
        "tasks": (task,),
        "model": ModelChoice(name=str(root / "model")),
        "preset": None if preset is None else load_preset(preset),
    }
    return Sweep(**(values | changes))


def run_of(
    root: Path, task: str, preset: str | None, config: str = "k1_first", **changes: Any
) -> Run:
    (run,) = planner(root).runs(sweep(root, task, preset, configs=(config,), **changes))
    return run


def own_preset(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return str(path)


# --- the two columns of docs/protocol.md --------------------------------------------------------


@pytest.mark.parametrize("task", BENCHMARKS)
@pytest.mark.parametrize("preset", BUILT_IN)
def test_what_both_protocols_share(root: Path, preset: str, task: str) -> None:
    run = run_of(root, task, preset)
    asked, decoding = run.evaluating, run.decoding
    assert asked.chat_template
    assert asked.fewshot_as_multiturn
    assert asked.scoring == "first-token"
    assert asked.instruction == "everywhere"
    assert asked.ignore_until
    assert asked.whole_blocks
    assert asked.stop_token == "<|im_end|>"  # noqa: S105 - a token of a tokenizer
    assert asked.fewshot_seed == 1234
    assert not asked.allow_invalid
    assert (decoding.block_size, decoding.small_block_size) == (32, 8)
    assert (decoding.max_new_tokens, decoding.temperature) == (2048, 0.0)


@pytest.mark.parametrize(
    ("task", "threshold", "num_fewshot", "headline"),
    [
        ("gsm8k", 1.0, 0, "exact_match,flexible-extract"),
        ("minerva_math", 1.0, 0, "math_verify,none"),
        ("ifeval", 1.0, 0, "prompt_level_strict_acc,none"),
        ("mmlu", 0.9, 5, "acc,none"),
        ("gpqa_main_n_shot", 0.9, 0, "acc,none"),
        ("humaneval", 0.9, 0, None),
    ],
)
def test_published(
    root: Path, task: str, threshold: float, num_fewshot: int, headline: str | None
) -> None:
    run = run_of(root, task, "published")
    assert run.decoding.threshold == threshold
    assert not run.decoding.use_block_cache
    assert run.evaluating.num_fewshot == num_fewshot
    assert run.evaluating.headline == headline
    assert run.evaluating.max_prompt_tokens == 4096
    assert (run.evaluating.batch_size, run.evaluating.score_batch_size) == (32, 1)


@pytest.mark.parametrize("task", [*BENCHMARKS, "humaneval"])
def test_ancestor_as_it_ran(root: Path, task: str) -> None:
    """Its file declares threshold 0.95; the command never passed it, and 0.9 acted (defect 14)."""
    run = run_of(root, task, "ancestor")
    assert run.decoding.threshold == 0.9
    assert run.decoding.use_block_cache
    assert run.evaluating.num_fewshot == 0
    assert run.evaluating.max_prompt_tokens is None
    assert run.evaluating.batch_size == 1
    assert "0.95" in " ".join(load_preset("ancestor").exceptions)


def test_the_embedded_model_has_its_own_end_and_estimator(root: Path) -> None:
    for preset in BUILT_IN:
        assert run_of(root, "tiny_choice", preset).evaluating.scoring == "denoise"
        run = run_of(root, "tiny_arithmetic", preset)
        assert run.evaluating.stop_token == "<|end|>"  # noqa: S105
        assert run.decoding.max_new_tokens == 96


def test_published_figures() -> None:
    figures = load_preset("published").figures
    assert figures is not None
    assert figures.model == "Efficient-Large-Model/Fast_dLLM_v2_7B"
    assert figures.percent == {
        "gsm8k": 83.7, "minerva_math": 61.6, "ifeval": 61.4, "mmlu": 66.6, "gpqa_main_n_shot": 31.9,
    }  # fmt: skip
    assert load_preset("ancestor").figures is None


# --- who wins -----------------------------------------------------------------------------------


def test_a_preset_wins_over_the_experiment_and_loses_to_a_cell_and_a_flag(root: Path) -> None:
    settings = root / "experiments/00_baseline/experiment.toml"
    assert "threshold = 0.97" in settings.read_text()  # the experiment's
    assert run_of(root, "gsm8k", None).decoding.threshold == 0.97
    assert run_of(root, "gsm8k", "published").decoding.threshold == 1.0
    text = settings.read_text().replace("[grid]\nk = [1, 2, 3]\n", "")
    text = text.replace('subset = ["first", "middle", "last"]\n', "")
    cell = '[[config]]\nname = "own"\nk = 1\nsubset = "first"\ndecoding = { threshold = 0.5 }\n'
    settings.write_text(f"{text}\n{cell}")
    own = run_of(root, "gsm8k", "published", "own")
    assert (own.decoding.threshold, own.decoding.use_block_cache) == (0.5, False)
    flagged = run_of(root, "mmlu", "published", "own", flags={"scoring": "denoise"})
    assert (flagged.evaluating.scoring, flagged.evaluating.num_fewshot) == ("denoise", 5)


def test_what_a_preset_leaves_open_is_the_experiments(root: Path, tmp_path: Path) -> None:
    mine = own_preset(tmp_path, "[evaluation]\nnum_fewshot = 3\n")
    run = run_of(root, "gsm8k", mine, evaluating=Evaluating(scoring="chain", num_fewshot=1))
    assert (run.evaluating.num_fewshot, run.evaluating.scoring) == (3, "chain")
    assert run.decoding.threshold == 0.97


def test_a_table_of_a_task_wins_over_the_general_one(root: Path, tmp_path: Path) -> None:
    mine = own_preset(
        tmp_path,
        "[decoding]\nthreshold = 0.8\nblock_size = 64\n[evaluation]\nnum_fewshot = 1\n"
        "[tasks.gsm8k]\ndecoding = { threshold = 0.7 }\nevaluation = { num_fewshot = 2 }\n",
    )
    for task, threshold, num_fewshot in (("gsm8k", 0.7, 2), ("mmlu", 0.8, 1)):
        run = run_of(root, task, mine)
        assert (run.decoding.threshold, run.decoding.block_size) == (threshold, 64)
        assert run.evaluating.num_fewshot == num_fewshot


def test_a_tasks_own_length_gives_way(root: Path) -> None:
    plan = Planner(root, Layout.of(root), lambda name: TaskFacts(TASKS[name].kind, name, 1280))
    lengths = [
        plan.runs(sweep(root, "ifeval", preset))[0].decoding.max_new_tokens
        for preset in (None, "published")
    ]
    assert lengths == [1280, 2048]


def test_a_sweep_asks_the_same_in_another_process(root: Path) -> None:
    """``doctor`` and ``prefetch`` hand a sweep on as JSON."""
    for preset in (None, *BUILT_IN):
        here = sweep(root, "mmlu", preset, flags={"batch_size": 7})
        there = Sweep.read(json.loads(here.model_dump_json()), "sweep")
        assert [here.asked(task) for task in TASKS] == [there.asked(task) for task in TASKS]
        assert [here.departures(task) for task in TASKS] == [there.departures(t) for t in TASKS]


def test_a_job_is_told_all_of_it(root: Path) -> None:
    """A submission hands a run on as JSON, and its jobs read no preset."""
    run = run_of(root, "mmlu", "published", flags={"scoring": "chain"})
    assert Run(**json.loads(run.model_dump_json())) == run


# --- identity -----------------------------------------------------------------------------------


def test_a_preset_is_part_of_the_path(root: Path) -> None:
    run = run_of(root, "tiny_arithmetic", "published", limit=10)
    own = run.model_copy(update={"model": ModelChoice(name="tiny")})
    layout = Layout.of(root)
    there = "00_baseline/tiny_arithmetic_limit_10+published/k1_first"
    assert layout.run(own).folder == root / "results" / there
    assert layout.run(own).artifacts == root / "artifacts" / there
    assert layout.run(own).logs == root / "logs" / there
    assert str(TaskFolder.of(run)).startswith("tiny_arithmetic_limit_10+published@model-")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("gsm8k", TaskFolder("gsm8k")),
        ("gsm8k_limit_10", TaskFolder("gsm8k", 10)),
        ("gsm8k+published", TaskFolder("gsm8k", None, "published")),
        ("gsm8k_limit_10+my.own_1@a--b", TaskFolder("gsm8k", 10, "my.own_1", "a--b")),
        ("gsm8k@a+b", TaskFolder("gsm8k", None, None, "a+b")),
        ("gsm8k+x@a+b", TaskFolder("gsm8k", None, "x", "a+b")),
    ],
)
def test_a_task_folder_reads_as_it_prints(name: str, folder: TaskFolder) -> None:
    assert TaskFolder.parse(name) == folder
    assert str(folder) == name
    assert TaskFolder.parse(f".{name}") is None


def test_a_preset_is_part_of_the_fingerprint(root: Path, tmp_path: Path) -> None:
    same = own_preset(tmp_path, "")  # sets nothing: still another name
    fields = [
        planner(root).fingerprint(run_of(root, "tiny_arithmetic", preset)).fields
        for preset in (None, same)
    ]
    assert [one["preset"] for one in fields] == ["none", "mine"]
    assert {name for name in fields[0] if fields[0][name] != fields[1][name]} == {"preset"}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("decoding = { threshold = 0.8 }", "decoding: threshold=0.97 -> threshold=0.8"),
        ("evaluation = { ignore_until = true }", "ignore_until=False -> ignore_until=True"),
        ("evaluation = { whole_blocks = true }", "whole_blocks=False -> whole_blocks=True"),
        ("evaluation = { instruction = 'none' }", "instruction=ending -> instruction=none"),
        ("evaluation = { max_prompt_tokens = 9 }", "max_prompt_tokens=None -> max_prompt_tokens=9"),
        ("evaluation = { stop_token = 'x' }", "stop_token=None -> stop_token=x"),
        ("evaluation = { headline = 'acc,none' }", "headline=None -> headline=acc,none"),
        ("evaluation = { fewshot_as_multiturn = false }", "fewshot_as_multiturn=True -> "),
        ("evaluation = { num_fewshot = 1 }", "num_fewshot: 0 -> 1"),
        ("evaluation = { fewshot_seed = 1 }", "fewshot_seed: 1234 -> 1"),
        ("evaluation = { batch_size = 9, score_batch_size = 9, prefix_cache_gib = 0.0 }", ""),
    ],
)
def test_an_edited_preset_makes_its_records_stale(
    root: Path, tmp_path: Path, table: str, reason: str
) -> None:
    mine = own_preset(tmp_path, "")
    do_run(root, run_of(root, "tiny_arithmetic", mine))
    own_preset(tmp_path, f"[tasks.tiny_arithmetic]\n{table}\n")
    cell = planner(root).state(run_of(root, "tiny_arithmetic", mine))
    assert cell.state is (State.STALE if reason else State.DONE)
    assert reason in cell.reason


def test_a_record_of_a_preset_is_no_record_of_the_experiment(root: Path) -> None:
    do_run(root, run_of(root, "tiny_arithmetic", "ancestor"))
    states = {
        preset: planner(root).state(run_of(root, "tiny_arithmetic", preset)).state
        for preset in (None, *BUILT_IN)
    }
    assert states == {None: State.PENDING, "published": State.PENDING, "ancestor": State.DONE}


def test_a_record_names_where_its_protocol_is_another_all_the_same(root: Path) -> None:
    for preset in (None, "ancestor"):
        do_run(root, run_of(root, "tiny_arithmetic", preset))
        cell = planner(root).state(run_of(root, "tiny_arithmetic", preset))
        assert cell.summary is not None
        told = cell.summary.provenance["exceptions"]
        assert told == ([] if preset is None else list(load_preset(preset).exceptions))
    said = " ".join(load_preset("published").exceptions)
    for what in ("single braces", "padding", "nothing is decoded there", "look-ahead", "EvalPlus"):
        assert what in said


def test_a_flag_that_departs_from_the_preset_is_named(root: Path) -> None:
    plain = run_of(root, "mmlu", "published", flags={"scoring": "first-token", "batch_size": 4})
    assert (plain.departures, plain.preset_words) == ((), "published")
    other = run_of(root, "mmlu", "published", flags={"scoring": "chain", "allow_invalid": True})
    assert other.preset_words == "published, but allow_invalid=True, but scoring=chain"
    assert planner(root).fingerprint(other).fields["preset"] == other.preset_words
    assert run_of(root, "mmlu", None, flags={"scoring": "chain"}).preset_words == "none"


# --- where reuse cannot act ---------------------------------------------------------------------


def test_without_the_block_cache_every_step_is_a_refresh(root: Path) -> None:
    cells = [
        planner(root).state(run)
        for run in planner(root).runs(sweep(root, "tiny_arithmetic", "published"))
    ]
    assert [c.state for c in cells] == [State.PENDING] * 3 + [State.NOT_APPLICABLE] * 6
    ancestor = planner(root).runs(sweep(root, "tiny_arithmetic", "ancestor"))
    assert {planner(root).state(run).state for run in ancestor} == {State.PENDING}


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[decoding]\ntreshold = 1.0\n", "[decoding]: unknown key 'treshold' (did you mean 'thr"),
        ("[evaluation]\nshots = 1\n", "[evaluation]: unknown key 'shots'; valid keys are"),
        ("[evaluation]\nnum_fewshot = 'five'\n", "'num_fewshot': Input should be a valid integer"),
        ("[evaluation]\ninstruction = 'twice'\n", "'instruction': Input should be 'ending', 'eve"),
        ("[evaluation]\ntasks = ['mmlu']\n", "'tasks' belongs into experiment.toml"),
        ("[decoding]\nblock_size = 9\n", "small_block_size 8 must divide block_size 9"),
        ("[tasks.mmlu]\nshots = 5\n", "[tasks.mmlu]: unknown key 'shots'; valid keys are decoding"),
        ("[tasks.mmlu.evaluation]\nshots = 5\n", "[tasks.mmlu.evaluation]: unknown key 'shots'"),
        ("tasks = 1\n", "'tasks': Input should be a valid dictionary; got 1"),
        ("[tasks]\nmmlu = 1\n", "[tasks.mmlu] must be a table; got 1"),
        ("[figures]\ngsm8k = 1.0\n", "unknown key 'gsm8k'; valid keys are model, percent"),
        ("name = 'x'\n", "unknown key 'name'; a preset is named as its file is"),
        ("grid = 1\n", "unknown key 'grid'"),
        ("[decoding\n", "cannot be read: Expected ']'"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_preset(own_preset(tmp_path, text))
    assert says in str(raised.value)
    assert "mine.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("publishd", r"unknown preset 'publishd' \(did you mean 'published'\?\); presets are"),
        ("./nowhere.toml", "nowhere.toml is absent"),
        ("./published.toml", "none of published, ancestor"),
        ("./my+own.toml", "its name goes into folders of records"),
        ("./my@own.toml", "its name goes into folders of records"),
    ],
)
def test_a_preset_that_is_none(given: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_preset(given)


def test_presets_are_read_strictly_and_hold_no_setting_twice() -> None:
    """Each value of a task's table differs from the general one, or it would only look special."""
    for name in BUILT_IN:
        preset = load_preset(name)
        for own in preset.tasks.values():
            for key in own.decoding:
                assert own.decoding[key] != preset.decoding[key]
            for key in own.evaluation:
                assert own.evaluation[key] != preset.evaluation.get(key)


def test_a_cell_keeps_its_own_settings_where_no_preset_is_named(root: Path) -> None:
    experiment = planner(root).experiment("00_baseline")
    cell = Cell(name="own", k=1, subset="first", decoding={"threshold": 0.5})
    assert experiment.decoding(cell) == experiment.decoding(cell, None, None, "gsm8k")
