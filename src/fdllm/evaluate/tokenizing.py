"""From the harness's requests to tokens, as lm-eval's own causal models have them.

A continuation's tokens are what the whole text has behind the context's, as the published
evaluation splits them (docs/algorithm.md 5). The base class's ``_encode_pair`` is not used: it
moves the context's last white space into the continuation, and behind a chat template that is the
template's own line break.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from fdllm.checkpoint.chat_template import render_chat
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.requests import (
    EvalRequest,
    check_room,
    check_scored,
    length_limit,
    request_key,
    until_strings,
    whole_blocks,
)
from fdllm.runs import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenizingLM(TemplateLM):  # type: ignore[misc] # lm-eval is untyped
    """The half of an lm-eval model that makes requests, and knows nothing of who answers.

    Sampling settings of a task's definition (``do_sample``, ``temperature``) are read and set
    aside: the run's :class:`~fdllm.core.config.Decoding` decides them, as it is what the record
    names. A length limit in the definition (``max_gen_toks``) takes precedence over the run's,
    unless ``run.evaluating.whole_blocks``.

    Args:
        run: how the task is asked, and decoded.
        tokenizer: the model's.
        max_positions: the longest sequence of the model, in tokens.

    Raises:
        UsageError: the tokenizer has no chat template or no end token, where the run names one.

    Attributes:
        decoding: the run's settings, with its end token.
        max_positions: as given.
    """

    def __init__(self, run: Run, tokenizer: PreTrainedTokenizerBase, max_positions: int) -> None:
        super().__init__()
        self.run = run
        self.tokenizer = tokenizer
        self._name, self.max_positions = run.model.name, max_positions
        if run.evaluating.chat_template and tokenizer.chat_template is None:
            raise UsageError(
                f"the tokenizer of model '{self._name}' has no chat template; run without one, or "
                "choose a model that was tuned for chat"
            )
        self.decoding, end = run.decoding, run.evaluating.stop_token
        if end is not None:
            token = tokenizer.get_vocab().get(end)
            if token is None:
                raise UsageError(
                    f"texts are to end at the token '{end}', which the tokenizer of model "
                    f"'{self._name}' does not have (its end token is '{tokenizer.eos_token}'); set "
                    "stop_token in [evaluation] or in a preset of your own"
                )
            self.decoding = run.decoding.model_copy(update={"stop_token": token})

    @property
    def eot_token_id(self) -> int | None:
        """The tokenizer's end-of-text token."""
        token: int | None = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int | None:
        """What an empty context becomes: the beginning-of-text token, else the end-of-text one."""
        token: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if token is None else token

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, fit for a file name."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,  # noqa: FBT001 - the harness's signature
    ) -> list[int]:
        """Tokens of a text; special tokens are added as the tokenizer does, but never twice."""
        if add_special_tokens is None and self._starts_with_prefix(string):
            add_special_tokens = False
        if add_special_tokens is None:
            return list(self.tokenizer.encode(string))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _starts_with_prefix(self, string: str) -> bool:
        prefix = self.prefix_token_id
        return prefix is not None and string.startswith(str(self.tokenizer.decode([prefix])))

    def apply_chat_template(
        self,
        chat_history: list[dict[str, str]],
        add_generation_prompt: bool = True,  # noqa: FBT001, FBT002 - the harness's signature
    ) -> str:
        """Messages to a prompt.

        Raises:
            FdllmError: as :func:`~fdllm.checkpoint.chat_template.render_chat`.
        """
        return render_chat(
            self.tokenizer, self._name, chat_history, add_generation_prompt=add_generation_prompt
        )

    def encode_pair(
        self, context: str, continuation: str, where: str
    ) -> tuple[list[int], list[int]]:
        """``tokens(context)`` and ``tokens(context + continuation)[len(tokens(context)):]``.

        No white space moves. An empty context becomes the tokenizer's first token (beginning or end
        of text). ``where`` is what an error calls the request.

        Raises:
            FdllmError: a token reaches over the boundary, no token is left to score, or the context
                is empty and the tokenizer names no token to stand for it.
        """
        if context:
            ahead, whole = self.tok_encode(context), self.tok_encode(context + continuation)
        else:
            if self.prefix_token_id is None:
                raise FdllmError(
                    f"{where}: the context is empty and the tokenizer of model '{self._name}' has "
                    "neither a beginning- nor an end-of-text token to stand for it"
                )
            ahead = [self.prefix_token_id]
            behind = self.tok_encode(continuation, add_special_tokens=False)
            whole = behind if behind[:1] == ahead else ahead + behind
        if whole[: len(ahead)] != ahead:
            raise FdllmError(
                f"{where}: {continuation!r} merges into the prompt's end {context[-20:]!r} in the "
                f"tokenizer of model '{self._name}', so no token begins where the answer does; a "
                "prompt must end where a token ends: drop the white space at its end, or wrap it "
                "in the chat template"
            )
        if not ahead or len(whole) == len(ahead):
            raise FdllmError(
                f"{where}: {continuation!r} behind {context[-20:]!r} leaves no token to score"
            )
        return ahead, whole[len(ahead) :]

    # --- from an instance to a request ------------------------------------------------------------

    def _text_request(self, instance: Instance, seen: Counter[str]) -> EvalRequest:
        """A prompt to be continued; ``seen`` counts this call's keys, to tell equal ones apart.

        Raises:
            FdllmError: it leaves no room for its answer, or an argument is unknown.
        """
        prompt, arguments = str(instance.args[0]), dict(instance.args[1])
        task, asked = str(instance.task_name), self.run.evaluating
        until = until_strings(arguments, task)
        length = length_limit(arguments, task) or self.decoding.max_new_tokens
        key, repeat = _numbered(seen, instance, "generate", arguments=arguments)
        tokens = tuple(self.tok_encode(prompt))
        if asked.whole_blocks:
            length = whole_blocks(self.decoding, len(tokens))
        return self._roomy(
            instance,
            key=key,
            tokens=tokens,
            until=() if asked.ignore_until else until,
            max_new_tokens=length,
            # The engine derives a row's seed from its prompt; equal prompts need another.
            seed=int(key[:15], 16) if repeat else None,
        )

    def _score_request(self, instance: Instance, seen: Counter[str]) -> EvalRequest:
        """A prompt and the target that is scored behind it.

        Raises:
            FdllmError: the two leave no room, or no token to score.
        """
        prompt, target = (str(text) for text in instance.args)
        key, _ = _numbered(seen, instance, "loglikelihood", target=target)
        ahead, behind = self.encode_pair(prompt, target, _where(instance))
        request = self._roomy(
            instance, key=key, tokens=tuple(ahead), target=target, target_tokens=tuple(behind)
        )
        check_scored(request, self.run.evaluating.max_prompt_tokens)
        return request

    def _window_requests(self, instance: Instance, seen: Counter[str]) -> list[EvalRequest]:
        """A whole document as targets, each behind the last token of the one before."""
        text = str(instance.args[0])
        first, tokens = self.encode_pair("", text, _where(instance))
        key, _ = _numbered(seen, instance, "loglikelihood_rolling", target=text)
        size = self.decoding.block_size
        longest = self.max_positions // size * size - 2  # behind a single token
        return [
            self._roomy(
                instance,
                key=f"{key}:{at}",
                tokens=(tokens[at - 1],) if at else tuple(first),
                target=text,
                target_tokens=tuple(tokens[at : at + longest]),
            )
            for at in range(0, len(tokens), longest)
        ]

    def _roomy(self, instance: Instance, **fields: Any) -> EvalRequest:  # noqa: ANN401 - its fields
        request = EvalRequest(
            task=str(instance.task_name),
            doc_id=int(instance.doc_id),
            index=int(instance.idx),
            doc=instance.doc,
            prompt=str(instance.args[0]),
            **fields,
        )
        check_room(request, self.decoding.block_size, self.max_positions)
        return request


def _where(instance: Instance) -> str:
    return f"task '{instance.task_name}', document {instance.doc_id}"


def _numbered(
    seen: Counter[str],
    instance: Instance,
    kind: str,
    **asked: Any,  # noqa: ANN401 - of the key
) -> tuple[str, int]:
    """A request's key, and which of several equal requests it is (0 for the first)."""
    first = request_key(instance, kind, **asked)
    repeat = seen[first]
    seen[first] += 1
    return (request_key(instance, kind, **asked, repeat=repeat) if repeat else first), repeat
