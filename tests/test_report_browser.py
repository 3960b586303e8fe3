"""The report in a real headless browser: quiet, fast, usable by keyboard, readable on a phone."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cells import write_study
from fdllm.record.paths import Layout
from fdllm.report.build import Section, build_report
from fdllm.report.html import render_html
from fdllm.report.records import load_record
from in_browser import Driver, browser, choose, open_page, text_of, wait
from made_up import Invented, baseline_grid, write_grid

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def write_page(folder: Path, num_docs: int, *, smoke: bool = True) -> Path:
    results = folder / "results"
    groups = [write_grid(results, baseline_grid(), num_docs=num_docs)]
    if smoke:
        groups.append(write_grid(results, baseline_grid(), task="mmlu"))
        odd = [Invented("plain"), Invented("calm-0.25", 0.4)]
        groups.append(write_grid(results, odd, task="tiny_arithmetic", num_docs=10, limit=10))
    tables = [Section(tuple(load_record(paths.folder) for paths in group)) for group in groups]
    for table in tables[:2]:
        write_study(table.records, {c.name: 1.1 - 0.1 * int(c.name[1]) for c in table.records})
    layout = Layout.of(results, results)
    report = build_report("00_baseline", "Layer reuse baseline", None, tables, layout)
    path = folder / "report.html"
    path.write_text(render_html(report), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def path(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001 - skips
    return write_page(tmp_path_factory.mktemp("page"), 60)


def rows(driver: Driver) -> list[list[str]]:
    """Config and direction of the flips that are listed."""
    return list(
        driver.execute_script(
            "return [...document.querySelector('.flips').children].map(flip => "
            "[...flip.querySelectorAll('summary span')].slice(1, 3).map(span => span.textContent))"
        )
    )


def test_no_error_and_no_request(driver: Driver, path: Path) -> None:
    driver.get_log("performance")
    driver.get_log("browser")
    open_page(driver, path)
    driver.find_element("css selector", "#theme").click()
    assert driver.get_log("browser") == []
    urls = set()
    for line in driver.get_log("performance"):
        message = json.loads(line["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.add(message["params"]["request"]["url"])
    assert {url for url in urls if not url.startswith("data:")} == {path.as_uri()}


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(driver: Driver, path: Path, width: int, scheme: str) -> None:
    open_page(driver, path, width, scheme)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    shown = driver.execute_script(
        "return [...document.querySelectorAll('svg.figure')]"
        ".filter(figure => figure.getBoundingClientRect().width > 0)"
        ".flatMap(figure => [...figure.querySelectorAll('text')]"
        ".map(text => [figure.id, text.textContent, text.getBoundingClientRect(),"
        " figure.getBoundingClientRect()]))"
    )
    assert len(shown) > 25
    for key, text, box, frame in shown:
        assert box["left"] >= frame["left"] - 1, (key, text)
        assert box["right"] <= frame["right"] + 1, (key, text)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(driver: Driver, path: Path, scheme: str) -> None:
    """Contrast of ink and paper, WCAG's 4.5 : 1."""
    open_page(driver, path, 1280, scheme)
    contrast = """
        const channel = (value) => {
          const share = value / 255;
          return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        };
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
        const light = (colour) => {
          canvas.fillStyle = colour;
          canvas.fillRect(0, 0, 1, 1);
          const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
          return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
        };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        return arguments[0].map((selector) => {
          const style = getComputedStyle(document.querySelector(selector));
          const ink = light(selector.startsWith("svg") ? style.fill : style.color);
          return [selector, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)];
        });
    """
    names = ["p", "p.soft", "nav a", ".missed", ".met", "figcaption", "svg text", "svg text.soft"]
    for selector, ratio in driver.execute_script(contrast, names):
        assert ratio >= 4.5, selector


def test_the_theme_follows_the_system_and_the_button(driver: Driver, path: Path) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    open_page(driver, path, scheme="light")
    light = driver.execute_script(paper)
    open_page(driver, path, scheme="dark")
    assert driver.execute_script(paper) != light
    driver.execute_script("document.documentElement.dataset.theme = 'dark'")
    driver.find_element("css selector", "#theme").click()
    assert driver.execute_script(paper) == light

    def remembered() -> bool:
        driver.refresh()  # a browser may take a moment to keep what it is told
        return bool(driver.execute_script(paper) == light)

    wait(remembered)


def test_flips_filter(driver: Driver, path: Path) -> None:
    open_page(driver, path)
    everything = rows(driver)
    assert {direction for _, direction in everything} == {"lost", "gained"}
    choose(driver, "direction", "lost")
    choose(driver, "config", "k3_last")
    chosen = rows(driver)
    assert chosen
    assert {tuple(row) for row in chosen} == {("k3_last", "lost")}
    assert text_of(driver, "output").startswith(f"{len(chosen)} flips")
    choose(driver, "text", "no such words")
    assert rows(driver) == []
    assert text_of(driver, "output").startswith("0 flips")


