"""Generation, docs/algorithm.md 3, one row at a time to the letter. The engine batches rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal

import torch

from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding, Unmask
from fdllm.core.counts import Counts
from fdllm.core.drafting import BlockState, Drafting, chance, saves
from fdllm.core.engine import Engine, check_tokens, resolve
from fdllm.core.reuse import AnyPlan, LayerPlan, NoReuse, ReuseStrategy, plan_step
from fdllm.core.row_task import (
    CacheRow,
    ForwardHook,
    ForwardRequest,
    Prediction,
    RowTask,
    Steps,
    prefill,
)
from fdllm.core.schedule import Phase, Step, next_step_index, num_full_blocks
from fdllm.core.unmask import by_threshold, observation
from fdllm.errors import UsageError
from fdllm.plain import one_line

Finish = Literal["stop", "length", "until"]
Guesses = dict[int, tuple[int, float]]
"""Of columns of a block, the token that a forward chose and its confidence."""


@dataclass(frozen=True)
class GenerationRequest:
    """One text to continue.

    Attributes:
        prompt: its tokens, at least one.
        max_new_tokens: new tokens at most; None takes the decoding's.
        until: strings that end the text; they need the model's tokenizer.
        seed: seed of this row where sampling is on; None derives it from the decoding's seed and
            the prompt, so that it does not depend on the batch.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int | None = None
    until: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Generation:
    """What a row became.

    Attributes:
        tokens: new tokens, up to and including the stop token, or the token that completed an
            ``until`` string.
        counts: forwards and layer calls by phase.
        seconds: this row's share of model time, synchronised; tokenising is outside it.
        finish: what ended the row.
        text: the tokens decoded, without the stop token, cut ahead of the ``until`` string and
            then without special tokens; None where no tokenizer was asked for.
        steps: tokens unmasked by each denoising forward, in order.
    """

    tokens: list[int]
    counts: Counts
    seconds: float
    finish: Finish
    text: str | None = None
    steps: tuple[int, ...] = ()

    def __repr__(self) -> str:
        folded = one_line(" ".join((self.text or "").split()))
        text = "" if self.text is None else f", text='{folded:.60}{'…' * bool(folded[60:])}'"
        told = f"{len(self.tokens)} tokens, {self.finish}, {self.seconds:.3g} s"
        return f"<Generation: {told}, {len(self.steps)} steps{text}>"


