"""What planning needs to know of a task. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fdllm.errors import UsageError


@dataclass(frozen=True)
class TaskFacts:
    """A task, as far as a plan goes."""

    kind: Literal["generate", "loglikelihood"]  # what the task asks of a model
    definition: str  # content hash of its definition
    # new tokens of an answer at most, where the experiment states no number
    max_new_tokens: int = 512
    one_token: bool = False  # the answers that it scores are one token each
    headline: str = ""  # the figure that goes into tables; empty where a user is to name it
    metrics: tuple[str, ...] = ()  # what it may be; empty where nobody asks

    def check_headline(self, task: str, given: str | None) -> None:
        """A task has one headline, and nobody guesses it.

        Raises:
            UsageError: none is known or named, or the task has none of that name.
        """
        if not self.metrics or (given or self.headline) in self.metrics:
            return
        known = ", ".join(self.metrics)
        raise UsageError(
            f"task '{task}' has no figure '{given}'; name one of {known}"
            if given
            else f"task '{task}' has several figures, and which one goes into tables is yours to "
            f"say: --headline {self.metrics[0]}, or headline in [evaluation]; they are {known}"
        )
