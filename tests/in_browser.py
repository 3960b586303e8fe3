"""A headless Chromium, and a page of the report in it.

Skipped where there is no Chromium: ``apt-get install chromium chromium-driver``.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

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


def open_page(driver: Driver, path: Path, width: int = 1280, scheme: str = "light") -> None:
    """Open a page as it would be on a screen of that width, and wait until its flips are there."""
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_feature]})
    driver.get(path.as_uri())
    driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    wait(lambda: "flip" in text_of(driver, "output"))
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