def test_flips_open_side_by_side(driver: Driver, path: Path) -> None:
    open_page(driver, path)
    choose(driver, "direction", "lost")
    flip = driver.find_element("css selector", ".flip")
    assert not flip.find_elements("css selector", "pre"), "drawn on demand"
    flip.find_element("css selector", "summary").click()
    left, right = wait(lambda: flip.find_elements("css selector", ".sides > div"))
    assert left.text.startswith("k1_first right")
    assert right.text.splitlines()[0].split()[1] == "wrong"
    assert right.find_elements("css selector", "mark"), "the difference is marked"
    assert left.location["y"] == right.location["y"]
    assert "<b>&" in left.text, "markup in an answer is text"
    assert "Question" in flip.find_element("css selector", ".asked pre").text


def open_link(driver: Driver, path: Path, target: str) -> str:
    """Follow a link to a sample; what the page then says it lists."""
    driver.get("about:blank")  # or the browser would stay on the page
    driver.get(f"{path.as_uri()}#{target}")
    return str(wait(lambda: text_of(driver, "[data-folder=gsm8k] output")))


def test_every_answer_is_there_and_has_a_link_of_its_own(driver: Driver, path: Path) -> None:
    open_page(driver, path)
    choose(driver, "direction", "all")
    assert text_of(driver, "output") == "540 samples, 40 listed"
    choose(driver, "config", "k1_first")
    assert {direction for _, direction in rows(driver)} == {"right", "wrong"}
    flip = driver.find_element("css selector", ".flip")
    driver.execute_script("arguments[0].open = true", flip)
    link = wait(lambda: flip.find_elements("css selector", "a"))[0].get_attribute("href")
    assert link.endswith("#gsm8k/k1_first/0")
    assert open_link(driver, path, "gsm8k/k2_middle/7") == "1 sample, 1 listed"
    (flip,) = driver.find_elements("css selector", ".flip[open]")
    wait(lambda: flip.find_elements("css selector", ".sides"))
    assert flip.text.startswith("gsm8k #7\nk2_middle\n")
    assert flip.location["y"] > 0
    trace = "fdllm trace --experiment 00_baseline --task gsm8k --config k2_middle --doc 7"
    assert trace in flip.text
    assert "document 99 of k2_middle is not in" in open_link(driver, path, "gsm8k/k2_middle/99")


def test_a_point_says_its_figures_where_the_keyboard_is(driver: Driver, path: Path) -> None:
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415 - not everywhere

    open_page(driver, path)
    tip = driver.find_element("css selector", "#tip")
    assert not tip.is_displayed()
    driver.execute_script("document.querySelector('.wide .point[aria-label^=k2_middle]').focus()")
    assert tip.text.startswith("k2_middle: ")
    assert " points [" in tip.text
    driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()


def column(driver: Driver, number: int) -> list[str]:
    """What is shown of a column of the main table, from above to below."""
    return list(
        driver.execute_script(
            "const table = document.querySelector('[aria-labelledby=t0-figures] table');"
            "return [...table.tBodies[0].rows].filter(row => !row.hidden)"
            ".map(row => row.cells[arguments[0]].textContent)",
            number,
        )
    )


def test_the_main_table_sorts_and_filters(driver: Driver, path: Path) -> None:
    open_page(driver, path)
    names, shares = column(driver, 0), column(driver, 1)
    heads = driver.find_elements("css selector", "[aria-labelledby=t0-figures] .sort")

    def press(number: int) -> None:
        driver.execute_script("arguments[0].click()", heads[number])

    press(1)
    found = [float(one.split()[0]) for one in column(driver, 1)]
    assert found == sorted(found)
    assert found != [float(one.split()[0]) for one in shares]
    press(1)
    assert [float(one.split()[0]) for one in column(driver, 1)] == sorted(found, reverse=True)
    press(1)
    assert column(driver, 0) == names, "as it was"
    press(3)
    assert column(driver, 3)[-1] == "", "what has no figure goes last"
    press(3)
    assert column(driver, 3)[-1] == ""
    driver.execute_script(
        "const field = arguments[0]; field.value = 'k3 COLLAPSED';"
        "field.dispatchEvent(new Event('input'))",
        driver.find_element("css selector", "#t0 .tools input"),
    )
    assert column(driver, 0)
    assert all(one.startswith("k3") for one in column(driver, 0))


