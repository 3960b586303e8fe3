"""Any task of the harness by its name, and a user's own: what is asked, graded and hashed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from cells import make_cell
from command import Command
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate import boxed
from fdllm.evaluate.documents import LoadedTask, load_task
from fdllm.evaluate.task_definition import define
from fdllm.evaluate.task_index import harness_index, harness_tasks
from fdllm.evaluate.tasks import TASKS, definition_hash, task_facts, task_info
from fdllm.plan import Planner
from fdllm.record.paths import Layout
from fdllm.report.build import not_applicable
from fdllm.report.compare import join
from fdllm.report.records import Record
from fdllm.runs import Cell, Evaluating
from hub.checkpoint import random_model
from hub.lm import Oracle, evaluated, run_of
from imports import modules
from own_tasks import make_tasks
from stubs import make_sweep

LETTERS = "ABCD"
CHOSEN = [f"the {word} one" for word in ("first", "second", "third", "last")]


def arc(number: int) -> dict[str, Any]:
    choices = {"text": CHOSEN, "label": [*LETTERS]}
    return {"question": f"Which is {number}?", "choices": choices, "answerKey": LETTERS[number % 4]}


def hellaswag(number: int) -> dict[str, Any]:
    context = {
        "ctx_a": f"A dog [title] sees {number} cats.",
        "ctx_b": "it",
        "activity_label": "Run",
    }
    return {**context, "endings": [f"{end} [step] now" for end in CHOSEN], "label": str(number % 4)}


def mmlu(number: int) -> dict[str, Any]:
    return {"question": f" What is {number}? ", "choices": CHOSEN, "answer": number % 4}


def winogrande(number: int) -> dict[str, Any]:
    sentence = f"The cup did not fit the box as _ was {number} too large."
    return {
        "sentence": sentence,
        "option1": "the cup",
        "option2": "the box",
        "answer": "12"[number % 2],
    }


ROWS = {
    "allenai/ai2_arc": arc,
    "Rowan/hellaswag": hellaswag,
    "cais/mmlu": mmlu,
    "allenai/winogrande": winogrande,
}
CASES = {
    "arc_challenge": "arc",
    "hellaswag": "hellaswag",
    "mmlu_generative": "mmlu/generative",
    "winogrande": "winogrande",
}


@pytest.fixture
def _rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up rows of each schema, in the place of the Hub's."""

    def load_dataset(path: str, name: str | None = None, **_: Any) -> DatasetDict:
        rows = [{**ROWS[path](number), "subject": name} for number in range(6)]
        return DatasetDict(
            dict.fromkeys(("train", "dev", "validation", "test"), Dataset.from_list(rows))
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def requests_of(leaves: Mapping[str, ConfigurableTask], shots: int) -> list[tuple[Any, ...]]:
    found = []
    for name, task in leaves.items():
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(Evaluating().fewshot_seed)
        task.build_all_requests(limit=3, rank=0, world_size=1)
        found += [(name, one.doc_id, one.idx, *one.args) for one in task.instances]
        docs = [task.eval_docs[number] for number in range(3)]
        found += [(name, task.doc_to_target(doc)) for doc in docs]
    return found


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("name", CASES)
def test_every_request_is_the_harness_s(name: str, shots: int) -> None:
    ours = load_task(name, Evaluating(num_fewshot=shots)).leaves
    folder = harness_tasks() / CASES[name]
    theirs = TaskManager(include_path=str(folder), include_defaults=False).load(name)["tasks"]
    assert [*ours] == [*theirs]
    asked = requests_of(ours, shots)
    assert asked == requests_of(theirs, shots)
    assert len(asked) >= 3 * len(ours)


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize(
    ("name", "headline"),
    [
        ("arc_challenge", "acc_norm,none"),
        ("hellaswag", "acc_norm,none"),
        ("winogrande", "acc,none"),
        ("mmlu_generative", "exact_match,get_response"),
    ],
)
def test_right_answers_score_one(name: str, headline: str) -> None:
    """Prompt, document, choices, filter and headline belong together."""
    oracle = Oracle(name)
    found = evaluated(run_of(name, limit=2), oracle, random_model(), oracle=oracle)
    assert (found.headline, found.value) == (headline, 1.0)
    assert ("subject" in found.samples[0]) == (name == "mmlu_generative")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("wikitext", "likelihood of whole texts .loglikelihood_rolling."),
        ("ai2_arc", "is a tag.* name them: arc_challenge, arc_easy"),
        ("leaderboard", "tasks that write and tasks that rank"),
        ("squadv2", "is a Python class"),
        ("humaneval_64", "runs programs that the model writes"),
        ("chartqa", "shows images"),
        ("afridiacritics_bbj_prompt_1", "no figure that is a mean over documents .bleu"),
        ("code2text_go", "arguments num_beams, which would be ignored"),
        ("darijammlu_arabic_language_(general)", "a name that no folder"),
    ],
)
def test_what_cannot_be_answered_or_compared_is_refused_in_a_sentence(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as raised:
        task_info(name)
    assert "\n" not in str(raised.value)


# --- what a report makes of a task that is not known by name --------------------------------------


def record(config: str, tokens: int, **given: Any) -> Record:
    cell = make_cell(config, [1.0, 0.0, 1.0, 1.0], task="mmlu", estimator="chain", **given)
    rows = [{**row, "tokens": tokens, "requests": 4} for row in cell.samples]
    return Record(cell.folder, cell.summary.model_copy(update={"task": "others"}), rows)


def test_chain_s_cells_of_one_token_repeat_one_another_there_too() -> None:
    grid = [Cell.of(k, "first") for k in (1, 2)]
    assert [*not_applicable(grid, [record("k1_first", 4)], None)] == ["k2_first"]
    assert not not_applicable(grid, [record("k1_first", 7)], None)


def test_documents_of_a_group_go_together_there_too() -> None:
    subjects = ["a", "a", "b", "b"]
    pair = join(record("k1_first", 4, subjects=subjects), record("k2_first", 4, subjects=subjects))
    assert pair.groups is not None
    assert pair.groups.tolist() == [0, 0, 1, 1]
    alone = join(record("k1_first", 4), record("k2_first", 4))
    assert alone.groups is None


# --- a user's own ---------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return make_tasks(tmp_path / "own")


def loaded(name: str, own: Path) -> LoadedTask:
    return load_task(name, include=own)


def test_a_task_of_one_s_own_is_asked_and_graded(own: Path) -> None:
    leaf = loaded("doubles", own).leaves["doubles"]
    assert [leaf.doc_to_text(doc) for doc in leaf.eval_docs][:2] == ["11+11", "12+12"]
    run = run_of("doubles").model_copy(update={"include": own})
    oracle = Oracle("tiny_choice")  # whose answers are targets
    found = evaluated(run, oracle, random_model(), oracle=oracle)
    assert found.headline == "exact_match,last-line"
    assert found.value == 0.0  # the filter wants "#### 22"
    assert found.num_documents == 12


def test_groups_weigh_their_tasks_as_they_say(own: Path) -> None:
    group = loaded("all_doubles", own)
    assert [*group.leaves] == ["doubles", "more_doubles"]
    assert isinstance(group.groups["all_doubles"], Group)
    info = task_info("all_doubles", own)
    assert (info.headline, info.cluster_by) == ("exact_match,last-line", "subject")


def test_the_headline_is_the_only_one_or_named_by_the_user(own: Path) -> None:
    assert task_info("doubles", own).headline == "exact_match,last-line"
    facts = task_facts("which_double", own)
    assert facts.metrics == ("acc,none", "acc_norm,none")
    with pytest.raises(UsageError, match="--headline acc,none"):
        facts.check_headline("which_double", None)
    with pytest.raises(UsageError, match="no figure 'f1,none'; name one of acc,none"):
        facts.check_headline("which_double", "f1,none")
    facts.check_headline("which_double", "acc_norm,none")


def test_another_headline_of_a_known_task_is_one_that_it_has() -> None:
    facts = task_facts("gsm8k")
    facts.check_headline("gsm8k", "exact_match,strict-match")
    with pytest.raises(UsageError, match="has no figure 'acc,none'; name one of exact_match,flex"):
        facts.check_headline("gsm8k", "acc,none")
    for name, info in TASKS.items():
        assert info.headline in (info.metrics or (info.headline,))
        of_harness = {*info.metrics} - {f"{boxed.METRIC},none"}
        assert not of_harness or of_harness <= {*define(name, harness_index()).metrics}


def test_nobody_who_asks_for_a_task_forgets_the_user_s_folder() -> None:
    asked = ("load_task", "task_info", "task_facts", "definition_of", "definition_hash")
    calls = [
        (name, call)
        for name, tree in modules().items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) in asked
    ]
    assert len(calls) > 15
    for name, call in calls:
        assert "include" in ast.unparse(call), f"{name}:{call.lineno} {ast.unparse(call)}"


