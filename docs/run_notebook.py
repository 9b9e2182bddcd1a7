"""Runs docs/notebook.ipynb in a kernel, and writes what its cells show today.

Usage: python docs/run_notebook.py [--check]

With --check nothing is written; what differs from the file is shown. Of pages only the text that
does not hang on the machine is compared: the headline, the cause, the line of code, the fix.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.kernelspec import install
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("notebook.ipynb")
ROOT = NOTEBOOK.parents[1]
TIMES = re.compile(r"\d+m?s - \d+m?s/step|0x[0-9a-f]+")
"""What differs from run to run."""
LONGEST_S = 300


class Shown(HTMLParser):
    """The text of a page, without its style, its plot and what is folded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.lines: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("style", "svg", "details"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside and data.strip():
            self.lines.append(data.strip())


def as_run(notebook: Any) -> Any:
    """The notebook with what its cells show today.

    It runs in a folder of its own, in a kernel of this Python that finds this nanreplay.
    """
    code = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": code}
    fresh = nbformat.from_dict(notebook)
    with tempfile.TemporaryDirectory() as folder:
        install(prefix=folder)
        os.environ["JUPYTER_PATH"] = str(Path(folder, "share", "jupyter"))
        client = NotebookClient(
            fresh,
            timeout=LONGEST_S,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
        )
        client.execute(env={**os.environ, **quiet})
    for cell in fresh.cells:
        cell.get("outputs", [])[:] = [each for each in cell.get("outputs", []) if is_shown(each)]
    return fresh


def is_shown(output: Any) -> bool:
    """Whether an output says something: stderr of TensorFlow and finished progress do not."""
    if output.output_type == "stream":
        return bool(output.name == "stdout")
    return output.output_type == "error" or any(output.data.values())


def shown_lines(notebook: Any) -> Iterator[str]:
    """What the cells show, a line each, without what differs from run to run."""
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            yield f"-- cell {number}: {output.output_type}"
            if output.output_type == "stream":
                text = output.text
            elif output.output_type == "error":
                text = "\n".join(output.traceback)
            else:
                page = output.data.get("text/html")
                text = output.data["text/plain"] if page is None else "\n".join(Shown(page).lines)
            yield from TIMES.sub("(time)", text).splitlines()


def main() -> int:
    """Write the notebook, or say in what it differs."""
    recorded = nbformat.read(NOTEBOOK, as_version=4)
    before = list(shown_lines(recorded))
    today = as_run(recorded)
    if "--check" not in sys.argv[1:]:
        nbformat.write(today, NOTEBOOK)
        return 0
    differences = list(
        difflib.unified_diff(before, list(shown_lines(today)), "notebook", "today", lineterm="")
    )
    print("\n".join(differences))
    return 1 if differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
