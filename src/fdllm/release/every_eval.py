"""A record as the schema "Every Eval Ever" 0.3.0 has it: one JSON a task, one line a sample.

https://github.com/evaleval/every_eval_ever: ``data/<collection>/<developer>/<model>/<UUID>.json``
and ``<UUID>_samples.jsonl`` beside it. Unlike in what its converter makes of lm-eval's files, cell,
layers and what was saved stand in fields of their own, and so do tokens and time.
"""

from __future__ import annotations

import hashlib
import random
import re
import uuid
from pathlib import Path
from typing import Any

from fdllm import strictjson
from fdllm.record.atomic import write_text
from fdllm.release.harness_log import HarnessLog, answer_of, figures_of, sample_id
from fdllm.release.hub_eval_results import HUB_ID

SCHEMA = "0.3.0"
_IDS = {
    "acc": "accuracy",
    "exact_match": "exact-match",
}  # of its registry; the rest is the harness's
_SHARE = re.compile(r"(.*_)?(acc|acc_norm|match|math_verify|f1)|pass(@|_at_)\d+")  # in [0, 1]
_UNKNOWN = {"additional_details": {"bounds_status": "unknown"}}  # as the schema's converters say


def _result_id(log: HarnessLog, task: str, metric: str, name: str) -> str:
    """Of a figure in its file; those of a group's subtasks begin with their name."""
    own = metric if name == "none" else f"{metric}:{name}"
    return own if task == log.record.task else f"{task}:{own}"


def _name(task: str, name: str) -> str:
    return task if name == "none" else f"{task}/{name}"


def every_eval(log: HarnessLog, identity: str) -> dict[str, Any]:
    """The aggregate file, all but what it says of the samples.

    Args:
        log: the record.
        identity: of this evaluation.
    """
    summary, results = log.record.summary, log.results
    started, finished = (str(int(t.timestamp())) for t in (log.started, log.finished))
    calls = summary.layer_calls
    settings = results["config"]["model_args"] | {
        "num_fewshot": summary.fingerprint.fields.get("num_fewshot"),
        "limit": summary.limit,
        "layer_calls_made": calls.made,
        "layer_calls_saved_share": calls.saved_share,
        "tokens_per_forward": summary.throughput.tokens_per_forward,
    }
    tasks = dict.fromkeys((summary.task, *results["results"]))
    found = [
        {
            "evaluation_result_id": _result_id(log, task, metric, name),
            "evaluation_name": _name(task, name),
            "source_data": _source(log, task),
            "evaluation_timestamp": started,
            "metric_config": _metric(log, task, metric),
            "score_details": {
                "score": value,
                "uncertainty": {
                    **({} if spread is None else {"standard_error": {"value": spread}}),
                    "num_samples": results["results"][task]["sample_len"],
                },
            },
            "generation_config": {
                "generation_args": _generation(log, task),
                "additional_details": _words(settings),
            },
        }
        for task in tasks
        for metric, name, value, spread in figures_of(log, task)
    ]
    return {
        "schema_version": SCHEMA,
        "evaluation_id": identity,
        "evaluation_timestamp": started,
        "retrieved_timestamp": finished,
        "source_metadata": {
            "source_name": f"fdllm {summary.experiment}",
            "source_type": "evaluation_run",
            "source_organization_name": "fdllm",
            "evaluator_relationship": "third_party",
        },
        "eval_library": {"name": "lm_eval", "version": str(results["lm_eval_version"])},
        "model_info": {
            "name": log.model,
            "id": log.model,
            "developer": log.model.partition("/")[0],
            "inference_engine": {
                "name": "fdllm",
                "version": str(log.session.get("packages", {}).get("fdllm", "unknown")),
            },
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "open_weights",
                **_words({"dtype": log.session.get("dtype"), "device": log.session.get("device")}),
            },
        },
        "evaluation_results": found,
    }


