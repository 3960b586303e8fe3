"""Entry points: arguments in, exit code out, one line for whatever went wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from fdllm.cli.commands import COMMANDS
from fdllm.cli.output import complain
from fdllm.cli.parser import build_parser
from fdllm.cluster.signals import Terminated
from fdllm.errors import FdllmError, first_line

INTERRUPTED = 130
TERMINATED = 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what stands behind ``fdllm``; None takes the process's own.

    Returns:
        0 done, 1 something failed, 2 the request makes no sense, 130 interrupted, 143 terminated.
    """
    args = build_parser(COMMANDS).parse_args(arguments)
    try:
        return COMMANDS[args.command](args)
    except FdllmError as error:
        if args.debug:
            traceback.print_exc()
        else:
            complain(f"fdllm {args.command}: {error}")
        return error.exit_code
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        complain(f"fdllm {args.command}: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `fdllm status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            raise
        complain(
            f"fdllm {args.command}: unexpected {type(error).__name__}: {first_line(error)} "
            "(--debug shows where)"
        )
        return 1


def main_eval(arguments: Sequence[str] | None = None) -> int:
    """``eval`` alone is ``fdllm eval``."""
    return main(["eval", *(sys.argv[1:] if arguments is None else arguments)])
