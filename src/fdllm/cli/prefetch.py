"""``fdllm prefetch``: fill the caches where there is a network, for nodes that have none."""

from __future__ import annotations

import argparse
from argparse import Namespace

from fdllm.cli.doctor import checkup_of, place_flags, show_findings
from fdllm.cli.request import read_request
from fdllm.doctor.examine import blocking
from fdllm.doctor.prefetch import prefetch


def prefetch_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``prefetch`` besides those that select runs."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    place_flags(parser)


def run_prefetch(args: Namespace) -> int:
    """Fetch, prove it offline, and answer with 1 where something is still missing."""
    # Fetching runs no program, so all tasks are meant where none is named.
    findings = prefetch(checkup_of(read_request(args), args))
    show_findings(findings, as_json=args.json)
    return int(bool(blocking(findings)))
