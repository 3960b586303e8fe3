"""The command line; :mod:`fdllm.cli.main` lists the commands."""

from fdllm.cli.main import main, main_eval

__all__ = ["main", "main_eval"]