@pytest.mark.parametrize(
    "changed", ["which_double.yaml", "doubles.yaml", "shown.py", "more.py", "rows/doubles.jsonl"]
)
def test_all_that_defines_a_task_identifies_it(own: Path, changed: str) -> None:
    (own / "more.py").write_text("x = 1\n")
    shown = own / "shown.py"
    shown.write_text(f"import more\n{shown.read_text()}")
    before = definition_hash("which_double", own)
    path = own / changed
    path.write_text(path.read_text() + ("\n" if path.suffix != ".jsonl" else '{"a": 99}\n'))
    assert definition_hash("which_double", own) != before


def test_what_another_task_needs_does_not(own: Path, tmp_path: Path) -> None:
    before = {name: definition_hash(name, own) for name in ("doubles", "which_double")}
    (own / "third.yaml").write_text("task: third\ninclude: doubles.yaml\n")
    (own / "third.py").write_text("x = 1\n")
    moved = own.rename(tmp_path / "moved")
    assert {name: definition_hash(name, moved) for name in before} == before


@pytest.mark.parametrize("task", ["tiny_arithmetic", "gsm8k", "arc_challenge"])
def test_a_folder_of_tasks_changes_no_other_run(own: Path, root: Path, task: str) -> None:
    sweep = make_sweep(root, tasks=(task,), configs=("k2_middle",))
    with_own = sweep.model_copy(update={"include": own})
    planners = (
        Planner(root, Layout.of(root), partial(task_facts, include=include))
        for include in (None, own)
    )
    found = [
        (planner.fingerprint(run), planner.layout.run(run))
        for planner, one in zip(planners, (sweep, with_own), strict=True)
        for run in planner.runs(one)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("mine", "task: gsm8k\noutput_type: generate_until\n", "the name of a task that is there"),
        ("mine", "task: doubles\n", "both define 'doubles'"),
        ("mine", "task: [\n", "cannot be read as a task's YAML"),
        ("mine", "task: mine\ninclude: mine.yaml\n", "includes itself"),
        ("mine", "task: mine\ninclude: nowhere.yaml\n", "nowhere.yaml"),
        ("mine", "task: mine\ndoc_to_text: !function os.getcwd\n", "there is no .*os.py"),
        ("mine", "task: mine\ndataset_path: ./rows\n", "has a folder as dataset_path"),
        ("mine", "task: a_limit_3\n", "unknown task 'mine'"),
    ],
)
def test_a_definition_that_will_not_do_is_named(own: Path, name: str, text: str, why: str) -> None:
    (own / f"{name}.yaml").write_text(text)
    asked = "gsm8k" if "gsm8k" in text else name
    with pytest.raises(UsageError, match=why):
        task_facts(asked, own)


