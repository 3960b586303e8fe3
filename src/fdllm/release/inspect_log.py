"""A record as Inspect's log (JSON, version 2), for its viewer and data frames.

Fields are those of ``inspect_ai.log.EvalLog`` that a finished evaluation has; there was no solver
of Inspect's, so the plan has no steps, and a sample is a question, an answer and its scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fdllm import strictjson
from fdllm.record.atomic import write_text
from fdllm.release.harness_log import HarnessLog, answer_of, figures_of, sample_id


def inspect_log(log: HarnessLog) -> dict[str, Any]:
    """The log; samples of a group are numbered ``<leaf> <document>``."""
    summary, results = log.record.summary, log.results
    started, finished = log.started.isoformat(), log.finished.isoformat()
    samples = [
        _sample(log, task, int(number), [s for s in found if s["doc_id"] == number])
        for task, found in log.samples.items()
        for number in dict.fromkeys(s["doc_id"] for s in found)
    ]
    packages = log.session.get("packages", {})
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": summary.fingerprint.digest,
            "run_id": f"{summary.experiment}-{summary.config}",
            "created": started,
            "task": summary.task,
            "task_id": summary.task,
            "task_version": str(summary.task_versions.get(summary.task, 0)),
            "dataset": {
                "name": summary.task,
                "samples": len(samples),
                "sample_ids": [one["id"] for one in samples],
                "shuffled": False,
            },
            "model": log.model,
            "model_args": results["config"]["model_args"],
            "config": {"limit": summary.limit, "epochs": 1},
            "packages": {name: str(version) for name, version in packages.items()},
            "metadata": {
                "layer_calls_saved_share": summary.layer_calls.saved_share,
                "fingerprint": summary.fingerprint.digest,
            },
        },
        "plan": {"name": "fdllm", "steps": [], "config": {}},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": _scores(log),
        },
        "stats": {"started_at": started, "completed_at": finished, "model_usage": {}},
        "samples": samples,
    }


def _scores(log: HarnessLog) -> list[dict[str, Any]]:
    """One score a metric and filter, each with its mean and spread; the first is the headline."""
    found = []
    for metric, name, value, spread in figures_of(log, log.record.task):
        means = {"mean": value} | ({} if spread is None else {"stderr": spread})
        found.append(
            {
                "name": f"{metric},{name}",
                "scorer": metric,
                "params": {"filter": name},
                "metrics": {one: {"name": one, "value": number} for one, number in means.items()},
            }
        )
    return found


def _sample(
    log: HarnessLog, task: str, number: int, filtered: list[dict[str, Any]]
) -> dict[str, Any]:
    first, own = filtered[0], log.record.by_key[task, number]
    answer = answer_of(first)
    said = {"role": "assistant", "content": answer.text, "source": "generate"}
    reason = {"stop": "stop", "length": "max_tokens"}.get(str(own.get("finish")), "stop")
    return {
        "id": sample_id(log.record.task, task, number),
        "epoch": 1,
        "input": answer.prompt,
        "choices": answer.choices,
        "target": first["target"],
        "messages": [{"role": "user", "content": answer.prompt, "source": "input"}, said],
        "output": {
            "model": log.model,
            "choices": [{"message": said, "stop_reason": reason}],
            "completion": answer.text,
            "time": own["seconds"],
        },
        "scores": {
            f"{metric},{one['filter']}": {
                "value": one[metric],
                "answer": answer_of(one).extracted,
            }
            for one in filtered
            for metric in one["metrics"]
            if isinstance(one[metric], (int, float))
        },
        "metadata": {"doc_hash": first["doc_hash"], "tokens": own["tokens"]},
        "total_time": own["seconds"],
    }


def write_inspect(log: HarnessLog, folder: Path) -> None:
    """Write ``TIME_TASK_ID.json``, as Inspect names its logs."""
    summary = log.record.summary
    time = log.started.isoformat().replace(":", "-")
    task = summary.task.replace("_", "-")
    name = f"{time}_{task}_{summary.fingerprint.digest}.json"
    write_text(folder / name, strictjson.dumps(inspect_log(log), indent=2))
