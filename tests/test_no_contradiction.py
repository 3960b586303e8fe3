"""A report read back as a reader has it: every number that stands twice says the same both times.

And no word of speed stands anywhere without a claim of the timing study behind it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cells import write_study
from fdllm.criteria import Criteria
from fdllm.record.paths import Layout
from fdllm.report.build import Report, Section, build_report
from fdllm.report.html import render_html
from fdllm.report.page_tables import alternative_table, grid_table
from fdllm.report.records import Record, load_record
from fdllm.report.report_text import notices, summary_sentence
from fdllm.report.results_md import render_results
from made_up import Invented, baseline_grid, write_grid

INTERVAL = re.compile(r"[+-]?\d+\.\d+(?: %| points)? \[[^\]]+\]")
FLOOR = re.compile(r"oise floor (\d+\.\d)")
CRITERIA = Criteria(max_accuracy_drop=0.02, min_speedup=1.05)
Row = dict[str, str]


class Tables(HTMLParser):
    """The tables of a page by the id of their caption, and what stands between the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.words: list[str] = []
        self._rows: list[list[str]] = []
        self._silent, self._inside = 0, False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in ("style", "script")
        if tag == "table":
            self._rows = self.tables.setdefault(str(dict(attrs)["aria-labelledby"]), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("style", "script")
        self._inside = self._inside and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        self.words.append(data)
        if self._inside:
            self._rows[-1][-1] += data.replace("\xa0", " ")

    def named(self, key: str) -> dict[str, Row]:
        """A table's rows by their first text."""
        heads, *rows = self.tables[key]
        return {row[0]: dict(zip(heads, row, strict=True)) for row in rows}


def markdown_tables(section: str) -> list[dict[str, Row]]:
    """The tables of a section of Markdown, rows by their first text."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        heads, _, *rows = ([c.strip() for c in r.strip("|").split("|")] for r in block.split("\n"))
        named = {row[0]: dict(zip(heads, row, strict=True)) for row in rows if row != [""]}
        found.append(named)
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two tasks with their studies, and the thresholds beside the first."""
    results = tmp_path_factory.mktemp("records") / "results"

    def write(cells: list[Invented], **options: Any) -> tuple[Record, ...]:
        return tuple(load_record(p.folder) for p in write_grid(results, cells, **options))

    names = ("t0.95", "t0.95_again", "t0.50")
    curve = [Invented(n, threshold=0.5 if n == "t0.50" else 0.95) for n in names]
    write_study(write(curve, experiment="05_threshold", num_docs=120), {"t0.50": 0.75})
    tables = [write(baseline_grid(), num_docs=120), write(baseline_grid(), task="mmlu")]
    write_study(tables[0], {"k2_first": 0.88, "k3_last": 0.7, "k3_first": 1.2})
    write_study(tables[1], {"k2_first": 0.95})
    sections = [Section(table, title=table[0].task) for table in tables]
    layout = Layout.of(results.parent, results)
    return build_report("00_baseline", "Layer reuse baseline", CRITERIA, sections, layout)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_html(report)


@pytest.fixture(scope="module")
def embedded(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page)
    assert found is not None
    return dict(json.loads(found[1]))


@pytest.fixture(scope="module")
def markdown(report: Report) -> list[str]:
    """``results.md``: what stands ahead of the tasks, then each task."""
    return re.split(r"^## (?=gsm8k|mmlu)", render_results(report, "--task x"), flags=re.MULTILINE)


def shown(estimate: dict[str, float], scale: float, form: str) -> str:
    value, low, high = (f"{scale * estimate[end]:{form}}" for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


@pytest.mark.parametrize("at", [0, 1])
def test_what_stands_twice_agrees(
    at: int, page: str, embedded: dict[str, Any], markdown: list[str]
) -> None:
    parsed, figures, section = Tables(page), embedded["tables"][at], markdown[at + 1]
    key = figures["key"]
    grid, again = parsed.named(f"{key}-figures"), markdown_tables(section)[0]
    assert grid == again, "the page's table and that of results.md"
    pairs, against = figures["times"]["pairs"], figures["against"]
    wide, narrow = (
        re.search(rf'<desc id="{key}-scatter-{size}-text">(.+?)</desc>', page)
        for size in ("wide", "narrow")
    )
    assert wide is not None
    assert narrow is not None
    assert wide[1] == narrow[1]
    base = next(cell for cell in figures["cells"] if cell["name"] == figures["baseline"])
    saved = parsed.named(f"{key}-saved")
    for cell in figures["cells"]:
        row = grid[cell["name"]]
        assert row["Accuracy [95 %]"].startswith(f"{100 * cell['accuracy']:.1f} % [")
        assert cell["num_samples"] == base["num_samples"]
        if cell["reuses"]:
            assert saved[cell["name"]]["Skipped"] == f"{100 * cell['saved_share']:.1f} %"
        if cell is base:
            assert (row["Change [95 %]"], row["Time by k=1 [95 %]"], row["Claim"]) == ("", "", "")
            continue
        found, pair = against[cell["name"]], pairs[cell["name"]]
        change = shown(found["difference"], 100, "+.1f")
        assert row["Change [95 %]"] == change
        assert row["Time by k=1 [95 %]"] == shown(pair["ratio"], 1, ".3f")
        assert row["Claim"] == ("collapsed" if found["collapsed"] else pair["claim"])
        made = found["made"]
        heads = {"Layer calls": "layer_calls", "FLOPs": "flops", "Bytes": "bytes"}
        for head, name in heads.items():
            value = "" if made[name] is None else f"{made[name]:.2f}"
            assert row[f"{head} by k=1"] == value
        points = change.replace(" [", " points [")
        assert f"{cell['name']}: {points} at {row['Time by k=1 [95 %]']} of the time" in wide[1]


@pytest.mark.parametrize("at", [0, 1])
def test_the_sentence_says_what_the_tables_show(
    at: int, page: str, embedded: dict[str, Any], markdown: list[str]
) -> None:
    parsed, figures, section = Tables(page), embedded["tables"][at], markdown[at + 1]
    key, lines = figures["key"], section.split("\n")
    pairs, against = figures["times"]["pairs"], figures["against"]
    base = next(cell for cell in figures["cells"] if cell["name"] == figures["baseline"])
    sentence = next(line for line in lines if line.startswith(f"{base['name']} reaches "))
    assert sentence in "".join(parsed.words)
    assert f"reaches {100 * base['accuracy']:.1f} % on {base['num_samples']} documents" in sentence
    others = [one for one in against.values() if not one["same_computation"]]
    verdicts = Counter(one["verdict"] for one in others)
    assert f"of {len(others)} other configs " in sentence
    words = {"hold that": "same-or-better", "lose some": "worse", "cannot be told": "cannot-tell"}
    told = {
        verdict: int(found[1])
        for word, verdict in words.items()
        if (found := re.search(rf"(\d+) {word}", sentence))
    }
    assert told == verdicts
    faster = [
        pairs[one["b"]] for one in others
        if pairs[one["b"]]["claim"] == "faster" and not one["collapsed"]
    ]  # fmt: skip
    if faster:
        best = min(faster, key=lambda pair: pair["ratio"]["value"])
        change = f"{100 * against[best['b']]['difference']['value']:+.1f} points"
        time = shown(best["ratio"], 1, ".3f")
        said = f"the fastest, {best['b']}, takes {time} of {base['name']}'s time at {change}"
        assert said in sentence
    else:
        assert "none is shown to be faster" in sentence

    # one floor
    floors = {*FLOOR.findall(section), *FLOOR.findall(_part(page, key))}
    assert floors == {f"{100 * figures['times']['floor']:.1f}"}
    assert {f"{num} rows" for num in re.findall(r"(\d+) rows\.", section)} == {
        f"{base['num_samples']} rows"
    }


def _part(page: str, key: str) -> str:
    """The section of one task, without the figures that programs read."""
    return page[page.index(f'<section id="{key}"') :].partition("</section>")[0]


def test_the_criteria_are_judged_by_the_figures_that_the_tables_show(page: str) -> None:
    """Every interval of the criteria's table stands in the row of its config."""
    parsed = Tables(page)
    heads, *judged = parsed.tables["criteria"]
    keys = {"gsm8k": "t0", "mmlu": "t1"}
    seen = 0
    for texts in judged:
        row = dict(zip(heads, texts, strict=True))
        own = " ".join(parsed.named(f"{keys[row['Task']]}-figures")[row["Config"]].values())
        for found in INTERVAL.findall(" ".join(texts)):
            seen += 1
            assert found.replace(" points", "") in own, (row["Config"], found)
    assert seen >= 2 * len(judged)


def test_the_thresholds_are_those_of_their_own_study(
    page: str, embedded: dict[str, Any], markdown: list[str]
) -> None:
    figures, parsed = embedded["tables"][0], Tables(page)
    rows = parsed.named("t0-alternative")
    assert parsed.named("t0-bounds") == markdown_tables(markdown[1])[1]
    assert rows == markdown_tables(markdown[1])[2]
    grid = parsed.named("t0-figures")
    cells = {cell["name"]: cell for cell in figures["alternative"]["cells"]}
    assert len(rows) == 6
    for one in figures["alternative"]["against"]:
        row, mine = rows[one["config"]], figures["times"]["pairs"][one["config"]]["ratio"]
        best = cells[one["rival"]]["change"]["value"] if one["rival"] else -1.0
        for cell in cells.values():
            slower = cell["cost"]["low"] > mine["high"]
            assert slower or cell["change"]["value"] <= best, "a better one is as fast"
        assert row["Time by k=1 [95 %]"] == grid[one["config"]]["Time by k=1 [95 %]"]
        if one["rival"] is None:
            assert (row["Threshold"], row["Accuracy is"]) == ("none", "none costs as little")
            continue
        assert row["Threshold"] == one["rival"]
        assert row["Its time by k=1 [95 %]"] == shown(cells[one["rival"]]["cost"], 1, ".3f")
        assert row["Accuracy against it [95 %]"] == shown(one["difference"], 100, "+.1f")


def test_few_words_stand_ahead_of_a_table_and_none_twice(markdown: list[str]) -> None:
    for section in markdown[1:]:
        ahead = [line for line in section.partition("\n|")[0].split("\n") if line]
        assert len(ahead) <= 10
        prose = [line for line in section.split("\n") if line and not line.startswith("|")]
        assert len(prose) == len(set(prose))


# --- no claim without the study's -----------------------------------------------------------------

CLAIMS = re.compile(r"\b(faster|slower|fastest|as fast|equal speed|speed-up)\b")
NAMES = ("k1_last", "k2_first", "k2_last", "k3_last")


def build(cells: Sequence[Record], criteria: Criteria | None) -> Report:
    results = cells[0].folder.parents[2]
    layout = Layout.of(results.parent, results)
    return build_report("00_baseline", "", criteria, [Section(tuple(cells))], layout)


def write(results: Path, **accuracies: float) -> list[Record]:
    cells = [Invented(name, accuracy) for name, accuracy in accuracies.items()]
    return [load_record(one.folder) for one in write_grid(results, cells, num_docs=40)]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """The last of them has collapsed."""
    results = tmp_path_factory.mktemp("results") / "results"
    return write(results, k1_first=0.8, k1_last=0.8, k2_first=0.8, k2_last=0.7, k3_last=0.02)


@given(st.lists(st.floats(0.5, 2.0), min_size=4, max_size=4), st.floats(0.9, 1.1))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_is_called_faster_that_the_study_does_not_claim(
    cells: list[Record], ratios: list[float], twin: float
) -> None:
    given_ratios = dict(zip(NAMES, ratios, strict=True)) | {"k1_last": twin}
    write_study(cells, given_ratios)
    report = build(cells, CRITERIA)
    (table,) = report.tables
    claims = {name: pair.claim for name, pair in table.times.pairs.items()}
    rows = grid_table(table, cells).rows
    for row in rows:
        (name, *_) = (text for _, text, _ in row)
        said = CLAIMS.findall(" ".join(text for _, text, _ in row))
        collapsed = name in table.against and table.against[name].collapsed
        claim = claims.get(name, "none")
        assert said == ([] if claim == "none" or collapsed else [claim]), name
    sound = [n for n, one in table.against.items() if not one.collapsed]
    fast = [name for name in sound if claims[name] == "faster"]
    sentence = summary_sentence(table)
    assert CLAIMS.findall(sentence) == (["fastest"] if fast else ["faster"])
    assert fast or "none is shown to be faster" in sentence
    assert not any(CLAIMS.findall(one.text) for one in notices(table, None))
    for name, one in table.against.items():
        said = CLAIMS.findall(one.sentence)
        assert said == ([] if claims[name] == "none" or one.collapsed else [claims[name]])
    for judged in report.verdict.cells:
        for finding in judged.findings:
            if finding.criterion == "min_speedup" and finding.outcome == "met":
                assert claims[judged.config] == "faster"
    assert alternative_table(table) is None


def test_without_a_study_nothing_is_said_of_speed(tmp_path: Path) -> None:
    cells = [Invented("k1_first"), Invented("k1_last"), Invented("k2_first", speed=400)]
    written = [load_record(one.folder) for one in write_grid(tmp_path / "results", cells)]
    report = build(written, None)
    text = render_results(report, "--task x")
    assert not CLAIMS.findall(text)
    assert "speed was not measured: fdllm timing --task gsm8k --experiment 00_baseline" in text
    page = render_html(report)
    assert "<svg" not in page
    assert not CLAIMS.findall(" ".join(Tables(page).words))
