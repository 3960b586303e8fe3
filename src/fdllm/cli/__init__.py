"""The command line: ``fdllm eval | sweep | status | validate | report | new``."""

from fdllm.cli.main import main, main_eval

__all__ = ["main", "main_eval"]
