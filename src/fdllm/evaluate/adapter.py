"""An lm-eval model over the engine: from requests to queries, resuming, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lm_eval.api.instance import Instance

from fdllm.core.sampler import Generation
from fdllm.core.scorer import Score
from fdllm.errors import FdllmError
from fdllm.evaluate.answer import Answerer, Query
from fdllm.evaluate.entries import generation_entry, score_entry
from fdllm.evaluate.protocols import WHOLE, EndedEarly, Part, Progress, ShardAnswered, Store
from fdllm.evaluate.queries import GenerationArguments, Limits, Requests, check_first_tokens
from fdllm.evaluate.tokenizing import TokenizingLM
from fdllm.runs import Evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R = TypeVar("R", Generation, Score)


class EngineLM(TokenizingLM):
    """Serves the harness's requests from the store, and the rest from an answerer.

    Sampling settings of a task's definition (``do_sample``, ``temperature``) are read and set
    aside: the run's :class:`~fdllm.core.config.Decoding` decides them, as it is what the record
    names. A length limit in the definition (``max_gen_toks``) takes precedence over the run's,
    unless ``asked.whole_blocks``.

    Attributes:
        tokenizer: the model's.
        entries: every answer of this evaluation, by ``(task, doc_id)``, in the order asked.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        answerer: Answerer,
        asked: Evaluating,
        *,
        limits: Limits,
        store: Store,
        progress: Progress,
        name: str = "model",
        part: Part = WHOLE,
    ) -> None:
        super().__init__(tokenizer, name)
        self.entries: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self._answerer = answerer
        self._limits = limits
        self._store = store
        self._progress = progress
        self._asked = asked
        self._part = part

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002, FBT001, FBT002
        """Texts for the harness's prompts, cut ahead of their ``until`` strings.

        Raises:
            FdllmError: a prompt leaves no room for its answer, or an argument is unknown.
        """
        identities = Requests("generate")
        queries = [self._generate_query(request, identities) for request in requests]
        entries = self._fulfil(queries, self._answerer.generate, generation_entry)
        return [str(entry["text"]) for entry in entries]

    def _generate_query(self, instance: Instance, identities: Requests) -> Query:
        prompt, arguments = str(instance.args[0]), dict(instance.args[1])
        settings = GenerationArguments.read(arguments, str(instance.task_name))
        request, repeat = identities.identify(instance, None, arguments)
        tokens = tuple(self.tok_encode(prompt))
        length = settings.max_new_tokens or self._limits.max_new_tokens
        if self._asked.whole_blocks:
            length = self._limits.whole_blocks(len(tokens))
        query = Query(
            key=request.key,
            task=str(instance.task_name),
            doc_id=int(instance.doc_id),
            index=int(instance.idx),
            doc=instance.doc,
            prompt=prompt,
            tokens=tokens,
            until=() if self._asked.ignore_until else settings.until,
            max_new_tokens=length,
            # The engine derives a row's seed from its prompt; equal prompts need another.
            seed=int(request.key[:15], 16) if repeat else None,
        )
        self._limits.check(query)
        return query

    def loglikelihood(
        self,
        requests: list[Instance],
        disable_tqdm: bool = True,  # noqa: ARG002, FBT001, FBT002
    ) -> list[tuple[float, bool]]:
        """``(log-likelihood, is_greedy)`` of the harness's continuations.

        Raises:
            FdllmError: a pair leaves no room, a continuation has no token, or choices share
                their first token and the estimator sees nothing else.
        """
        identities = Requests("loglikelihood")
        queries = [self._score_query(request, identities) for request in requests]
        if self._asked.scoring == "first-token" and not self._asked.allow_invalid:
            check_first_tokens(queries)
        entries = self._fulfil(queries, self._answerer.score, score_entry)
        return [(float(entry["loglikelihood"]), bool(entry["is_greedy"])) for entry in entries]

    def _score_query(self, instance: Instance, identities: Requests) -> Query:
        prompt, target = (str(text) for text in instance.args)
        request, _ = identities.identify(instance, target, {})
        where = f"task '{instance.task_name}', document {instance.doc_id}"
        context, continuation = self.encode_pair(prompt, target, where)
        query = Query(
            key=request.key,
            task=str(instance.task_name),
            doc_id=int(instance.doc_id),
            index=int(instance.idx),
            doc=instance.doc,
            prompt=prompt,
            tokens=tuple(context),
            target=target,
            target_tokens=tuple(continuation),
        )
        self._limits.check(query)
        self._limits.check_scored(query, self._asked.max_prompt_tokens)
        return query

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        **_: Any,  # noqa: ANN401 - the harness's signature
    ) -> list[tuple[float, bool]]:
        """Score bare tokens; they belong to no document, so nothing is looked up or kept."""
        queries = [
            Query("", "", i, 0, {}, text[0], tuple(context), text[1], tuple(target))
            for i, (text, context, target) in enumerate(requests)
        ]
        found: dict[int, Score] = {}
        self._answerer.score(queries, found.__setitem__)
        return [(found[i].loglikelihood, found[i].is_greedy) for i in range(len(queries))]

    def loglikelihood_rolling(
        self,
        requests: list[Instance],
        disable_tqdm: bool = True,  # noqa: ARG002, FBT001, FBT002
    ) -> list[float]:
        """Log-likelihoods of whole documents, for perplexity: every token is scored once.

        A document is the target behind the tokenizer's first token; it is scored block by block,
        left to right, teacher-forced. One that is longer than the model's positions is
        cut into disjoint windows, each behind the last token of the one before, as lm-eval's own
        causal models do it.

        Raises:
            FdllmError: the estimator is ``first-token``, which scores one token and cannot say
                how likely a document is.
        """
        if self._asked.scoring == "first-token":
            raise FdllmError(
                f"task '{requests[0].task_name}' asks for the likelihood of whole documents, and "
                "the first-token estimator scores one token; use --scoring chain or denoise"
            )
        identities = Requests("loglikelihood_rolling")
        windows = [self._windows(request, identities) for request in requests]
        queries = [query for parts in windows for query in parts]
        entries = iter(self._fulfil(queries, self._answerer.score, score_entry))
        return [sum(float(next(entries)["loglikelihood"]) for _ in parts) for parts in windows]

    def _windows(self, instance: Instance, identities: Requests) -> list[Query]:
        """One query for each window of a document."""
        text = str(instance.args[0])
        where = f"task '{instance.task_name}', document {instance.doc_id}"
        first, tokens = self.encode_pair("", text, where)
        request, _ = identities.identify(instance, text, {})
        longest = self._limits.longest_target
        queries = []
        for at in range(0, len(tokens), longest):
            query = Query(
                key=f"{request.key}:{at}",
                task=str(instance.task_name),
                doc_id=int(instance.doc_id),
                index=int(instance.idx),
                doc=instance.doc,
                prompt=text,
                tokens=(tokens[at - 1],) if at else tuple(first),
                target=text,
                target_tokens=tuple(tokens[at : at + longest]),
            )
            self._limits.check(query)
            queries.append(query)
        return queries

    def _fulfil(
        self,
        queries: Sequence[Query],
        answer: Callable[[Sequence[Query], Callable[[int, R], None]], None],
        to_entry: Callable[[Query, R], dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """Entries of all queries: from the store where it has them, else computed and put there.

        Raises:
            EndedEarly: the rest was not begun, because the run was asked to end.
            ShardAnswered: these are the answers of a shard.
        """
        queries = self._part.select(queries, lambda query: (query.task, query.doc_id))
        known: dict[str, dict[str, Any]] = {}
        todo: list[Query] = []
        for query in queries:
            entry = self._store.get(query.key)
            if entry is None:
                todo.append(query)
            else:
                known[query.key] = entry
        self._progress.begin(len(queries), len(known))

        def on_done(index: int, result: R) -> None:
            query = todo[index]
            entry = to_entry(query, result)
            self._store.put(query.key, entry)
            known[query.key] = entry
            self._progress.advance(entry)

        if todo:
            answer(todo, on_done)
        if len(known) < len(queries) and not self._part.go_on():
            raise EndedEarly(len(known), len(queries))
        if self._part.shard is not None:
            raise ShardAnswered
        for query in queries:
            self.entries.setdefault((query.task, query.doc_id), []).append(known[query.key])
        return [known[query.key] for query in queries]
