"""Tokens and templates as lm-eval's own causal models have them.

Contexts and continuations are tokenised by the base class's ``_encode_pair``: trailing white space
of the context moves into the continuation, and the continuation's tokens are what the whole text
has behind the context's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import TemplateError
from lm_eval.api.model import TemplateLM

from fdllm.errors import FdllmError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenizingLM(TemplateLM):  # type: ignore[misc] # lm-eval is untyped
    """The half of an lm-eval model that knows the tokenizer and nothing of the engine.

    Attributes:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._name = name

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
            FdllmError: the template refuses them, say for their system message. Dropping that
                message would drop the task's description, so it is not done.
        """
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )
        except (TemplateError, ValueError) as error:
            roles = ", ".join(message["role"] for message in chat_history)
            raise FdllmError(
                f"the chat template of model '{self._name}' refuses messages of roles {roles}: "
                f"{error}; run without a chat template"
            ) from None

    def encode_pair(
        self, context: str, continuation: str, where: str
    ) -> tuple[list[int], list[int]]:
        """Tokens of a context and of the continuation behind it, as lm-eval splits them.

        An empty context becomes the tokenizer's first token (beginning or end of text).

        Args:
            context: what stands ahead.
            continuation: what is scored.
            where: what to call the request in an error.

        Raises:
            FdllmError: the continuation merges into the context and leaves no token to score, or
                the context is empty and the tokenizer names no token to stand for it.
        """
        if context:
            ahead, behind = self._encode_pair(context, continuation)
        else:
            if self.prefix_token_id is None:
                raise FdllmError(
                    f"{where}: the context is empty and the tokenizer of model '{self._name}' has "
                    "neither a beginning- nor an end-of-text token to stand for it"
                )
            ahead = [self.prefix_token_id]
            behind = self.tok_encode(continuation, add_special_tokens=False)
            if behind[:1] == ahead:
                behind = behind[1:]
        if not ahead or not behind:
            raise FdllmError(
                f"{where}: {continuation!r} behind {context[-20:]!r} leaves no token to score; "
                "the tokenizer merges it into the context"
            )
        return ahead, behind
