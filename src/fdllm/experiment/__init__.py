"""Experiments: folders ``experiments/NN_name`` with the code and the grid of one study."""

from fdllm.experiment.load import (
    CODE_FILE,
    Experiment,
    create_experiment,
    list_experiments,
    load_experiment,
    load_strategy,
)
from fdllm.experiment.settings import Settings, read_settings

__all__ = [
    "CODE_FILE",
    "Experiment",
    "Settings",
    "create_experiment",
    "list_experiments",
    "load_experiment",
    "load_strategy",
    "read_settings",
]
