"""``fdllm trace``: one document being decoded, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fdllm.cli.options import Computing, flag, new_file
from fdllm.cli.output import complain, console, say
from fdllm.cli.pace import check_pace
from fdllm.cli.request import read_request
from fdllm.errors import UsageError
from fdllm.plan import RECORDED, CellState, Planner
from fdllm.record.atomic import write_text
from fdllm.report.agreement import same_answers, tolerance_of
from fdllm.report.records import Record

if TYPE_CHECKING:
    from fdllm.runs import Run
    from fdllm.trace.steps import Trace


@dataclass(frozen=True, kw_only=True)
class TraceCommand(Computing):
    """Watch one document being decoded, step by step."""

    doc: str = flag(
        "the document's number, from 0 (0); SUBTASK:N where the task is a group",
        default="0",
        metavar="N",
    )
    html: Path | None = flag(
        "write the trace as one HTML page too, with a slider", type=new_file, metavar="PATH"
    )
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
        scored = request.planner.task(run.task).kind == "loglikelihood"
        if scored and run.evaluating.scoring == "first-token":
            raise UsageError(
                "the first-token estimator takes one forward, so there is nothing to watch; use "
                "--scoring denoise"
            )
        check_pace(request, [run], 1, fewer="")
        trace = self._decode(request.planner, run)
        from fdllm.trace.terminal import show  # noqa: PLC0415 - numpy

        show(trace, console(200))
        if remark := against_record(request.planner.state(run), trace):
            say(remark)
        if self.html is not None:
            from fdllm.trace.page import render_page  # noqa: PLC0415

            write_text(self.html, render_page(trace))
            complain(f"wrote {self.html}")
        return 0

    def _decode(self, planner: Planner, run: Run) -> Trace:
        """Load the model and decode; torch and the harness come in here."""
        from fdllm.core.unmask import by_threshold  # noqa: PLC0415
        from fdllm.evaluate.adapter import LoadedModel  # noqa: PLC0415
        from fdllm.trace.document import DocumentName, trace_document  # noqa: PLC0415

        document = DocumentName.parse(self.doc)
        loaded = LoadedModel.load(run.model, self.threads)
        return trace_document(
            loaded.model,
            run,
            planner.strategy(run, loaded.n_layers),
            document,
            unmask=planner.experiment(run.experiment).unmask or by_threshold,
            staleness=self.staleness,
        )


def against_record(cell: CellState, trace: Trace) -> str | None:
    """Whether the run's own record says the same of this document; None where it says nothing.

    Texts must be equal, log-likelihoods to the tolerance of :mod:`fdllm.report.agreement`.
    """
    if cell.state not in RECORDED or cell.summary is None:
        return None
    record = Record(cell.paths.folder, cell.summary)
    sample = record.texts.get((trace.task, trace.doc_id))
    if sample is None:
        return None
    scores = [row.loglikelihood for row in trace.rows]
    if scores[0] is None:
        texts = [row.text for row in trace.rows]
        same = sample["output"] in (texts, texts[0])
    else:
        tolerance = tolerance_of([cell.summary])
        same = same_answers(sample["output"], scores, tolerance)
    if same:
        return "the record of this run says the same of this document"
    return (
        f"the record of this run says otherwise of this document: {sample['output']!r}; was it "
        "computed on another machine, or under another data type?"
    )
