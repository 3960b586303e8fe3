"""A record as lm-eval itself logs a run: documents, arguments, answers, metrics, spreads.

A record keeps of a document what its figures need. The rest follows from task and answers, so the
harness is asked once more with the journal's answers. No model is loaded; where that does not give
the record again, nothing is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdllm import strictjson
from fdllm.errors import FdllmError
from fdllm.record.atomic import write_text
from fdllm.record.journal import read_journal
from fdllm.record.paths import SAMPLES
from fdllm.release.scrub import scrub_summary
from fdllm.report.records import Record, sample_key
from fdllm.runs import TINY_MODEL, Run

if TYPE_CHECKING:
    from fdllm.evaluate.again import KeptLM

BOOTSTRAP = 100_000  # resamples; lm_eval's default, for metrics whose spread has no formula


@dataclass(frozen=True)
class HarnessLog:
    """What lm-eval knows of a run at its end."""

    record: Record  # the record
    model: str  # its name, see :func:`model_of`
    results: dict[str, Any]  # as ``lm_eval.simple_evaluate`` returns them, without samples
    # by leaf task, one a document and filter, as the harness logs them: JSON values
    samples: dict[str, list[dict[str, Any]]]

    @property
    def session(self) -> Mapping[str, Any]:
        """Who computed first; empty where nobody kept that."""
        sessions = self.record.summary.provenance.get("sessions", [])
        return sessions[0] if sessions else {}

    @property
    def finished(self) -> datetime:
        """When the record was written.

        Raises:
            FdllmError: it does not say.
        """
        return time_of(self.record, "finished", self.record.summary.provenance.get("finished"))

    @property
    def started(self) -> datetime:
        """When its first session began.

        Raises:
            FdllmError: it does not say.
        """
        return time_of(self.record, "sessions.started", self.session.get("started"))


@dataclass(frozen=True)
class Answer:
    """What was asked in a logged sample, and what came of it."""

    prompt: str
    choices: list[str] | None  # of a question with choices
    text: str  # what was written, or the likeliest choice
    extracted: str  # what the sample's filter made of it


def answer_of(sample: Mapping[str, Any]) -> Answer:
    """The answer of one of :attr:`HarnessLog.samples`.

    Args:
        sample: one line of it; a filter's output is a text, or several (programs to run).
    """
    asked, filtered = list(sample["arguments"].values()), sample["filtered_resps"]
    prompt = str(asked[0]["arg_0"])
    if len(asked) > 1:
        choices, scores = [str(one["arg_1"]) for one in asked], [float(one[0]) for one in filtered]
        likeliest = choices[scores.index(max(scores))]
        return Answer(prompt, choices, likeliest, likeliest)
    first = filtered[0]
    extracted = str(first[0] if isinstance(first, list) and first else first)
    return Answer(prompt, None, str(sample["resps"][0][0]), extracted)


def sample_id(task: str, leaf: str, number: int) -> int | str:
    """A document's number; in a group, where several have it, behind its subtask's name."""
    return number if leaf == task else f"{leaf} {number}"


def figures_of(log: HarnessLog, task: str) -> Iterator[tuple[str, str, float, float | None]]:
    """A task's metrics, filters, values and standard errors, its headline first.

    Args:
        log: the record.
        task: its task, or of a group a subtask.
    """
    figures, headline = log.results["results"][task], log.record.summary.headline.metric
    for key in sorted(figures, key=lambda one: one != headline):
        metric, comma, name = key.partition(",")
        value, spread = figures[key], figures.get(f"{metric}_stderr,{name}")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            yield metric, name, value, spread if isinstance(spread, float) else None


def model_of(record: Record) -> str:
    """The model as ``organisation/name``, which readers take apart: its Hub id.

    The embedded one is this project's; of a folder, only its last name leaves this machine.
    """
    name = str(scrub_summary(record.summary.model_dump(mode="json"))["model"])
    if name == TINY_MODEL:
        return f"fdllm/{name}"
    return name if "/" in name else f"local/{name}"


def time_of(record: Record, name: str, value: str | None) -> datetime:
    """A time of a record's provenance, in UTC.

    Raises:
        FdllmError: it is not there.
    """
    if not value:
        raise FdllmError(
            f"not exported: {record.folder}: summary.json does not say when (provenance.{name}), "
            "which the format asks for; sweep --force computes it anew"
        )
    return datetime.fromisoformat(value).astimezone(UTC)


def harness_log(record: Record, run: Run) -> HarnessLog:
    """Ask the harness once more with a record's answers.

    Args:
        record: where its run left it.
        run: what it is a record of.

    Raises:
        FdllmError: answers, documents or the tokenizer are not here, programs may not be run, or
            what comes out is not the record.
    """
    from lm_eval import evaluator  # noqa: PLC0415 - seconds
    from lm_eval.loggers.utils import add_tokenizer_info  # noqa: PLC0415

    from fdllm.evaluate.again import prepare  # noqa: PLC0415
    from fdllm.evaluate.attempt import Known  # noqa: PLC0415
    from fdllm.evaluate.documents import quiet  # noqa: PLC0415
    from fdllm.evaluate.samples import evaluation_of, plain  # noqa: PLC0415

    journal = record.folder / "journal.jsonl"
    if not journal.is_file():
        raise FdllmError(
            f"not exported: {record.folder} holds no journal.jsonl, and the format wants every "
            "answer; export where the run was made, or from a release (FDLLM_ROOT=FOLDER)"
        )
    documents: defaultdict[str, set[int]] = defaultdict(set)
    for task, number in record.by_key:
        documents[task].add(number)
    lm, loaded = prepare(run)
    lm.store = Known(read_journal(journal).entries)
    loaded = loaded.choose(documents if record.summary.decided else None)
    with quiet():
        found = evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": loaded.leaves, "groups": loaded.groups},
            limit=run.limit,
            bootstrap_iters=BOOTSTRAP,
            apply_chat_template=run.evaluating.chat_template,
            fewshot_as_multiturn=run.evaluating.turns,
            confirm_run_unsafe_code=True,
        )
        logged = found["samples"]
        again = evaluation_of(dict(found), loaded, lm.entries, run)
    fresh = {sample_key(one): one for one in strictjson.loads(strictjson.dumps(again.samples))}
    if fresh != record.texts or again.value != record.summary.headline.value:
        raise FdllmError(
            f"not exported: {record.folder}: asked again, its answers do not give its {SAMPLES}: "
            "task, data or prompts are others by now; sweep again"
        )
    del found["samples"]
    results = plain(found)
    samples = {task: [_logged(plain(one)) for one in some] for task, some in logged.items()}
    log = HarnessLog(record, model_of(record), results, samples)
    results["config"] = _config(log, run)
    add_tokenizer_info(results, lm)
    results |= _environment(log) | _asked(log, run, lm)
    return log


def _config(log: HarnessLog, run: Run) -> dict[str, Any]:
    """lm-eval's ``config``; what makes the cell stands among the model's arguments."""
    summary, session = log.record.summary, log.session
    fields = summary.fingerprint.fields
    arguments = {
        "pretrained": log.model,
        "experiment": summary.experiment,
        "config": summary.config,
        "strategy": summary.strategy.text,
        "layers": " ".join(map(str, summary.strategy.layers)),
        "decoding": fields.get("decoding"),
        "scoring": summary.estimator_words,
        "preset": summary.preset_words,
        "weights": fields.get("model"),
        "fingerprint": summary.fingerprint.digest,
    }
    known = {
        "model_dtype": session.get("dtype"),
        "model_revision": fields.get("revision"),
        "model_sha": fields.get("revision"),
    }
    return {
        "model": "fdllm",
        "model_args": {name: value for name, value in arguments.items() if value is not None},
        **{name: value for name, value in known.items() if value},
        "batch_size": str(session.get("batch_size", 1)),
        "batch_sizes": [],
        "device": session.get("device"),
        "use_cache": None,
        "limit": run.limit,
        "bootstrap_iters": BOOTSTRAP,
        "gen_kwargs": None,
        "torch_seed": run.decoding.seed,
        "fewshot_seed": run.evaluating.fewshot_seed,
    }


def _environment(log: HarnessLog) -> dict[str, Any]:
    """What lm-eval adds of the machine, as far as the record names its kind."""
    packages = log.session.get("packages", {})
    about = {name: log.session.get(name) for name in ("platform", "python", "machine", "cuda")}
    about |= {f"{name} version": version for name, version in packages.items()}
    return {
        "git_hash": (log.session.get("git") or {}).get("commit"),
        "date": log.started.timestamp(),
        "pretty_env_info": "\n".join(f"{n}: {v}" for n, v in about.items() if v is not None),
        "transformers_version": packages.get("transformers"),
        "lm_eval_version": packages.get("lm-eval"),
        "upper_git_hash": None,
    }


def _asked(log: HarnessLog, run: Run, lm: KeptLM) -> dict[str, Any]:
    """What lm-eval's tracker adds: whether the documents were the same, and how they were put."""
    from lm_eval.utils import hash_string, sanitize_model_name  # noqa: PLC0415 - as above

    template = lm.tokenizer.chat_template if run.evaluating.chat_template else None
    hashed = ("doc_hash", "prompt_hash", "target_hash")
    return {
        "task_hashes": {
            task: hash_string("".join(one[name] for one in samples for name in hashed))
            for task, samples in log.samples.items()
        },
        "model_source": "fdllm",
        "model_name": log.model,
        "model_name_sanitized": sanitize_model_name(log.model),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": run.evaluating.turns,
        "chat_template": template,
        "chat_template_sha": hash_string(template) if template else None,
        "total_evaluation_time_seconds": str(log.record.summary.throughput.seconds),
    }


def _logged(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample as lm-eval's tracker writes it, so that every line has the same types."""
    from lm_eval.utils import sanitize_list  # noqa: PLC0415 - as above

    return sample | {
        "resps": sanitize_list(sample["resps"]),
        "filtered_resps": sanitize_list(sample["filtered_resps"]),
        "arguments": {
            f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(one)}
            for i, one in enumerate(sample["arguments"])
        },
        "target": str(sample["target"]),
    }


def write_lm_eval(log: HarnessLog, folder: Path) -> None:
    """Write ``MODEL/results_TIME.json`` and ``MODEL/samples_TASK_TIME.jsonl``, as lm-eval does."""
    place = folder / str(log.results["model_name_sanitized"])
    time = log.finished.replace(tzinfo=None).isoformat().replace(":", "-")
    write_text(place / f"results_{time}.json", strictjson.dumps(log.results, indent=2))
    for task, samples in log.samples.items():
        lines = "".join(strictjson.dumps(sample) + "\n" for sample in samples)
        write_text(place / f"samples_{task}_{time}.jsonl", lines)
