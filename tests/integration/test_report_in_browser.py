"""The page of a report in a real browser: wide and narrow, light and dark, clicked and printed."""

from __future__ import annotations

import base64
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from nanreplay import Capture
from nanreplay.report.pages import html_page, page_of, report_fragment
from nanreplay.report.stored_answers import stored_answer

pytestmark = pytest.mark.slow
SAMPLES = Path(__file__).parents[2] / "sample_runs"
RUNS = ("log_of_zero", "float16_overflow", "exploding_rnn", "nan_in_one_sample", "tutorial_loop")
WIDTHS = (360, 800, 1440)
LEAST_CONTRAST = 4.5
"""What the Web Content Accessibility Guidelines ask of text, level AA."""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip
WEAK_TEXT = """
const numbers = (text) => text.match(/[0-9.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
  .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (element) => {
  for (; element; element = element.parentElement) {
    const colour = numbers(getComputedStyle(element).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const weak = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
  if (element.closest("style")) continue;
  const style = getComputedStyle(element);
  const ink = numbers(element.closest("svg") ? style.fill : style.color);
  const [a, b] = [light(ink), light(ground(element))].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < arguments[0]) weak.push([walker.currentNode.data.trim(), contrast]);
}
return weak;
"""
CUT_OFF = """
return [...document.querySelectorAll("p, h1, h2, li, pre.source, pre.diff, summary, td")]
  .filter((element) => element.checkVisibility() && !element.closest(".wide"))
  .filter((element) => element.scrollWidth > element.clientWidth + 1)
  .map((element) => element.className + ": " + element.textContent.slice(0, 80));
"""
ASKED_OF_THE_NETWORK = """
return performance.getEntriesByType("resource").map((entry) => entry.name)
  .filter((name) => !name.startsWith("data:"));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium and its driver are not installed: apt-get install chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
        yield opened
        opened.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page of each run, and the same as a notebook has it."""
    folder = tmp_path_factory.mktemp("pages")
    for run in RUNS:
        answer = stored_answer(SAMPLES / f"{run}.h5")
        assert answer is not None
        with Capture(SAMPLES / f"{run}.h5") as capture:
            page = html_page(page_of(answer.report, capture))
        (folder / f"{run}.html").write_text(page, encoding="utf-8")
        cell = report_fragment(answer.report)
        (folder / f"{run}-cell.html").write_text(
            f'<!doctype html><meta charset="utf-8"><body>{cell}', encoding="utf-8"
        )
    return folder


def look_at(browser: Any, page: Path, width: int, scheme: str, medium: str = "screen") -> None:
    """Open a page at a width, in a colour scheme."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": features})
    browser.get(page.as_uri())


CUT_TABLES = """
return [...document.querySelectorAll(".wide:has(> .sample)")]
  .filter((element) => element.scrollWidth > element.clientWidth + 1).length;
"""


def test_a_narrow_cell_of_a_wide_notebook_cuts_no_table(browser: Any, pages: Path) -> None:
    beside = pages / "beside.htm"  # a list of files takes the left half of the window
    cell = (pages / "log_of_zero-cell.html").read_text(encoding="utf-8")
    beside.write_text(cell.replace("<body>", '<body style="margin-left: 480px">'), "utf-8")
    look_at(browser, beside, 1200, "light")
    assert browser.execute_script(CUT_TABLES) == 0


def brightness(browser: Any) -> float:
    """The mean of the pixels that are on the screen, from 0 to 1."""
    picture = imread(io.BytesIO(base64.b64decode(browser.get_screenshot_as_base64())))
    return float(np.mean(picture[..., :3]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_fits_its_window_and_can_be_read(
    browser: Any, pages: Path, width: int, scheme: str
) -> None:
    for page in sorted(pages.glob("*.html")):
        look_at(browser, page, width, scheme)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
        assert browser.execute_script(CUT_OFF) == [], page
        assert browser.execute_script(WEAK_TEXT, LEAST_CONTRAST) == [], page
        assert browser.execute_script(ASKED_OF_THE_NETWORK) == [], page
        assert browser.get_log("browser") == [], page
        is_bright = brightness(browser) > 0.5
        assert is_bright == (scheme == "light"), page


def test_the_answer_is_on_the_first_screen(browser: Any, pages: Path) -> None:
    look_at(browser, pages / "log_of_zero.html", 1440, "light")
    for selector in (".headline", ".why", "pre.source .failing", "pre.diff .comes", ".strange"):
        box = browser.find_element("css selector", selector).rect
        assert box["height"] > 0
        assert box["y"] + box["height"] < 900, selector


def test_a_click_opens_what_a_notebook_folds(browser: Any, pages: Path) -> None:
    look_at(browser, pages / "log_of_zero-cell.html", 800, "light")
    sentence = browser.find_element("css selector", ".sentence")
    assert not sentence.is_displayed()
    browser.find_element("css selector", "summary").click()
    assert sentence.is_displayed()
    assert sentence.text.startswith("step 12 · loss · Log of 0.0")
    assert browser.execute_script(WEAK_TEXT, LEAST_CONTRAST) == []
    browser.find_element("css selector", "summary").click()
    assert not sentence.is_displayed()


def test_the_keyboard_reaches_what_scrolls(browser: Any, pages: Path) -> None:
    look_at(browser, pages / "log_of_zero.html", 360, "light")
    scrolling = """
    return [...document.querySelectorAll(".nanreplay *")]
      .filter((element) => getComputedStyle(element).overflowX === "auto")
      .filter((element) => element.scrollWidth > element.clientWidth + 1)
    """
    boxes = browser.execute_script(scrolling)
    assert len(boxes) > 1
    for box in boxes:
        browser.execute_script("arguments[0].focus({focusVisible: true})", box)
        assert browser.switch_to.active_element == box
        assert box.value_of_css_property("outline-style") == "solid"


@pytest.mark.parametrize(
    ("body", "is_bright"),
    [
        ('data-jp-theme-light="true"', True),
        ('data-jp-theme-light="false"', False),
        ('class="vscode-light"', True),
        ('class="vscode-dark"', False),
    ],
)
def test_the_theme_of_a_notebook_counts_more_than_that_of_the_system(
    browser: Any, pages: Path, body: str, is_bright: bool
) -> None:
    text = (pages / "log_of_zero-cell.html").read_text(encoding="utf-8")
    page = pages / "themed.htm"
    page.write_text(text.replace("<body>", f"<body {body}>"), encoding="utf-8")
    look_at(browser, page, 800, "dark" if is_bright else "light")
    assert (brightness(browser) > 0.5) == is_bright
    assert browser.execute_script(WEAK_TEXT, LEAST_CONTRAST) == []


def test_on_paper_it_is_dark_on_white_and_nothing_is_cut_off(browser: Any, pages: Path) -> None:
    look_at(browser, pages / "exploding_rnn.html", 794, "dark", medium="print")  # A4 at 96 dpi
    assert brightness(browser) > 0.5
    assert browser.execute_script(WEAK_TEXT, LEAST_CONTRAST) == []
    hidden = """
    return [...document.querySelectorAll("pre, .wide, .plot")]
      .filter((element) => element.scrollWidth > element.clientWidth + 1)
      .map((element) => element.textContent.slice(0, 80))
    """
    assert browser.execute_script(hidden) == []
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
