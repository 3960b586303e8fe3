"""Answers that go the whole way: as tokens, through the sampler, to the text that is graded.

A known answer handed over as a text passes by the tokenizer, the end of a text and the room it has.
Here a script stands in for the model's logits, and nothing else is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import create_autospec

from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding
from fdllm.core.engine import resolve
from fdllm.core.reuse import NoReuse
from fdllm.core.row_task import CacheRow, ForwardRequest, Prediction, RowTask
from fdllm.core.sampler import Generation, GenerationRequest, _RowSampler
from fdllm.core.schedule import Phase
from fdllm.core.unmask import by_threshold
from fdllm.evaluate.adapter import OnDone
from fdllm.evaluate.requests import EvalRequest
from hub.lm import Answer


@dataclass(frozen=True)
class Spoken:
    """Another's answers, spoken by the sampler.

    Attributes:
        inner: who knows the answers.
        model: whose tokenizer and stop tokens hold.
        decoding: settings.
        behind: what follows each answer, ahead of the end token.
    """

    inner: Answer
    model: Model
    decoding: Decoding
    behind: str = ""

    def __call__(self, requests: Sequence[EvalRequest], on_done: OnDone) -> None:
        def speak(index: int, known: Generation) -> None:
            one = requests[index]
            request = GenerationRequest(one.tokens, one.max_new_tokens, one.until)
            script = self.model.tokenizer.encode(f"{known.text}{self.behind}")
            on_done(index, self._play(request, script))

        for request in requests:
            self._check(request)
        self.inner(requests, on_done if requests[0].target is not None else speak)

    def _check(self, request: EvalRequest) -> None:
        """All of the prompt and of the target is in the tokens, and there is room for the rest."""
        text = self.model.tokenizer.decode([*request.tokens, *request.target_tokens])
        assert text == request.prompt + (request.target or "")
        assert self.model.tokenizer.decode(list(request.tokens)) == request.prompt
        assert len(request.tokens) + request.max_new_tokens <= self.model.spec.max_positions

    def _play(self, request: GenerationRequest, script: list[int]) -> Generation:
        """The sampler's course where the model is sure of the script, and of the end behind it."""
        decoding = resolve(self.decoding, self.model)
        row = _RowSampler(self.model, request, decoding, NoReuse(), by_threshold, detokenize=True)
        job = RowTask(row.run, row.capacity)
        steps: Any = row.run(job, create_autospec(CacheRow, instance=True))
        base = -len(request.prompt)  # of the block, counted from the first new token
        end = self.model.tokenizer.eos_token_id

        def predict(ask: ForwardRequest) -> Prediction:
            at = [base + ask.start + column + 1 for column in ask.read]
            tokens = tuple(script[i] if i < len(script) else end for i in at)
            # Not all at once, nor from left to right.
            return Prediction(tokens, tuple(0.5 if i % 3 else 1.0 for i in at))

        ask: ForwardRequest = next(steps)
        while True:
            seen = predict(ask)
            if ask.phase in (Phase.PREFILL, Phase.COMMIT):
                base += len(ask.ids)
            try:
                ask = steps.send(seen)
            except StopIteration as ended:
                return ended.value  # type: ignore[no-any-return]
