"""Our evaluation beside that of lm-eval's own model: ``python parity.py '<json>' OUT``.

In blocks of one token a block-diffusion model is a causal one: every token is the argmax of the
logits ahead of it. Both sides read the same checkpoint, a random Qwen2 with Qwen's vocabulary.
Each case is a mapping of :func:`run`'s arguments; see :mod:`hub.case` for why it is a process.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import Qwen2Config, Qwen2ForCausalLM

from fdllm import Model, load_model
from fdllm.core.config import Decoding, Estimator
from fdllm.core.reuse import NoReuse
from fdllm.evaluate import adapter
from fdllm.evaluate.adapter import LoadedModel
from fdllm.evaluate.boxed import METRIC
from fdllm.evaluate.documents import LoadedTask, load_run, load_task, muted, quiet
from fdllm.evaluate.samples import plain
from fdllm.evaluate.tasks import definition_paths
from fdllm.runs import Evaluating, Instruction, Run
from helpers import shared_folder
from hub.checkpoint import MemoryStore, Tally
from hub.lm import run_of
from models import SPEC, hub_shape

END = 151645
"""``<|im_end|>``, the tokenizer's end token."""
DECODING = Decoding(block_size=1, small_block_size=1, max_new_tokens=20)


def checkpoint(folder: Path) -> Path:
    """A random Qwen2 with the real vocabulary, and its tokenizer; the same one every time.

    The layers outweigh the embedding, or a tied head would repeat the token it was given; the end
    token's row is long, so that some texts end with it.
    """
    shape = replace(
        SPEC,
        vocab_size=151936,
        hidden_size=64,
        num_layers=2,
        intermediate_size=128,
        max_positions=16384,
    )
    config = Qwen2Config(  # type: ignore[no-untyped-call]
        **hub_shape(shape),
        rope_theta=1e6,
        tie_word_embeddings=True,
        eos_token_id=END,
        bd_size=1,
    )
    model = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.normal_(0.0, 0.3, generator=generator)
    model.model.embed_tokens.weight.data[END] *= 3.0
    model.save_pretrained(folder)
    # transformers takes a tokenizer beside its own version's number for a broken one of Mistral's.
    path = folder / "config.json"
    path.write_text(path.read_text().replace(transformers.__version__, "4.53.1"))
    for path in (shared_folder() / "qwen_tokenizer").iterdir():
        shutil.copy(path, folder)
    return folder


def own_tasks(task: str) -> TaskManager:
    """The harness's own definition of a task, and none of its others, whose reading takes long."""
    folders = {path if path.is_dir() else path.parent for path in definition_paths(task)}
    return TaskManager(include_path=sorted(map(str, folders)), include_defaults=False)


@cache
def whole_mmlu() -> LoadedTask:
    """All 57 subjects, once: they take seconds, and each case takes a few of them."""
    return load_task("mmlu", Evaluating(num_fewshot=5))


