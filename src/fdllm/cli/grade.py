"""``fdllm grade``: anyone's answers, by the filters and metrics of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from fdllm.cli.options import Consent, flag
from fdllm.cli.output import say, say_json
from fdllm.cli.request import read_request
from fdllm.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class GradeCommand(Consent):
    """Grade anyone's answers as a run's are graded."""

    answers: Path = flag(
        'a line a document: {"doc_id": 0, "text": "..."}, and "task" (the subtask) where the '
        "task is a group; documents without an answer are left out",
        required=True,
        metavar="FILE",
    )
    json: bool = flag("print JSON", default=False)

    def run(self) -> int:
        """Grade a file; no model is loaded."""
        if len(self.task or ()) != 1:
            raise UsageError("answers belong to one task: --task gsm8k --answers FILE, say")
        request = read_request(self, weights=False)
        from fdllm.evaluate.grading import grade  # noqa: PLC0415 - the harness: seconds

        run = request.runs[0]
        found = grade(run, self.answers)
        if self.json:
            say_json(asdict(found))
            return 0
        say(f"{run.task}: {found.metric} {found.value:.4f} over {found.num_samples} documents")
        for name, value in found.metrics.items():
            if name != found.metric:
                say(f"  {name} {value:.4f}")
        return 0
