"""fdllm: can a block-diffusion language model skip layers, and what does it cost?

The names below are the stable Python interface. They load on first use, so that planning and
status on a login node never import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fdllm.core.config import Decoding
from fdllm.core.reuse import LayerPlan, LayerRun, NoReuse, PeriodicReuse, ReuseStrategy

if TYPE_CHECKING:
    from fdllm.core.checkpoint import Model
    from fdllm.core.sampler import Generation, generate
    from fdllm.core.scorer import Score, score
    from fdllm.experiment import load_strategy
    from fdllm.fast.accelerators import load_model
    from fdllm.report.frames import results, samples

__version__ = "0.1.0"

_LAZY = {
    "Generation": "fdllm.core.sampler",
    "Model": "fdllm.core.checkpoint",
    "Score": "fdllm.core.scorer",
    "generate": "fdllm.core.sampler",
    "load_model": "fdllm.fast.accelerators",
    "load_strategy": "fdllm.experiment",
    "results": "fdllm.report.frames",
    "samples": "fdllm.report.frames",
    "score": "fdllm.core.scorer",
}

__all__ = [
    "Decoding",
    "Generation",
    "LayerPlan",
    "LayerRun",
    "Model",
    "NoReuse",
    "PeriodicReuse",
    "ReuseStrategy",
    "Score",
    "generate",
    "load_model",
    "load_strategy",
    "results",
    "samples",
    "score",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module holds
    if name not in _LAZY:
        raise AttributeError(f"module 'fdllm' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)
