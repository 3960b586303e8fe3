"""The report's page, from made-up records: what it says, what it holds, how large it gets."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cells import write_study
from fdllm.criteria import Criteria
from fdllm.errors import UsageError
from fdllm.experiment.settings import read_settings
from fdllm.record.paths import Layout
from fdllm.record.summary import Decided
from fdllm.report.build import Report, Section, build_report
from fdllm.report.figures import cell_figures, ideal_speedup
from fdllm.report.html import render_html
from fdllm.report.records import Record, load_record
from fdllm.report.results_md import render_results
from fdllm.report.times import shown
from made_up import Invented, baseline_grid, write_grid

CRITERIA = Criteria(max_accuracy_drop=0.02, discordant_share=0.01, min_speedup=1.05)


def load(results: Path, cells: list[Invented], **options: Any) -> tuple[Record, ...]:
    written = write_grid(results, cells, **options)
    return tuple(load_record(paths.folder) for paths in written)


def build(
    results: Path, *tables: tuple[Record, ...], criteria: Criteria | None = CRITERIA
) -> Report:
    sections = [Section(table) for table in tables]
    return build_report(
        "00_baseline", "Layer reuse baseline", criteria, sections, Layout.of(results, results)
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records") / "results"


@pytest.fixture(scope="module")
def tables(results: Path) -> list[tuple[Record, ...]]:
    """A grid of generated answers, one of scored ones, and a smoke test of another form."""
    thresholds = [
        Invented(f"t{t:.2f}", accuracy=0.5 + 0.3 * t, speed=60 - 20 * t, threshold=t)
        for t in (0.5, 0.75, 1.0)
    ]
    again = Invented("t0.95", speed=41, threshold=0.95), Invented("t0.95_again", threshold=0.95)
    curve = load(results, [*again, *thresholds], experiment="05_threshold")
    write_study(curve, {"t0.50": 0.7, "t0.75": 0.8, "t1.00": 3.0})
    odd = [Invented("plain"), Invented("calm-0.25", 0.3, 52, 0.6)]
    tables = [
        load(results, baseline_grid()),
        load(results, baseline_grid(), task="mmlu"),
        load(results, odd, task="tiny_arithmetic", num_docs=10, limit=10),
    ]
    for table in tables[:2]:
        write_study(table, {cell.name: 1.1 - 0.1 * int(cell.name[1]) for cell in table})
    return tables


@pytest.fixture(scope="module")
def page(results: Path, tables: list[tuple[Record, ...]]) -> Report:
    return build(results, *tables)


@pytest.fixture(scope="module")
def text(page: Report) -> str:
    first, *others = page.sections
    first = replace(
        first,
        missing=("k9_last: failed (the <disk> is full)",),
        overlap="subsets overlap on 28 layers",
    )
    nothing = Section((), title="humaneval on tiny")
    return render_html(replace(page, sections=(first, *others, nothing)))


class Elements(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def texts_of(page: str, folder: str = "gsm8k") -> dict[str, Any]:
    """What the page unpacks of a task's samples."""
    within = page[page.index(f'data-folder="{folder}"') :]
    packed = re.search(r'<script type="text/plain">(.*?)</script>', within)
    assert packed is not None
    data: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed[1])))
    return data


def test_every_figure_has_a_text_alternative(text: str) -> None:
    figures = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(figures) == 4  # two widths of each table that was timed
    for figure in figures:
        key = re.search(r'id="([^"]+)"', figure)
        assert key is not None
        assert figure.index('role="group"') < figure.index('class="point" tabindex="0" role="img"')
        assert f'aria-labelledby="{key[1]}-title {key[1]}-text"' in figure
        title = re.search(rf'<title id="{key[1]}-title">(.+?)</title>', figure)
        words = re.search(rf'<desc id="{key[1]}-text">(.+?)</desc>', figure)
        assert title is not None
        assert words is not None
        assert re.search(r"\d", words[1]), "a description holds the figures themselves"


def test_the_scatter_lists_every_config_and_every_threshold(page: Report, text: str) -> None:
    for table in page.tables[:2]:
        (words,) = re.findall(rf'<desc id="{table.key}-scatter-wide-text">(.+?)</desc>', text)
        for name, against in table.against.items():
            assert against.speed is not None
            change, time = against.difference.shown(100, "+.1f", " points"), against.speed.ratio
            assert f"{name}: {change} at {shown(time)} of the time" in words
        for cell in table.alternative.cells:
            assert f"{cell.name}: " in words
    assert [cell.name for cell in page.tables[0].alternative.cells] == [
        "t0.50", "t0.75", "t0.95", "t1.00",
    ]  # fmt: skip
    assert not page.tables[1].alternative.cells
    assert "threshold lowered instead (t1.00: outside)" in text


