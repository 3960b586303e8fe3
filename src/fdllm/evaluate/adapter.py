"""An lm-eval model over the engine: its requests from the store or the engine, graded.

The harness is asked for a task's prompts and metrics, and asks :class:`EngineLM` for the answers.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from fdllm.checkpoint.folder import unread_weights
from fdllm.core.checkpoint import Model
from fdllm.core.config import Unmask
from fdllm.core.engine import NotFiniteError
from fdllm.core.memory import max_batch_size
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.row_task import ForwardHook
from fdllm.core.sampler import GenerationRequest, generate
from fdllm.core.scorer import score
from fdllm.core.unmask import by_threshold
from fdllm.errors import FdllmError
from fdllm.evaluate.attempt import NOWHERE, WHOLE, EndedEarly, Part, Reporter, ShardAnswered, Store
from fdllm.evaluate.documents import LoadedTask, load_run, quiet
from fdllm.evaluate.looks import take_looks
from fdllm.evaluate.recording import Evaluation
from fdllm.evaluate.requests import EvalRequest, check_first_tokens
from fdllm.evaluate.samples import evaluation_of
from fdllm.evaluate.tokenizing import TokenizingLM
from fdllm.fast.accelerators import accelerator_on, load_model
from fdllm.record import selftested
from fdllm.record.summary import PeakMemory
from fdllm.runs import Evaluating, ModelChoice, Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnDone = Callable[[int, Any], None]
"""Told of a request's number and its answer, a Generation or a Score, in any order."""


class RequestLM(TokenizingLM):
    """An lm-eval model that takes what the store has, and asks :meth:`answer` for the rest.

    Attributes:
        store: answers that are already known; new ones are put there as they come.
        progress: told how far it is.
        part: which documents to answer, and until when.
        entries: every answer so far, by ``(task, doc_id)``, in the order asked.
        asked: share of the run's documents that is asked for by now; 1 where all are at once.
    """

    def __init__(self, run: Run, tokenizer: PreTrainedTokenizerBase, max_positions: int) -> None:
        super().__init__(run, tokenizer, max_positions)
        self.store: Store = NOWHERE
        self.progress: Reporter = NOWHERE
        self.part = WHOLE
        self.entries: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self.asked, self._is_warm, self._is_begun = 1.0, False, False

    def answer(self, requests: Sequence[EvalRequest], on_done: OnDone) -> None:
        """Continue each prompt, or score each target where there are some; all are of one kind."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """What a first use costs is not this run's speed; called where something is to be done."""

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Texts for the harness's prompts, cut ahead of their ``until`` strings.

        Raises:
            FdllmError: a prompt leaves no room for its answer, or an argument is unknown.
        """
        seen = Counter[str]()
        entries = self._fulfil([self._text_request(request, seen) for request in requests])
        return [str(entry["text"]) for entry in entries]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """``(log-likelihood, is_greedy)`` of the harness's continuations.

        Raises:
            FdllmError: a pair leaves no room, a continuation has no token, or choices share
                their first token and the estimator sees nothing else.
        """
        seen, asked = Counter[str](), self.run.evaluating
        scored = [self._score_request(request, seen) for request in requests]
        if asked.scoring == "first-token" and not asked.allow_invalid:
            check_first_tokens(scored)
        entries = self._fulfil(scored)
        return [(float(entry["loglikelihood"]), bool(entry["is_greedy"])) for entry in entries]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihoods of whole documents, for perplexity: every token is scored once.

        A document is the target behind the tokenizer's first token. One that is longer than the
        model's positions is cut into disjoint windows, each behind the last token of the one
        before, as lm-eval's own causal models do it.

        Raises:
            FdllmError: the estimator is ``first-token``, which scores one token.
        """
        if self.run.evaluating.scoring == "first-token":
            raise FdllmError(
                f"task '{requests[0].task_name}' asks for the likelihood of whole documents, and "
                "the first-token estimator scores one token; use --scoring chain or denoise"
            )
        seen = Counter[str]()
        windows = [self._window_requests(request, seen) for request in requests]
        entries = iter(self._fulfil([request for parts in windows for request in parts]))
        return [sum(float(next(entries)["loglikelihood"]) for _ in parts) for parts in windows]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        **_: Any,  # noqa: ANN401 - the harness's signature
    ) -> list[tuple[float, bool]]:
        """Score bare tokens; they belong to no document, so nothing is looked up or kept."""
        bare = [
            EvalRequest("", "", i, 0, {}, text[0], tuple(context), text[1], tuple(target))
            for i, (text, context, target) in enumerate(requests)
        ]
        found: dict[int, Any] = {}
        self.answer(bare, found.__setitem__)
        return [(found[i].loglikelihood, found[i].is_greedy) for i in range(len(bare))]

    def _fulfil(self, requests: Sequence[EvalRequest]) -> list[dict[str, Any]]:
        """Entries of all requests: from the store where it has them, else computed and put there.

        Raises:
            EndedEarly: the rest was not begun, because the run was asked to end.
            ShardAnswered: these are the answers of a shard.
        """
        requests = self.part.select(requests, lambda request: request.document)
        found = {request.key: self.store.get(request.key) for request in requests}
        known = {key: entry for key, entry in found.items() if entry is not None}
        todo = [request for request in requests if request.key not in known]
        earlier = sum(map(len, self.entries.values()))
        total = round((earlier + len(requests)) / self.asked)
        self.store.set_total(total)
        if todo and not self._is_warm and self.part.go_on():
            self._is_warm = True
            self.warm_up()
        if not self._is_begun:
            self.progress.begin(total, earlier + len(known))
            self._is_begun = True

        def on_done(index: int, answer: Any) -> None:  # noqa: ANN401 - see OnDone
            request = todo[index]
            entry = request.entry(answer)
            self.store.put(request.key, entry)
            known[request.key] = entry
            self.progress.advance(entry)

        if todo and self.part.go_on():
            self.answer(todo, on_done)
        if len(known) < len(requests) and not self.part.go_on():
            raise EndedEarly(f"{earlier + len(known)} of {total} requests")
        if self.part.shard is not None:
            raise ShardAnswered
        for request in requests:
            self.entries.setdefault(request.document, []).append(known[request.key])
        return [known[request.key] for request in requests]


