r"""The prompts of the published evaluation, where they differ from the harness's.

The published figures of GSM8K and MATH were measured with the harness's prompt, its cue ("Answer:",
"Solution:") replaced by an instruction: at every occurrence in the whole prompt, also inside a
question or a worked answer. By default only the cue itself is replaced, the words a question ends
with. Either way every logged prompt is the one the model read. The braces are single: ``\boxed{}``.
An earlier system sent ``\boxed{{}}`` (a format string that nobody formatted): another prompt.

No torch and no harness here: the rule is part of a task's definition hash.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fdllm.errors import FdllmError
from fdllm.runs import Instruction

STEP_BY_STEP = r"Please reason step by step, and put your final answer within \boxed{}."


@dataclass(frozen=True)
class PromptRule:
    """Replace the words a question ends with.

    Attributes:
        ending: what the harness's text of a document ends with.
        instruction: what stands there instead.
        everywhere: whether it stands in for every other occurrence in a prompt too.
    """

    ending: str
    instruction: str
    everywhere: bool = False

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
        if self.everywhere:
            return self.apply_everywhere(text)
        return text.removesuffix(self.ending) + self.instruction

    def apply_everywhere(self, prompt: str) -> str:
        """A whole prompt, every occurrence replaced."""
        return prompt.replace(self.ending, self.instruction)


PROMPT_RULES = {
    "gsm8k": PromptRule("Answer:", STEP_BY_STEP),
    "minerva_math": PromptRule("Solution:", STEP_BY_STEP),
}
"""Rules by task; every other task is sent as the harness words it."""


def prompt_rule(task: str, instruction: Instruction) -> PromptRule | None:
    """The rule for a task's prompts; None where they are the harness's."""
    rule = PROMPT_RULES.get(task)
    if rule is None or instruction == "none":
        return None
    return replace(rule, everywhere=instruction == "everywhere")