def test_ids_are_unique(text: str) -> None:
    ids = [attributes["id"] for _, attributes in Elements(text).found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_anywhere(text: str) -> None:
    for tag, attributes in Elements(text).found:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_texts_of_a_model_cannot_become_markup(text: str) -> None:
    """Every made-up answer ends in a bold element and a line separator."""
    assert "<b>&" not in text
    data = texts_of(text)
    assert r"<b>&\u2028done</b>" in data["docs"][0]["answers"][0]["text"]
    assert "the &lt;disk&gt; is full" in text


def test_the_verdict_comes_first(text: str) -> None:
    assert text.index('id="verdict"') < text.index("<svg") < text.index("Provenance")


def test_what_a_reader_must_know_is_said(text: str) -> None:
    for said in (
        "estimator <code>denoise</code>",
        "Smoke test.",
        "✓ A/A: k1_first = k1_middle = k1_last in all 60 samples.",
        "speed was not measured: fdllm timing --task tiny_arithmetic",
        "Subsets overlap on 28 layers.",
        "Not in the table: k9_last: failed",
        "No finished cell yet: humaneval on tiny.",
        "Against lowering the threshold instead",
        "anatomy",
        "How many tokens a denoising step unmasks",
        "Quadro RTX 6000",
    ):
        assert said in text, said


def test_a_page_is_the_same_each_time(
    page: Report, results: Path, tables: list[tuple[Record, ...]]
) -> None:
    again = build(results, *tables)
    assert again == page
    assert render_html(again) == render_html(page)


def test_collapsed_cells_are_not_praised(tmp_path: Path) -> None:
    """The ancestor's fastest cells were its gibberish."""
    grid = [Invented("k1_first"), Invented("k1_last"), Invented("k3_last", 0.05, 90, 0.7)]
    cells = load(tmp_path / "results", grid, num_docs=200)
    write_study(cells, {"k3_last": 0.4})
    page = build(tmp_path / "results", cells)
    text = render_html(page)
    assert "Collapsed" in text
    assert ": k3_last" in text
    assert "the fastest, k3_last" not in text
    assert page.verdict.word == "refuted"


def test_a_cell_that_was_decided_early_is_marked_in_its_row(tmp_path: Path) -> None:
    grid = [Invented("k1_first"), Invented("k1_last"), Invented("k2_first", 0.6)]
    cells = load(tmp_path / "results", grid, num_docs=60)
    ended = Decided(documents=40, of=60, criteria="c", outcomes={"max_accuracy_drop": "missed"})
    summary = cells[2].summary.model_copy(update={"decided": ended})
    some = replace(cells[2], summary=summary, read=cells[2].samples[:40])
    for text in (
        render_results(page := build(tmp_path / "results", (*cells[:2], some)), "--task gsm8k"),
        render_html(page),
    ):
        assert text.count("40 of 60, saved 20 rows") == 1
        assert "Decided: the config ended where its criteria were decided" in text
        assert "were left out" not in text.partition('id="figures"')[0]
    whole = render_results(build(tmp_path / "results", cells), "--task gsm8k")
    assert "Decided" not in whole


def test_nine_identical_cells_are_flagged(tmp_path: Path) -> None:
    grid = [Invented("k1_first"), Invented("k2_first")]
    first, second = load(tmp_path / "results", grid)
    same = replace(second, read=first.samples)
    page = build(tmp_path / "results", (first, same))
    text = render_html(page)
    assert "identical cells (k1_first, k2_first)" in text


def test_flips_are_those_of_the_samples(text: str, tables: list[tuple[Record, ...]]) -> None:
    data = texts_of(text)
    shown = {
        (doc["id"], data["cells"][cell], answer["value"] > doc["answers"][0]["value"])
        for doc in data["docs"]
        for cell, answer in enumerate(doc["answers"])
        if answer["value"] != doc["answers"][0]["value"]
    }
    assert [doc["id"] for doc in data["docs"]] == [f"gsm8k #{i}" for i in range(60)], "every one"
    cells = {cell.name: cell for cell in tables[0]}
    expected = set()
    for name, cell in cells.items():
        for key, sample in cell.by_key.items():
            then, now = cell.value(cells["k1_first"].by_key[key]), cell.value(sample)
            if then != now:
                expected.add((f"{key[0]} #{key[1]}", name, now > then))
    assert shown == expected
    assert expected


# --- single figures -------------------------------------------------------------------------------


def test_ideal_speedups_are_the_published_formula() -> None:
    assert ideal_speedup(2, 12, 28) == pytest.approx(1.27, abs=0.005)
    assert ideal_speedup(3, 12, 28) == pytest.approx(1.40, abs=0.005)
    assert ideal_speedup(1, 12, 28) is None


def test_figures_come_from_the_samples(tables: list[tuple[Record, ...]]) -> None:
    cell = tables[0][4]
    found = cell_figures(cell)
    seconds = sum(sample["seconds"] for sample in cell.samples)
    tokens = sum(sample["tokens"] for sample in cell.samples)
    assert found.speed == pytest.approx(tokens / seconds)
    assert found.accuracy == pytest.approx(cell.summary.headline.value)
    assert found.saved_share == pytest.approx(cell.summary.layer_calls.saved_share)
    assert found.steps is not None
    assert sum(found.steps.shares) == pytest.approx(1)
    assert found.steps.mean * found.steps.num_steps == pytest.approx(tokens)


def test_short_answers_count_in_every_tenth(tmp_path: Path) -> None:
    (paths,) = write_grid(tmp_path / "results", [Invented("k1_first")], num_docs=3)
    cell = load_record(paths.folder)
    rows = [row | {"steps": [[7, 3]]} for row in cell.samples]
    found = cell_figures(replace(cell, read=rows)).steps
    assert found is not None
    assert found.tenths == (7,) * 5 + (3,) * 5
    assert found.shares == (0, 0, 0.5, 0, 0, 0, 0.5, 0)


# --- criteria -------------------------------------------------------------------------------------


def test_criteria_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text("[criteria]\nmax_acuracy_drop = 0.02\n")
    with pytest.raises(UsageError, match="did you mean 'max_accuracy_drop'"):
        read_settings(path)
    path.write_text('[criteria]\nrequire = "all"\n')
    with pytest.raises(UsageError, match="states none; give at least one of max_accuracy_drop"):
        read_settings(path)
    path.write_text("[criteria]\nmax_accuracy_drop = 0.02\n")
    assert read_settings(path).criteria == Criteria(max_accuracy_drop=0.02)


@pytest.mark.parametrize(
    ("criteria", "accuracy", "limit", "word"),
    [
        (Criteria(max_accuracy_drop=0.1), 0.8, None, "confirmed"),
        (Criteria(max_accuracy_drop=0.05), 0.4, None, "refuted"),
        (Criteria(max_accuracy_drop=0.02), 0.4, None, "cannot tell"),  # 400 rows are too few
        (Criteria(max_accuracy_drop=0.0), 0.8, None, "cannot tell"),
        (Criteria(max_accuracy_drop=0.1), 0.8, 400, "cannot tell"),
        (Criteria(min_saved_share=0.99), 0.8, None, "refuted"),
        (Criteria(max_accuracy_drop=0.1, tasks=("gsm8k", "mmlu")), 0.8, None, "cannot tell"),
        (None, 0.8, None, "no criteria"),
    ],
)
def test_the_verdict_follows_from_the_intervals(
    criteria: Criteria | None, accuracy: float, limit: int | None, word: str, tmp_path: Path
) -> None:
    grid = [Invented("k1_first"), Invented("k1_last"), Invented("k2_first", accuracy)]
    cells = load(tmp_path / "results", grid, num_docs=400, limit=limit)
    assert build(tmp_path / "results", cells, criteria=criteria).verdict.word == word


# --- size -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_whole_grid_stays_small(tmp_path: Path) -> None:
    """Nine cells of 1,319 documents, their answers as long and as wrong as they come."""
    grid = [replace(one, accuracy=0.05 if one.k > 1 else 0.8) for one in baseline_grid()]
    cells = load(tmp_path / "results", grid, num_docs=1319, prompt_length=1500)
    text = render_html(build(tmp_path / "results", cells))
    assert len(text.encode()) < 5_000_000
    assert len(texts_of(text)["docs"]) == 1319, "and nothing is left out"
