"""Records as the Hub keeps evaluation results: ``.eval_results/*.yaml`` of a model's repository.

The form is that of https://huggingface.co/docs/hub/eval-results: a list of results, each with the
benchmark's dataset, its task there and a value; date and notes are optional. A pull request to the
model's repository adds the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fdllm.errors import FdllmError
from fdllm.outside import read_json
from fdllm.record.atomic import write_text
from fdllm.record.per_document import MOST
from fdllm.release.harness_log import model_of, time_of
from fdllm.report.records import Record

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def hub_entry(record: Record) -> dict[str, Any]:
    """A record's headline as an entry of that list.

    A value is in percent where the metric is a share, as the form's own examples are.

    Raises:
        FdllmError: the model or the task's data is not on the Hub, documents were left out, or it
            is not known when it was computed.
    """
    summary = record.summary
    where, model = f"{record.folder.parent.name}/{record.name}", model_of(record)
    if model.startswith(("local/", "fdllm/")):
        raise FdllmError(
            f"not exported: {where} is of a model that has no repository on the Hub "
            f"({summary.model}), where hub-eval-results lie; name a Hub id with --model"
        )
    if summary.limit is not None or summary.decided is not None:
        raise FdllmError(
            f"not exported: {where} has a part of the task's documents, and a leaderboard's figure "
            "is of all; sweep without --limit and --until-decided"
        )
    configs = read_json(record.folder / "results.json", most=MOST).get("configs", {})
    found = {str(one.get("dataset_path")) for one in configs.values()}
    if len(found) != 1 or not HUB_ID.fullmatch(min(found)):
        raise FdllmError(
            f"not exported: the data of {where} is no data set of the Hub, or is several "
            f"({', '.join(sorted(found)) or 'unknown'}), and hub-eval-results stand under one"
        )
    finished = time_of(record, "finished", summary.provenance.get("finished"))
    shots = summary.fingerprint.fields.get("num_fewshot")
    notes = (
        f"{summary.headline.metric}, {summary.headline.num_samples} documents, {shots}-shot, "
        f"lm-eval {next(iter(summary.provenance['sessions']))['packages']['lm-eval']}; fdllm "
        f"{summary.experiment} {summary.config}: {summary.strategy.text}"
    )
    return {
        "dataset": {"id": min(found), "task_id": summary.task},
        "value": round(100 * summary.headline.value, 4),
        "date": finished.date().isoformat(),
        "notes": notes,
    }


def write_hub_eval_results(record: Record, folder: Path) -> None:
    """Write ``MODEL/.eval_results/TASK.yaml``, ready for that model's repository."""
    entry = hub_entry(record)
    place = folder / model_of(record) / ".eval_results" / f"{record.task}.yaml"
    write_text(place, yaml.safe_dump([entry], sort_keys=False, allow_unicode=True))