@dataclass(frozen=True)
class Sides:
    """The same checkpoint, loaded by us and by the harness."""

    ours: Model
    theirs: HFLM

    @classmethod
    def load(cls, folder: Path) -> Sides:
        model = load_model(folder, "cpu", "float32")
        return cls(model, HFLM(str(folder), device="cpu", dtype="float32", batch_size=1))

    def run(
        self,
        task: str,
        *,
        num_fewshot: int = 0,
        chat_template: bool = True,
        instruction: Instruction = "none",
        scoring: Estimator = "denoise",
        limit: int = 1,
        leaves: list[str] | None = None,
        until: list[str] | None = None,
    ) -> dict[str, Any]:
        """Evaluate on both sides, and hand back what each found.

        Args:
            task: the task.
            num_fewshot: worked examples.
            chat_template: whether prompts are wrapped.
            instruction: the rule of our prompts. With ``none`` the harness runs its own task;
                else its model is given the prompts that our task makes.
            scoring: our estimator.
            limit: documents of each leaf task.
            leaves: of a group, the leaf tasks to run; None is all.
            until: other strings that end a text than the definition's.
        """
        changes: dict[str, Any] = {"max_gen_toks": DECODING.max_new_tokens}
        if until is not None:
            changes["until"] = until

        def load(run: Run) -> LoadedTask:
            loaded = whole_mmlu() if run.task == "mmlu" else load_run(run)
            kept = {k: v for k, v in loaded.leaves.items() if leaves is None or k in leaves}
            for leaf in kept.values():
                leaf.set_config("num_fewshot", run.evaluating.num_fewshot)
                if leaf.OUTPUT_TYPE == "generate_until":
                    leaf.set_config("generation_kwargs", changes, update=True)
            return replace(loaded, leaves=kept)

        run = run_of(
            task,
            DECODING,
            limit=limit,
            num_fewshot=num_fewshot,
            chat_template=chat_template,
            instruction=instruction,
            scoring=scoring,
            batch_size=2,
        )
        asked = run.evaluating
        with patch.object(adapter, "load_run", load):
            ours = LoadedModel(self.ours).evaluate(run, MemoryStore(), Tally(), strategy=NoReuse())
        settings: dict[str, Any] = {
            "limit": limit,
            "bootstrap_iters": 0,
            "apply_chat_template": chat_template,
            "fewshot_as_multiturn": asked.turns,
        }
        with quiet(), muted():
            if instruction != "none":
                loaded = load(run)
                tasks = {"tasks": loaded.leaves, "groups": loaded.groups}
                theirs = evaluator.evaluate(lm=self.theirs, task_dict=tasks, **settings)
            else:
                theirs = evaluator.simple_evaluate(
                    self.theirs,
                    tasks=leaves or [task],
                    task_manager=own_tasks(task),
                    num_fewshot=num_fewshot,
                    gen_kwargs=changes,
                    **settings,
                )
        return {
            "ours": {
                "results": metrics_of(ours.results["results"]),
                "samples": [our_sample(sample) for sample in ours.samples],
            },
            "theirs": {
                "results": metrics_of(theirs["results"]),
                "samples": [
                    self.their_sample(name, filtered)
                    for name, samples in sorted(theirs["samples"].items())
                    for filtered in by_document(samples)
                ],
            },
        }

    def cut(self, task: str, **settings: Any) -> dict[str, Any]:
        """As :meth:`run`, with ``until`` strings that do occur: pieces of free texts."""
        free = self.run(task, **settings)["ours"]["samples"]
        texts = [sample["output"] for sample in free]
        until = [text[len(text) // 2 :][:2] for text in texts]
        return self.run(task, **settings, until=until) | {"until": until, "free": texts}

    def their_sample(self, name: str, filtered: list[Mapping[str, Any]]) -> dict[str, Any]:
        """One document's samples, one a filter, in the form of :func:`our_sample`."""
        first = filtered[0]
        pairs = [tuple(arguments) for arguments in first["arguments"]]
        answers = [response for (response,) in first["resps"]]
        found = {
            "task": name,
            "doc_id": first["doc_id"],
            "prompt": pairs[0][0],
            "output": answers[0],
            "metrics": {
                f"{metric},{sample['filter']}": plain(sample[metric])
                for sample in filtered
                for metric in sample["metrics"]
                if metric != METRIC
            },
        }
        if isinstance(answers[0], tuple):
            found["output"] = [value for value, _ in answers]
            found["moved"] = self.moved(pairs[0][0])
        return found

    def moved(self, context: str) -> tuple[str, float]:
        """What the harness moves from a prompt into all its targets, and log p of that.

        It scores a prompt's last white space with the target; we score the target alone.
        """
        ahead = context.rstrip()
        space = context.removeprefix(ahead)
        if not space:
            return "", 0.0
        [(value, _)] = self.theirs.loglikelihood(
            [Instance("loglikelihood", {}, (ahead, space), 0)], disable_tqdm=True
        )
        return space, value


def by_document(samples: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The harness's samples, one a document and filter, document by document."""
    found: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        found[sample["doc_id"]].append(sample)
    return [found[doc_id] for doc_id in sorted(found)]


def our_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What both sides tell of a document."""
    names = ("task", "doc_id", "prompt", "output", "finish")
    figures = sample["metrics"].items()
    return {name: sample[name] for name in names} | {
        "metrics": {name: value for name, value in figures if not name.startswith(METRIC)}
    }


def metrics_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Metrics of every task and group, but for our own."""
    return {
        name: {
            key: value
            for key, value in plain(found).items()
            if "," in key and not key.startswith(METRIC)
        }
        for name, found in results.items()
    }


if __name__ == "__main__":
    cases, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    sides = Sides.load(checkpoint(out.with_name("model")))
    found = [sides.cut(**case) if case.pop("cut", False) else sides.run(**case) for case in cases]
    out.write_text(json.dumps(found), encoding="utf-8")