def test_tables_and_figures_can_be_taken_away(driver: Driver, path: Path) -> None:
    open_page(driver, path)
    driver.execute_script(
        "window.saved = []; URL.createObjectURL = (blob) => { saved.push(blob); return 'data:,'; };"
        "HTMLAnchorElement.prototype.click = function () { saved.at(-1).file = this.download; };"
        "for (const label of arguments[0])"
        " [...document.querySelectorAll('#verdict .tools button, #t0 .tools button')]"
        ".find(one => one.getAttribute('aria-label').includes(label)).click()",
        ["CSV", "as SVG", "as PNG"],
    )
    wait(lambda: driver.execute_script("return saved.length === 3 && saved[2].file"))
    files = driver.execute_script("return saved.map(one => [one.file, one.type, one.size])")
    assert [kind for _, kind, _ in files] == ["text/csv", "image/svg+xml", "image/png"]
    assert files[0][0].endswith("_t0-figures.csv")
    assert files[2][2] > 10_000
    table, drawing = (
        driver.execute_async_script("saved[arguments[0]].text().then(arguments[1])", number)
        for number in (0, 1)
    )
    head, first, *_ = csv.reader(table.splitlines())
    assert head[:4] == ["Config", "Accuracy, %", "Accuracy, %, low", "Accuracy, %, high"]
    assert first[0] == "k1_first"
    assert all(len(line) == len(head) for line in csv.reader(table.splitlines()))
    assert "--paper" in drawing
    assert ET.fromstring(drawing).attrib["data-theme"] == "light"  # noqa: S314 - our own text


def test_the_verdict_and_its_picture_are_the_first_screen_of_a_phone(
    driver: Driver, path: Path
) -> None:
    open_page(driver, path, 390)
    box = driver.execute_script(
        "return document.querySelector('#verdict .narrow svg').getBoundingClientRect()"
    )
    assert box["bottom"] < 844
    assert box["width"] > 300


def test_what_is_folded_is_printed_but_for_the_samples(driver: Driver, path: Path) -> None:
    driver.get("about:blank")
    driver.get(path.as_uri())
    opened = (
        "return [...document.querySelectorAll('details')].map(one => [one.className, one.open])"
    )
    assert not any(is_open for _, is_open in driver.execute_script(opened))
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert all(is_open == (kind == "") for kind, is_open in driver.execute_script(opened))
    driver.execute_script("dispatchEvent(new Event('afterprint'))")
    assert not any(is_open for _, is_open in driver.execute_script(opened))


def test_on_paper_nothing_is_cut(driver: Driver, path: Path) -> None:
    open_page(driver, path, 703)  # A4 without its margins
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    ends = driver.execute_script(
        "return [...document.querySelectorAll('main table, main figure')]"
        ".map(one => [one.getBoundingClientRect().right, one.textContent.slice(0, 40)])"
    )
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(ends) > 10
    assert [text for end, text in ends if end > 704] == []


def test_flips_stack_on_a_phone(driver: Driver, path: Path) -> None:
    open_page(driver, path, 390)
    flip = driver.find_element("css selector", ".flip")
    driver.execute_script("arguments[0].open = true", flip)
    left, right = wait(lambda: flip.find_elements("css selector", ".sides > div"))
    assert left.location["y"] < right.location["y"]


def test_the_keyboard_reaches_every_control(driver: Driver, path: Path) -> None:
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415 - not everywhere

    open_page(driver, path)
    controls = driver.execute_script(
        "const kinds = 'a, button, select, input, summary, [tabindex]';"
        "const all = [...document.querySelectorAll(kinds)]"
        ".filter(one => one.checkVisibility() || one.className === 'skip');"
        "all.forEach((one, i) => { one.dataset.control = i; }); return all.length"
    )
    reached = set()
    body = driver.find_element("css selector", "body")
    body.send_keys(Keys.TAB)
    for _ in range(controls + 5):
        number = driver.execute_script("return document.activeElement.dataset.control")
        if number is None:
            break
        reached.add(int(number))
        driver.switch_to.active_element.send_keys(Keys.TAB)
    assert reached == set(range(controls))
    flip = driver.find_element("css selector", ".flip summary")
    flip.send_keys(Keys.ENTER)
    assert wait(lambda: driver.find_elements("css selector", ".flip[open] .sides"))


def test_a_whole_grid_opens(tmp_path: Path) -> None:
    """9 configs, 1,319 documents: under five megabytes, in a browser that opened nothing yet."""
    with browser(tmp_path / "profile") as fresh:
        path = write_page(tmp_path, 1319, smoke=False)
        assert path.stat().st_size < 5_000_000
        open_page(fresh, path)
        assert fresh.find_elements("css selector", "table")