def _source(log: HarnessLog, task: str) -> dict[str, Any]:
    """Where a task's documents lie; a group's, where those of all subtasks lie together."""
    configs = log.results["configs"]
    own = [configs[task]] if task in configs else configs.values()
    paths = {str(one.get("dataset_path")) for one in own}
    if len(paths) != 1 or not HUB_ID.fullmatch(min(paths)):
        return {"dataset_name": task, "source_type": "other"}
    return {"dataset_name": task, "source_type": "hf_dataset", "hf_repo": min(paths)}


def _metric(log: HarnessLog, task: str, metric: str) -> dict[str, Any]:
    """What a metric is; the schema has no type of score without its bounds."""
    share = {"score_type": "continuous", "min_score": 0.0, "max_score": 1.0}
    return {
        "metric_id": _IDS.get(metric, f"lm-evaluation-harness.{metric}"),
        "metric_name": metric,
        "lower_is_better": log.results["higher_is_better"].get(task, {}).get(metric) is False,
        **(share if _SHARE.fullmatch(metric) else _UNKNOWN),
    }


def _generation(log: HarnessLog, task: str) -> dict[str, Any]:
    own = log.results["configs"].get(task, {}).get("generation_kwargs") or {}
    return {"max_tokens": own["max_gen_toks"]} if "max_gen_toks" in own else {}


def _words(values: dict[str, Any]) -> dict[str, str]:
    """Details as the schema wants them: texts; what is not known is absent."""
    return {name: str(value) for name, value in values.items() if value is not None}


def every_eval_samples(log: HarnessLog, identity: str) -> list[dict[str, Any]]:
    """One line a document, filter and metric."""
    lines = []
    for task, samples in log.samples.items():
        for sample in samples:
            own = log.record.by_key[task, int(sample["doc_id"])]
            lines += [
                _instance(log, sample, metric, own, identity)
                for metric in sample["metrics"]
                if isinstance(sample[metric], (int, float))
            ]
    return lines


def _instance(
    log: HarnessLog, sample: dict[str, Any], metric: str, own: dict[str, Any], identity: str
) -> dict[str, Any]:
    task, name, answer = str(own["task"]), sample["filter"], answer_of(sample)
    target = sample["target"]
    raw = strictjson.dumps({"raw": answer.prompt, "reference": target})
    return {
        "schema_version": SCHEMA,
        "evaluation_id": identity,
        "model_id": log.model,
        "evaluation_name": _name(task, name),
        "evaluation_result_id": _result_id(log, task, metric, name),
        "sample_id": str(sample_id(log.record.task, task, sample["doc_id"])),
        "sample_hash": hashlib.sha256(raw.encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": answer.prompt, "reference": [target], "choices": answer.choices},
        "output": {"raw": [answer.text]},
        "messages": None,
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": answer.extracted,
                "extraction_method": name,
                "is_terminal": True,
            }
        ],
        "evaluation": {"score": float(sample[metric]), "is_correct": sample[metric] == 1},
        "performance": {"generation_time_ms": 1000 * own["seconds"]},
        "metadata": {"doc_hash": sample["doc_hash"], "tokens": str(own["tokens"])},
    }


def write_every_eval(log: HarnessLog, folder: Path) -> None:
    """Write ``data/TASK/DEVELOPER/MODEL/UUID.json`` and the samples beside it.

    The UUID follows from the record: the same record, the same files.
    """
    summary = log.record.summary
    seed = f"{summary.fingerprint.digest} {log.finished.isoformat()}"
    name = uuid.UUID(int=random.Random(seed).getrandbits(128), version=4)
    identity = f"{summary.task}/{log.model}/{summary.experiment}/{summary.config}/{name}"
    place = Path("data", summary.task, *log.model.split("/", 1))
    lines = every_eval_samples(log, identity)
    text = "".join(strictjson.dumps(line) + "\n" for line in lines)
    samples = place / f"{name}_samples.jsonl"
    whole = every_eval(log, identity) | {
        "detailed_evaluation_results": {
            "format": "jsonl",
            "file_path": samples.as_posix(),
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(text.encode()).hexdigest(),
            "total_rows": len(lines),
        }
    }
    write_text(folder / samples, text)
    write_text(folder / place / f"{name}.json", strictjson.dumps(whole, indent=2))
