r"""The prompts of the published evaluation, where they differ from the harness's.

The published figures of GSM8K and MATH were measured with the harness's prompt, its last word
("Answer:", "Solution:") replaced by an instruction. The rule is applied where a task turns a
document into text, so worked examples carry it too and every logged prompt is the one the model
read. The braces are single: ``\boxed{}``. An earlier system sent ``\boxed{{}}`` (a format string
that nobody formatted), which is another prompt.

No torch and no harness here: the rule is part of a task's definition hash.
"""

from __future__ import annotations

from dataclasses import dataclass

from fdllm.errors import FdllmError

STEP_BY_STEP = r"Please reason step by step, and put your final answer within \boxed{}."


@dataclass(frozen=True)
class PromptRule:
    """Replace the words a question ends with.

    Attributes:
        ending: what the harness's text of a document ends with.
        instruction: what stands there instead.
    """

    ending: str
    instruction: str

    def apply(self, text: str) -> str:
        """The text of a document as it is sent.

        Raises:
            FdllmError: the text does not end with ``ending``: the harness's definition is another
                than this rule was written for.
        """
        if not text.endswith(self.ending):
            raise FdllmError(
                f"the harness's prompt ends with {text[-40:]!r} and not with {self.ending!r}; this "
                "version of lm-eval words the task differently: install the pinned one"
            )
        return text.removesuffix(self.ending) + self.instruction


PROMPT_RULES = {
    "gsm8k": PromptRule("Answer:", STEP_BY_STEP),
    "minerva_math": PromptRule("Solution:", STEP_BY_STEP),
}
"""Rules by task; every other task is sent as the harness words it."""