class EngineLM(RequestLM):
    """The model answers.

    Args:
        run: how the task is asked, and decoded.
        model: from :func:`fdllm.load_model`, with its tokenizer.
        strategy: layer reuse, active in generation and scoring alike.
        unmask: which masked columns to unmask.

    Attributes:
        hook: sees every row's forwards, see :mod:`fdllm.trace`.
    """

    def __init__(
        self,
        run: Run,
        model: Model,
        strategy: ReuseStrategy[Any],
        unmask: Unmask = by_threshold,
    ) -> None:
        super().__init__(run, model.tokenizer, model.spec.max_positions)
        self.hook: ForwardHook | None = None
        self.unmask = unmask
        self._model = model
        self._strategy = strategy

    def answer(self, requests: Sequence[EvalRequest], on_done: OnDone) -> None:
        """Decode each prompt, or score each target.

        Raises:
            FdllmError: a logit is not finite; the document is named.
        """
        asked = self.run.evaluating
        try:
            if requests[0].target is None:
                generate(
                    self._model,
                    [
                        GenerationRequest(r.tokens, r.max_new_tokens, r.until, r.seed)
                        for r in requests
                    ],
                    self.decoding,
                    self._strategy,
                    batch_size=max_batch_size(self._model, asked.batch_size),
                    on_done=on_done,
                    unmask=self.unmask,
                    detokenize=True,
                    hook=self.hook,
                    go_on=self.part.go_on,
                )
            else:
                score(
                    self._model,
                    [(request.tokens, request.target_tokens) for request in requests],
                    asked.scoring,
                    self.decoding,
                    self._strategy,
                    batch_size=max_batch_size(self._model, asked.score_batch_size),
                    on_done=on_done,
                    prefix_cache_gib=asked.prefix_cache_gib,
                    hook=self.hook,
                    go_on=self.part.go_on,
                )
        except NotFiniteError as error:
            raise FdllmError(f"{requests[error.request]}: {error.reason}") from error

    def warm_up(self) -> None:
        """Decode a block and forget it: what a first use costs is not this run's speed."""
        decoding, spec = self.run.decoding, self._model.spec
        mask = spec.mask_id if decoding.mask_id is None else decoding.mask_id
        token = next(token for token in range(spec.vocab_size) if token != mask)
        prompt = (token,) * (decoding.block_size + 1)
        request = GenerationRequest(prompt, max_new_tokens=decoding.block_size)
        with suppress(NotFiniteError):  # the first document will say so
            generate(self._model, [request], decoding, self._strategy)


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device: evaluates runs, and says what it is."""

    model: Model  # from :func:`fdllm.load_model`

    @classmethod
    def load(cls, choice: ModelChoice, threads: int | None = None) -> LoadedModel:
        """Load a checkpoint; ``threads`` are torch's, and None leaves them alone.

        Raises:
            UsageError: the name or the device is nothing.
            FdllmError: the files are not a whole checkpoint.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(load_model(choice.name, choice.device, choice.dtype, revision=choice.revision))

    @property
    def n_layers(self) -> int:
        """Transformer layers of the model."""
        return self.model.n_layers

    def evaluate(
        self,
        run: Run,
        store: Store,
        progress: Reporter,
        *,
        strategy: ReuseStrategy[Any],
        unmask: Unmask | None = None,
        part: Part = WHOLE,
    ) -> Evaluation:
        """Ask the model a run's task.

        Args:
            run: the task, how it is asked and decoded, and the consent to run programs.
            store: answers that are already known; new ones are put there as they come.
            progress: told how far it is.
            strategy: the run's layer reuse.
            unmask: the experiment's rule, where it brings one.
            part: which documents to answer, and until when.

        Raises:
            EndedEarly: ``part`` said that no further request may be begun.
            ShardAnswered: ``part`` is a shard, and all of it is answered.
            UsageError: the task is unknown, the model has no chat template, or the task runs code
                and nobody agreed to that.
            FdllmError: documents cannot be had, a prompt leaves no room for its answer, or the
                estimator is invalid for the task.
        """
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.model.device)
        return evaluate(self.asked(run, strategy, unmask), store, progress, part)

    def asked(
        self, run: Run, strategy: ReuseStrategy[Any], unmask: Unmask | None = None
    ) -> EngineLM:
        """The model as a run asks it; see :meth:`evaluate`."""
        self.model.compile(asked=self._compile(run.evaluating))
        return EngineLM(run, self.model, strategy, unmask or by_threshold)

    def facts(self, asked: Evaluating) -> dict[str, str | int | None]:
        """What a session's provenance says of it."""
        device, dtype = self.model.device, str(self.model.dtype).removeprefix("torch.")
        cuda = device.type == "cuda"
        tested = selftested.last(self._accelerator)
        unread = "" if self.model.folder is None else unread_weights(self.model.folder)
        facts: dict[str, str | int | None] = {
            "accelerator": self._accelerator,
            "device": str(device),
            "dtype": dtype,
            "threads": torch.get_num_threads(),
            "cuda": torch.version.cuda if cuda else None,
            "batch_size": max_batch_size(self.model, asked.batch_size),
            "score_batch_size": max_batch_size(self.model, asked.score_batch_size),
            "compile": accelerator_on(device, self.model.dtype, asked=self._compile(asked)).name,
            "selftest": selftested.NOT_RUN if tested is None else tested.words,
            "selftest_batch": tested.batch_words if tested is not None and cuda else None,
        }
        return facts | ({"unread_weights": unread} if unread else {})

    @property
    def _accelerator(self) -> str | None:
        device = self.model.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else None

    def _compile(self, asked: Evaluating) -> bool | None:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return selftested.choose(asked.compile, self._accelerator, dtype)

    def peak_memory(self) -> PeakMemory:
        """Largest memory so far: of the GPU since the run began, else of the process."""
        if self.model.device.type == "cuda":
            return PeakMemory(bytes=torch.cuda.max_memory_allocated(self.model.device), kind="cuda")
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return PeakMemory(bytes=peak, kind="resident")


