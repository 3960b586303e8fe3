"""``fdllm trace``: one document being decoded, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fdllm import strictjson
from fdllm.cli.options import Computing, flag
from fdllm.cli.output import complain, say
from fdllm.cli.request import read_request
from fdllm.errors import UsageError
from fdllm.plan import CellState, Planner, State
from fdllm.record.atomic import write_text
from fdllm.report.agreement import same_answers, tolerance_of

if TYPE_CHECKING:
    from fdllm.runs import Run
    from fdllm.trace.steps import Trace

_WIDE = 200  # columns of a log, which folds nothing


@dataclass(frozen=True, kw_only=True)
class TraceCommand(Computing):
    """Watch one document being decoded, step by step."""

    doc: str = flag(
        "the document's number, from 0 (0); SUBTASK:N where the task is a group",
        default="0",
        metavar="N",
    )
    html: str | None = flag("write the trace as one HTML page too, with a slider", metavar="PATH")
    staleness: bool = flag(
        "compute how far each reused value is from a fresh one; changes no token", default=False
    )

    def run(self) -> int:
        """Decode one document as its run does, and show every forward."""
        if len(self.task or ()) != 1 or len(self.config or ()) != 1:
            raise UsageError(
                "one trace needs one --task and one --config, for example --task tiny_arithmetic "
                "--config k2_middle --doc 3"
            )
        request = read_request(self)
        [run] = request.runs
        _check_estimator(request.planner, run)
        page = _page_path(self.html)
        trace = compute_trace(request.planner, run, self)
        _show(trace)
        remark = against_record(request.planner.state(run), trace)
        if remark is not None:
            say(remark)
        if page is not None:
            from fdllm.trace.page import render_page  # noqa: PLC0415

            write_text(page, render_page(trace))
            complain(f"wrote {page}")
        return 0


def compute_trace(planner: Planner, run: Run, options: TraceCommand) -> Trace:
    """Load the model and decode; torch and the harness come in here."""
    from fdllm.core.unmask import by_threshold  # noqa: PLC0415
    from fdllm.evaluate.adapter import LoadedModel  # noqa: PLC0415
    from fdllm.trace.document import DocumentName, trace_document  # noqa: PLC0415

    document = DocumentName.parse(options.doc)
    loaded = LoadedModel.load(run.model, options.threads)
    return trace_document(
        loaded.model,
        run,
        planner.strategy(run, loaded.n_layers),
        document,
        unmask=planner.experiment(run.experiment).unmask or by_threshold,
        staleness=options.staleness,
    )


def against_record(cell: CellState, trace: Trace) -> str | None:
    """Whether the run's own record says the same of this document; None where it says nothing.

    Texts must be equal, log-likelihoods to the tolerance of :mod:`fdllm.report.agreement`.
    """
    if cell.state is not State.DONE:
        return None
    sample = _sample(cell.paths.samples, trace)
    if sample is None:
        return None
    scores = [row.loglikelihood for row in trace.rows]
    if scores[0] is None:
        texts = [row.text for row in trace.rows]
        same = sample["output"] in (texts, texts[0])
    else:
        tolerance = tolerance_of([] if cell.summary is None else [cell.summary])
        same = same_answers(sample["output"], scores, tolerance)
    if same:
        return "the record of this run says the same of this document"
    return (
        f"the record of this run says otherwise of this document: {sample['output']!r}; was it "
        "computed on another machine, or under another data type?"
    )


def _sample(path: Path, trace: Trace) -> dict[str, Any] | None:
    """The document's line in ``samples.jsonl``."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            sample: dict[str, Any] = strictjson.loads(line)
            if (sample["task"], sample["doc_id"]) == (trace.task, trace.doc_id):
                return sample
    return None


def _check_estimator(planner: Planner, run: Run) -> None:
    scored = planner.task(run.task).kind == "loglikelihood"
    if scored and run.evaluating.scoring == "first-token":
        raise UsageError(
            "the first-token estimator takes one forward, so there is nothing to watch; use "
            "--scoring denoise"
        )


def _page_path(given: str | None) -> Path | None:
    """Where the page goes; checked before anything is computed."""
    if given is None:
        return None
    path = Path(given).expanduser()
    if path.is_dir():
        raise UsageError(f"--html names the folder '{given}'; name a file, for example trace.html")
    return path


def _show(trace: Trace) -> None:
    from fdllm.trace.terminal import show  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, _WIDE))
    show(trace, console)
