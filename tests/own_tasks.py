"""Definitions of a user's own tasks, as they would write them."""

from __future__ import annotations

import json
from pathlib import Path

DOUBLES = """\
task: doubles
dataset_path: json
dataset_kwargs:
  data_files: {test: rows/doubles.jsonl}
test_split: test
output_type: generate_until
doc_to_text: "{{a}}+{{a}}"
doc_to_target: "{{a + a}}"
target_delimiter: ""
generation_kwargs: {until: [], max_gen_toks: 48}
filter_list:
  - name: last-line
    filter:
      - {function: regex, regex_pattern: "#### (\\\\d+)"}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
CHOICES = """\
task: which_double
include: doubles.yaml
output_type: multiple_choice
process_docs: !function shown.with_choices
doc_to_text: "{{a}}+{{a}}="
doc_to_choice: "{{choices}}"
doc_to_target: 0
generation_kwargs: null
filter_list: null
metric_list: null
"""
SHOWN = """\
def with_choices(rows):
    return rows.map(lambda row: {"choices": [str(2 * row["a"] + more) for more in (0, 1, -10)]})
"""
GROUP = """\
group: all_doubles
task:
  - group: inner
    task: [doubles]
  - task: more_doubles
aggregate_metric_list:
  - {metric: exact_match, weight_by_size: false, filter_list: last-line}
"""


def make_tasks(folder: Path, number: int = 12) -> Path:
    """A folder with a task that writes, one that ranks choices, and a group; without a Hub."""
    (folder / "rows").mkdir(parents=True)
    for name, first in (("doubles", 11), ("more", 40)):
        rows = "".join(json.dumps({"a": a}) + "\n" for a in range(first, first + number))
        (folder / f"rows/{name}.jsonl").write_text(rows)
        number //= 2
    (folder / "doubles.yaml").write_text(DOUBLES)
    more = DOUBLES.replace("doubles", "more_doubles", 1).replace("rows/doubles", "rows/more")
    (folder / "more_doubles.yaml").write_text(more)
    (folder / "which_double.yaml").write_text(CHOICES)
    (folder / "all_doubles.yaml").write_text(GROUP)
    (folder / "shown.py").write_text(SHOWN)
    return folder
