"""The commands by name: what each is for, what it is given, and what does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fdllm.cli.bench import BenchOptions, run_bench
from fdllm.cli.compare import EPILOG, run_compare
from fdllm.cli.doctor import DoctorOptions, PrefetchOptions, run_doctor, run_prefetch
from fdllm.cli.export import ExportOptions, run_export
from fdllm.cli.grade import GradeOptions, run_grade
from fdllm.cli.job import JobOptions, run_job
from fdllm.cli.new import NewOptions, run_new
from fdllm.cli.options import Command, CompareOptions
from fdllm.cli.prompts import PromptsOptions, run_prompts
from fdllm.cli.report import ReportOptions, run_report
from fdllm.cli.selftest import SelftestOptions, run_selftest
from fdllm.cli.slurm import SweepOptions
from fdllm.cli.sweep import EvalOptions, ValidateOptions, run_eval, run_sweep, run_validate
from fdllm.cli.trace import TraceOptions, run_trace
from fdllm.cli.watch import StatusOptions, run_status

COMMANDS: Mapping[str, Command[Any]] = {
    "eval": Command("one run: one task, one config", EvalOptions, run_eval),
    "sweep": Command("a grid of runs: only what is missing", SweepOptions, run_sweep),
    "validate": Command(
        "the whole grid on the embedded model, ten rows a task, offline",
        ValidateOptions,
        run_validate,
    ),
    "status": Command("the state of every cell", StatusOptions, run_status),
    "report": Command(
        "write results.md and an HTML report from the records, or check them",
        ReportOptions,
        run_report,
    ),
    "export": Command(
        "write a folder that stands by itself: records, report, versions", ExportOptions, run_export
    ),
    "doctor": Command(
        "what is ready for a run, what is not, and what to do about it", DoctorOptions, run_doctor
    ),
    "prefetch": Command(
        "fill the caches, for nodes without a network, and prove it offline",
        PrefetchOptions,
        run_prefetch,
    ),
    "prompts": Command(
        "what a run would send, without its model's weights", PromptsOptions, run_prompts
    ),
    "grade": Command("grade anyone's answers as a run's are graded", GradeOptions, run_grade),
    "trace": Command("watch one document being decoded, step by step", TraceOptions, run_trace),
    "selftest": Command(
        "is every data type and path of this device right, against float32 on a CPU",
        SelftestOptions,
        run_selftest,
    ),
    "bench": Command(
        "how fast decoding is here, against its floor and its limits", BenchOptions, run_bench
    ),
    "compare": Command(
        "is config B as good as config A, with an exit code", CompareOptions, run_compare, EPILOG
    ),
    "new": Command(
        "begin an experiment from the template or from another one", NewOptions, run_new
    ),
    "job": Command("", JobOptions, run_job),
}