def test_rows_are_beside_the_definition_or_the_task_is_refused(own: Path) -> None:
    (own / "rows/doubles.jsonl").unlink()
    with pytest.raises(UsageError, match="data_files names rows/doubles.jsonl, and there is no"):
        definition_hash("doubles", own)
    with pytest.raises(FdllmError, match="data_files names rows/doubles.jsonl"):
        loaded("doubles", own)


def test_code_that_fails_is_the_user_s_to_look_at(own: Path) -> None:
    (own / "shown.py").write_text("import nothing_of_the_kind\n")
    with pytest.raises(FdllmError, match=r"ModuleNotFoundError.*look at .*which_double.yaml"):
        loaded("which_double", own)


@pytest.mark.parametrize(("folder", "why"), [("nowhere", "no folder"), ("model", "no task")])
def test_a_folder_without_tasks_is_said(fdllm: Command, folder: str, why: str) -> None:
    own = str(fdllm.root / folder)
    assert fdllm("prompts", "--task", "doubles", "--include-path", own) == 2
    assert why in fdllm.err


def test_a_folder_none_of_whose_tasks_is_asked_is_said(fdllm: Command, own: Path) -> None:
    assert fdllm("sweep", "--include-path", str(own), "--dry-run") == 2
    assert "none of its tasks is asked: --task all_doubles, say" in fdllm.err


@pytest.mark.slow
def test_from_yaml_to_report(own: Path, fdllm: Command) -> None:
    """On the embedded model, in a checkout of its own."""
    code = fdllm.root.with_name("code.py")
    code.write_text("import sys; from fdllm.cli import main; sys.exit(main(sys.argv[1:]))")

    def do(*arguments: str) -> subprocess.CompletedProcess[str]:
        flags = ("--include-path", str(own), "--model", "tiny")
        started = [sys.executable, str(code), *arguments, *flags]
        return subprocess.run(started, capture_output=True, text=True, check=False)

    refused = do("sweep", "--task", "doubles", "which_double", "--headline", "acc,none")
    assert refused.returncode == 2
    assert "task 'doubles' has no figure 'acc,none'" in refused.stderr
    named = ("--task", "which_double", "--headline", "acc,none")
    swept = do("sweep", *named, "--config", "k1_first", "k2_first", "--timing", "0")
    assert swept.returncode == 0, swept.stderr
    [summary, _] = sorted(fdllm.root.glob("results/00_baseline/which_double@tiny/*/summary.json"))
    assert json.loads(summary.read_text())["headline"]["metric"] == "acc,none"
    assert do("report", *named).returncode == 0
    assert "which_double" in (fdllm.root / "experiments/00_baseline/results.md").read_text()
    assert do("report", "--check", *named).returncode == 0
    (own / "shown.py").write_text((own / "shown.py").read_text().replace("10", "20"))
    states = json.loads(do("status", *named, "--config", "k1_first", "--json").stdout)["cells"]
    assert [(one["state"], one["reason"][:4]) for one in states] == [("stale", "task")]
