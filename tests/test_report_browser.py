"""The report in a real headless browser: quiet, fast, usable by keyboard, readable on a phone.

Skipped where there is no Chromium: ``apt-get install chromium chromium-driver``.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cells import write_study
from fdllm.record.paths import Layout
from fdllm.report.build import Section, build_report
from fdllm.report.html import render_html
from fdllm.report.records import load_record
from made_up import Invented, baseline_grid, write_grid

pytestmark = pytest.mark.slow

REQUIRE_BROWSER = "FDLLM_REQUIRE_BROWSER"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

Driver = Any  # selenium's, which is imported where a browser is there


def _need(what: str) -> None:
    reason = f"needs {what}: apt-get install chromium chromium-driver, pip install selenium"
    if os.environ.get(REQUIRE_BROWSER) == "1":
        pytest.fail(f"{reason}; {REQUIRE_BROWSER}=1 forbids skipping")
    pytest.skip(reason)


@contextmanager
def browser(profile: Path) -> Iterator[Driver]:
    """A headless Chromium; skips the test where none is installed."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        _need("Chromium and chromedriver")
    try:
        from selenium import webdriver  # noqa: PLC0415 - not everywhere
    except ImportError:
        _need("selenium")
        return
    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=str(chromedriver))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


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


def open_page(driver: Driver, path: Path, width: int = 1280, scheme: str = "light") -> None:
    """Open a page as it would be on a screen of that width, and wait until its flips are there."""
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_feature]})
    driver.get(path.as_uri())
    driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    wait(lambda: "flips" in text_of(driver, "output"))
    # What an earlier test chose must not show here.
    driver.execute_script("localStorage.clear(); delete document.documentElement.dataset.theme")


def wait(holds: Callable[[], Any], seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "the page never got there"
        time.sleep(0.05)
    return found


def text_of(driver: Driver, selector: str) -> str:
    return str(driver.find_element("css selector", selector).text)


def choose(driver: Driver, kind: str, value: str) -> None:
    driver.execute_script(
        "const field = document.querySelector(`[data-filter=${arguments[0]}]`);"
        "field.value = arguments[1];"
        "field.dispatchEvent(new Event(field.tagName === 'INPUT' ? 'input' : 'change'));",
        kind,
        value,
    )


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
