"""The harness by itself: a task in its plain form, its own evaluator and its own default seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase

from fdllm.evaluate.tasks import definition_paths


@dataclass
class Listener(LM):  # type: ignore[misc] # lm-eval is untyped
    """A model that answers nothing and keeps the prompts."""

    tokenizer: PreTrainedTokenizerBase
    heard: list[tuple[str, int, int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def tokenizer_name(self) -> str:
        return "plain"

    def apply_chat_template(
        self,
        chat_history: list[dict[str, str]],
        add_generation_prompt: bool = True,
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self._hear(requests)
        return [""] * len(requests)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self._hear(requests)
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError

    def _hear(self, requests: list[Instance]) -> None:
        self.heard += [
            (str(one.task_name), int(one.doc_id), int(one.idx), str(one.args[0]))
            for one in requests
        ]


def own_tasks(task: str) -> TaskManager:
    """The harness's own definition of a task, and none of its others, whose reading takes long."""
    folders = {path if path.is_dir() else path.parent for path in definition_paths(task)}
    return TaskManager(include_path=sorted(map(str, folders)), include_defaults=False)


def prompts_of_the_harness(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_fewshot: int,
    limit: int | None,
    chat: bool,
) -> list[tuple[str, int, int, str]]:
    """``(leaf, document, request, prompt)`` of all that ``lm_eval`` would send, sorted."""
    listener = Listener(tokenizer)
    settings: dict[str, Any] = {"apply_chat_template": True, "fewshot_as_multiturn": True}
    evaluator.simple_evaluate(
        listener,
        tasks=[task],
        num_fewshot=num_fewshot,
        limit=limit,
        bootstrap_iters=0,
        task_manager=own_tasks(task),
        **(settings if chat else {}),
    )
    return sorted(listener.heard)
