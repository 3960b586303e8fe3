"""Evaluate one or more cases in a process of its own: ``python case.py '<json>' OUT``.

The clients read ``HF_ENDPOINT`` and ``HF_HOME`` when they are imported, so a test that changes
them needs a fresh process. Each case is a mapping of :func:`run`'s arguments; what it found is
written to ``OUT`` as JSON, one entry a case.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import AutoTokenizer

from fdllm.core.config import Decoding
from fdllm.core.counts import Counts
from fdllm.core.reuse import PeriodicReuse
from fdllm.core.sampler import Generation
from fdllm.errors import FdllmError
from fdllm.evaluate.adapter import LoadedModel, OnDone
from fdllm.evaluate.recording import Evaluation
from fdllm.evaluate.requests import EvalRequest
from fdllm.evaluate.tasks import task_info
from fdllm.runs import CodeExecution
from hub.checkpoint import MemoryStore, Tally, random_model
from hub.lm import Answer, Oracle, evaluated, run_of
from hub.spoken import Spoken


@dataclass(frozen=True)
class Told:
    """Says what it was told to, by document."""

    texts: Sequence[str]

    def __call__(self, requests: Sequence[EvalRequest], on_done: OnDone) -> None:
        for i, request in enumerate(requests):
            on_done(i, Generation([], Counts(), 0.0, "stop", self.texts[request.doc_id]))


def run(
    task: str,
    *,
    by: str = "oracle",
    limit: int | None = 10,
    repeat: bool = False,
    token: str | None = None,
    code_execution: CodeExecution = "refused",
    texts: Sequence[str] = (),
    tokenizer: str | None = None,
    spoken: str | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """Evaluate, and hand back what the tests look at.

    Args:
        task: the task.
        by: ``oracle``, ``model`` or ``texts``.
        limit: documents of a leaf task.
        repeat: evaluate again from the same store.
        token: the user's token from here on.
        code_execution: consent to run code.
        texts: what is answered, by document, where ``by`` says so.
        tokenizer: a folder that holds the model's; None is one of bytes.
        spoken: what follows each known answer where the sampler speaks it, see
            :mod:`hub.spoken`; None hands answers over as texts.
        asked: how the task is asked.
    """
    if token is not None:
        os.environ["HF_TOKEN"] = token
    began = time.monotonic()
    store, first, second = MemoryStore(), Tally(), Tally()
    model = random_model(None if tokenizer is None else AutoTokenizer.from_pretrained(tokenizer))  # type: ignore[no-untyped-call]
    decoding = Decoding(
        max_new_tokens=16 if spoken is None else task_info(task).max_new_tokens, threshold=0.5
    )
    asked = {"batch_size": 4} | asked
    case = run_of(task, decoding, limit=limit, code_execution=code_execution, **asked)
    oracle = Oracle(task)
    known: Answer | None = oracle if by == "oracle" else Told(texts) if by == "texts" else None
    if known is not None and spoken is not None:
        known = Spoken(known, model, decoding, spoken)

    def evaluate(progress: Tally) -> Evaluation:
        if known is not None:
            return evaluated(case, known, model, oracle=oracle, store=store, progress=progress)
        return LoadedModel(model).evaluate(case, store, progress, strategy=PeriodicReuse(2, 1, 2))

    try:
        found = evaluate(first)
        again = evaluate(second) if repeat else found
    except FdllmError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    return {
        "value": found.value,
        "headline": found.headline,
        "metrics": found.metrics,
        "num_documents": found.num_documents,
        "dataset": found.dataset,
        "samples": found.samples,
        "entries": list(store.entries.values()),
        "results": found.results,
        "versions": found.task_versions,
        "progress": [first.total, first.done, first.advanced],
        "again": [second.total, second.done, second.advanced],
        "same": again == found,
        "puts": len(store.puts),
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    cases, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    out.write_text(json.dumps([run(**case) for case in cases]), encoding="utf-8")