def generate(
    model: Model,
    prompts: Sequence[Sequence[int] | GenerationRequest],
    decoding: Decoding,
    strategy: ReuseStrategy[Any] | None = None,
    *,
    batch_size: int | None = None,
    on_done: Callable[[int, Generation], None] | None = None,
    unmask: Unmask = by_threshold,
    detokenize: bool = False,
    prefix_cache_gib: float = 0.0,
    hook: ForwardHook | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> list[Generation]:
    """Continue prompts of any lengths.

    Args:
        model: from :func:`fdllm.load_model`.
        prompts: tokens of each row, or requests.
        decoding: settings; the checkpoint fills its mask and stop tokens where they are None.
        strategy: layer reuse; None is :class:`~fdllm.core.reuse.NoReuse`.
        batch_size: rows decoded at once; None takes all. It never changes a row's tokens.
        on_done: called with index and result as each row ends, in any order.
        unmask: which columns to unmask; an experiment may bring its own.
        detokenize: fill ``text`` also where no request has an ``until`` string.
        prefix_cache_gib: memory for prompt blocks shared between rows; 0 shares none, so that each
            row's time is its own.
        hook: sees every row's forwards, see :mod:`fdllm.trace`.
        go_on: asked before a row starts; rows left out by a no are missing from the result.

    Returns:
        One :class:`Generation` a prompt, in order.

    Raises:
        UsageError: a prompt is empty or holds a token outside the vocabulary.
        FdllmError: a row needs more positions than the model has.
        NotFiniteError: a logit is NaN or infinite.
    """
    filled = resolve(decoding, model)
    if isinstance(strategy, Drafting) and filled.temperature > 0.0:
        raise UsageError(
            f"verified decoding is greedy; got temperature={filled.temperature}: set it to 0, or "
            "take a strategy that drafts nothing"
        )
    rows = batch_size if batch_size is not None else max(1, len(prompts))
    engine = Engine(model, filled, rows, prefix_cache_gib)
    tasks = []
    for index, prompt in enumerate(prompts):
        request = (
            prompt if isinstance(prompt, GenerationRequest) else GenerationRequest(tuple(prompt))
        )
        if not request.prompt:
            raise UsageError("a prompt is empty; a row needs at least one token to start from")
        check_tokens(request.prompt, model)
        row = _RowSampler(model, request, filled, strategy or NoReuse(), unmask, detokenize)
        task = RowTask(row.run, row.capacity, rng=_generator(request, filled), number=index)
        tasks.append(task if hook is None else hook.wrap(task))
    out: dict[int, Generation] = {}
    for index, generation in engine.run(tasks, go_on):
        out[index] = generation
        if on_done is not None:
            on_done(index, generation)
    return [out[i] for i in sorted(out)]


def _generator(request: GenerationRequest, decoding: Decoding) -> torch.Generator | None:
    """A generator of the row's own, so that a draw never depends on the rest of the batch."""
    if decoding.temperature == 0.0:
        return None
    seed = request.seed
    if seed is None:
        text = f"{decoding.seed}:{','.join(map(str, request.prompt))}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)


def _guesses(columns: Sequence[int], told: Prediction) -> Guesses:
    return dict(zip(columns, zip(told.tokens, told.confidence, strict=True), strict=True))


@dataclass
class _RowSampler:
    """The algorithm of one row. ``run`` is docs/algorithm.md 3, read from top to bottom."""

    model: Model
    request: GenerationRequest
    decoding: Decoding
    strategy: ReuseStrategy[Any]
    unmask: Unmask
    detokenize: bool
    new: list[int] = field(default_factory=list)  # settled new tokens, left to right
    steps: list[int] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def limit(self) -> int:
        """New tokens at most."""
        return self.request.max_new_tokens or self.decoding.max_new_tokens

    @property
    def capacity(self) -> int:
        """Positions it may write."""
        return len(self.request.prompt) + self.limit

    def run(self, task: RowTask[Generation], row: CacheRow) -> Steps[Generation]:
        """Decode until the row ends."""
        prompt, size = self.request.prompt, self.decoding.block_size
        full = num_full_blocks(len(prompt), size) * size
        whole = LayerPlan(self.model.n_layers)
        known = list(prompt[full:])
        for request in prefill(prompt[:full], whole, size, read=not known):
            seen = yield request
            if request.read:
                known = [seen.tokens[0]]
                self._settle(known)
        num_known = len(prompt) - full  # columns of the block that are prompt, not answer
        while self.finish is None:
            masked = tuple(range(len(known), size))
            tokens = (*known, *[self.decoding.mask] * len(masked))
            block = BlockState(tokens, masked, self.decoding.small_block_size)
            block = yield from self._denoise(row, block, num_known)
            if self.finish is not None:
                break
            seen = yield ForwardRequest(Phase.COMMIT, block.tokens, whole, read=(size - 1,))
            known, num_known = [seen.tokens[0]], 0
            self._settle(known)
        return Generation(
            self.new, task.counts, task.seconds, self.finish, self._text(), tuple(self.steps)
        )

    def _denoise(self, row: CacheRow, now: BlockState, num_prompt: int) -> Steps[BlockState]:
        """Fill one block, sub-block by sub-block, until it is full or the row ends.

        Args:
            row: where it lies in the cache.
            now: the block as it begins: known are the prompt and the look-ahead token.
            num_prompt: columns of the prompt; what stands behind them is answer.
        """
        state = self.strategy.init(self.model.n_layers)
        index: int | None = None
        settled, hand = min(now.masked, default=len(now.tokens)), Guesses()
        while now.masked:
            drafts = yield from self._drafts(now, hand, state, max(settled, num_prompt))
            step = self._step(now, index)
            plan = plan_step(self.strategy, step, state)
            asked = tuple(self._ask(draft, self._step(draft, step.index), plan) for draft in drafts)
            seen = yield replace(self._ask(now, step, plan), drafts=asked)
            # The state at hand is plain decoding's; so is a draft that is what came of such a one.
            for i, (told, draft) in enumerate(zip_longest((seen, *seen.drafts), drafts)):
                step = self._step(now, index)
                index, hand = step.index, hand | _guesses(self._read(now, step), told)
                todo = now.todo
                told = told.first(len(todo))  # noqa: PLW2901 - what stands behind is for drafts
                chosen = self.unmask(told.confidence, self.decoding.threshold)
                now = now.filled([todo[i] for i in chosen], [told.tokens[i] for i in chosen])
                self.steps.append(len(chosen))
                state = self.strategy.observe(step, observation(plan, told, todo, chosen), state)
                upto = min(now.masked, default=len(now.tokens))
                if upto > settled:
                    self._settle(now.tokens[max(settled, num_prompt) : upto])
                    settled = upto
                    if self.finish is not None:
                        return now
                if now != draft:
                    rejected = enumerate(asked[i:], i + 1)
                    row.keep(i, next((n for n, r in rejected if r.phase is Phase.REFRESH), None))
                    break
        return now

    def _drafts(
        self,
        now: BlockState,
        hand: Guesses,
        state: Any,  # noqa: ANN401 - the strategy's own
        settled: int,
    ) -> Steps[list[BlockState]]:
        """States that may come behind ``now``; none where the strategy drafts none.

        Args:
            now: the state at hand.
            hand: what whole forwards read last; empty ahead of a block's first.
            state: the strategy's.
            settled: column from which on no answer is settled yet.
        """
        drafts = list[BlockState]()
        if not isinstance(self.strategy, Drafting) or not hand:
            return drafts
        drafter, threshold = self.strategy.drafter, self.decoding.threshold
        first, likely = self._step(now, 0), 1.0
        while len(drafts) < self.strategy.drafts:
            if drafter.reuses:
                step = self._step(now, len(drafts))
                if step.phase is Phase.REFRESH and first.phase is Phase.DENOISE:
                    break  # what it stores the state at hand would read
                plan = drafter.plan(step, state)
                if not saves(plan):
                    break
                told = yield replace(self._ask(now, step, plan), drafting=True)
                hand = _guesses(now.todo, told)
                chosen = self.unmask(told.confidence, threshold)
                state = drafter.observe(step, observation(plan, told, now.todo, chosen), state)
            elif all(c in hand for c in now.todo):
                chosen = self.unmask([hand[c][1] for c in now.todo], threshold)
            else:
                break  # of a sub-block that the last forward did not read
            likely *= chance([hand[c][1] for c in now.todo], threshold)
            columns = [now.todo[i] for i in chosen]
            now = now.filled(columns, [hand[c][0] for c in columns])
            fresh = now.tokens[settled : min(now.masked, default=len(now.tokens))]
            over = any(t in self.decoding.stop_tokens for t in fresh)
            if over or len(self.new) + len(fresh) >= self.limit or not now.masked:
                break
            left, right = self._step(now, 0).columns
            if not self.strategy.pays(likely, right - left):
                break
            drafts.append(now)
        return drafts

    def _ask(self, now: BlockState, step: Step, plan: AnyPlan) -> ForwardRequest:
        """The forward of a step."""
        left, right = step.columns
        read = tuple(c - 1 - left for c in self._read(now, step))
        return ForwardRequest(step.phase, now.tokens[left:right], plan, left, read)

    def _read(self, now: BlockState, step: Step) -> tuple[int, ...]:
        """The columns that a step predicts: the sub-block's, and more where drafts may ask."""
        far = (
            isinstance(self.strategy, Drafting)
            and self.strategy.frees_columns
            and not self.strategy.drafter.reuses
        )
        return now.masked if far and step.phase is Phase.REFRESH else now.todo

    def _step(self, now: BlockState, index: int | None) -> Step:
        """REFRESH or DENOISE, and the step counter (docs/algorithm.md 3 and 4)."""
        start = now.sub_block.start
        refresh = not self.decoding.use_block_cache or index is None or start in now.masked
        phase = Phase.REFRESH if refresh else Phase.DENOISE
        columns = (0, self.decoding.block_size) if refresh else (start, now.sub_block.stop)
        count = next_step_index(index, phase, refresh_reuse=self.strategy.refresh_reuse)
        inside = tuple(c for c in now.masked if columns[0] <= c < columns[1])
        return Step(phase, count, columns, first=index is None, masked=inside)

    def _settle(self, tokens: Sequence[int]) -> None:
        """Take tokens that nothing can change any more; end the row at the first that ends it."""
        for token in tokens:
            self.new.append(token)
            if token in self.decoding.stop_tokens:
                self.finish = "stop"
            elif self.request.until and self._hits_until():
                self.finish = "until"
            elif len(self.new) >= self.limit:
                self.finish = "length"
            if self.finish is not None:
                return

    def _hits_until(self) -> bool:
        """Whether the text so far holds an ``until`` string; only its tail is decoded.

        Special tokens count as text here: a task may name one, such as ``<|im_end|>``. A character
        takes four tokens at most (one for each byte of UTF-8).
        """
        longest = max(len(text) for text in self.request.until)
        tail = self.model.tokenizer.decode(
            self.new[-(4 * longest + 4) :], skip_special_tokens=False
        )
        return any(text in tail for text in self.request.until)

    def _text(self) -> str | None:
        if not self.detokenize and not self.request.until:
            return None
        return text_of(self.new, self.finish, self.request.until, self.model.tokenizer)


def text_of(
    tokens: Sequence[int],
    finish: Finish | None,
    until: Sequence[str],
    tokenizer: Any,  # noqa: ANN401
) -> str:
    """A row's text; see :class:`Generation`.

    Args:
        tokens: its new tokens.
        finish: what ended it.
        until: strings that end a text.
        tokenizer: the model's.
    """

    def decode(some: Sequence[int], *, special: bool = False) -> str:
        return str(tokenizer.decode(some, skip_special_tokens=not special))

    tokens = tokens[:-1] if finish == "stop" else tokens
    whole = decode(tokens, special=True) if until else ""
    # Cut where special tokens are text, and only then drop those ahead of the cut.
    found = [at for text in until if (at := whole.find(text)) >= 0]
    cut, n, ahead = whole[: min(found, default=None)], len(tokens), whole
    while not cut.startswith(ahead):
        n -= 1
        ahead = decode(tokens[:n], special=True)
    text = decode(tokens[:n]) + cut[len(ahead) :]
    for stop in until:  # a string that only comes about without them ends it too
        text = text.split(stop, 1)[0]
    return text
