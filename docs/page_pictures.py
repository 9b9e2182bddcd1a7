"""The pictures of pages in the documents, drawn by Chromium: the failing cell of the notebook.

Usage: python docs/page_pictures.py, after docs/run_notebook.py
"""

from __future__ import annotations

import base64
import html
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nbformat

DOCS = Path(__file__).resolve().parent
WIDTH = 1000
FRAME = """<!doctype html><meta charset="utf-8"><body data-jp-theme-light="true"
style="margin: 0; padding: 14px; background: #fff; font: 13px/1.5 monospace">
<pre style="background: #f5f5f5; border: 1px solid #ddd; padding: 8px; margin: 0 0 8px">{code}</pre>
<pre style="background: #fdd; padding: 8px; margin: 0 0 8px; white-space: pre-wrap">{error}</pre>
{page}"""


def failing_cell() -> str:
    """The cell of docs/notebook.ipynb that fails, with what it shows, as one page."""
    notebook: Any = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    for cell in notebook.cells:
        outputs = {each.output_type: each for each in cell.get("outputs", [])}
        if "error" in outputs:
            return FRAME.format(
                code=html.escape(cell.source),
                error=html.escape("\n".join(outputs["error"].traceback)),
                page=outputs["display_data"].data["text/html"],
            )
    raise SystemExit("No cell of docs/notebook.ipynb fails.")


def draw(page: str, picture: Path) -> None:
    """Open a page in Chromium, and write a picture of all of it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for flag in ("--headless", "--no-sandbox", "--hide-scrollbars"):
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={folder}")
        file = Path(folder, "page.html")
        file.write_text(page, encoding="utf-8")
        browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            size = {"width": WIDTH, "height": 800, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(file.as_uri())
            height = browser.execute_script("return document.documentElement.scrollHeight")
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
            shot = {"captureBeyondViewport": True, "clip": clip}
            drawn = browser.execute_cdp_cmd("Page.captureScreenshot", shot)
        finally:
            browser.quit()
    picture.write_bytes(base64.b64decode(drawn["data"]))


if __name__ == "__main__":
    draw(failing_cell(), DOCS / "images" / "notebook.png")
