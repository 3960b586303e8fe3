"""Experiments: folders ``experiments/NN_name`` with the code and the grid of one study."""

from fdllm.experiment.load import (
    Experiment,
    create_experiment,
    list_experiments,
    load_experiment,
    load_strategy,
)

__all__ = [
    "Experiment",
    "create_experiment",
    "list_experiments",
    "load_experiment",
    "load_strategy",
]