def evaluate(lm: RequestLM, store: Store, progress: Reporter, part: Part = WHOLE) -> Evaluation:
    """Put its run's task to an lm-eval model; as :meth:`LoadedModel.evaluate`, whoever answers."""
    run = lm.run
    lm.store, lm.progress, lm.part = store, progress, part
    with quiet():
        loaded = load_run(run)
        loaded, decided = take_looks(lm, loaded, RequestLM, ask)
        found = ask(lm, loaded, run.evaluating, limit=run.limit)
        return replace(evaluation_of(found, loaded, lm.entries, run), decided=decided)


def ask(
    lm: LM,
    loaded: LoadedTask,
    asked: Evaluating,
    *,
    limit: int | None = None,
    documents: Mapping[str, list[int]] | None = None,
) -> dict[str, Any]:
    """Put a task's requests to an lm-eval model, and grade what it says: the harness's results.

    Who calls has the user's consent where the task's metric runs programs. A model without a
    tokenizer is asked in the harness's plain words.

    Args:
        lm: answers.
        loaded: the task.
        asked: how it is asked.
        limit: documents of each leaf task at most.
        documents: the documents of each leaf task, sorted; None is all.
    """
    wrapped = asked.chat_template and isinstance(lm, TokenizingLM)
    results: dict[str, Any] = evaluator.evaluate(
        lm=lm,
        task_dict={"tasks": loaded.leaves, "groups": loaded.groups},
        limit=limit,
        samples=documents,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=wrapped,
        fewshot_as_multiturn=wrapped and asked.turns,
        confirm_run_unsafe_code=True,
    )
    return results
