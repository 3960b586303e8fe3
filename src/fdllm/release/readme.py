"""``README.md`` of a release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fdllm.record.summary import Summary


def readme(
    experiment: str,
    runs: Mapping[str, Summary],
    remarks: Sequence[str],
    version: str,
    *,
    sums: str,
) -> str:
    """What the release holds, what it lacks, and how to check it."""
    lines = [
        f"# Records of {experiment}",
        "",
        f"Written by `fdllm export` (fdllm {version}). `results/` holds the runs: figures,",
        "counters, guards and provenance in `summary.json`, one line a document in",
        "`samples.jsonl`, one line an answer in `journal.jsonl`, the harness's own results in",
        "`results.json`, and the report as one HTML file. `experiments/` holds the code and the",
        "settings behind them.",
        "`ro-crate-metadata.json` describes the files to machines.",
        "",
        "## Check it",
        "",
        "```bash",
        f"sha256sum -c {sums}",
        "pip install -c requirements.lock fdllm",
        f"FDLLM_ROOT=$PWD fdllm report --check --experiment {experiment}   # every figure again",
        "python -c 'import fdllm; print(fdllm.results(root=\".\"))'      # as a data frame",
        "```",
        "",
        "## Runs",
        "",
        "| experiment | task | limit | preset | model | config | metric | value | rows | digest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s.experiment} | {s.task} | {s.limit or 'all'} | {s.preset_words or 'none'} | "
        f"{s.model} | {s.config} | {s.headline.metric} | {s.headline.value:.4f} | "
        f"{s.headline.num_samples} | {s.fingerprint.digest} |"
        for s in runs.values()
    ]
    if remarks:
        lines += ["", "## Mind", "", *(f"- {remark}" for remark in remarks)]
    return "\n".join(lines) + "\n"
