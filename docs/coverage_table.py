"""Says what the tests reach of each room of the package; `make coverage` runs it.

Usage: python docs/coverage_table.py [--write]

It prints a table of what `coverage` gathered, with versions. With --write the table takes the place
of the one in docs/development.md, for a run of all tests alone.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import tempfile
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "development.md"
PLACE = re.compile(r"(?<=<!-- coverage -->\n).*?(?=<!-- end of coverage -->)", re.DOTALL)
PACKAGES = ("tensorflow", "keras", "coverage")


def counts_by_room() -> dict[str, Counter[str]]:
    """What coverage counted in the files of each room, a module beside the rooms being one."""
    coverage = Coverage(config_file=str(ROOT / "pyproject.toml"))
    coverage.load()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        coverage.json_report(outfile=str(file))
        report = json.loads(file.read_text(encoding="utf-8"))
    rooms: dict[str, Counter[str]] = defaultdict(Counter)
    for path, of_file in report["files"].items():
        room = Path(path).parts[1].removesuffix(".py")
        summary = of_file["summary"]
        for name in ("num_statements", "covered_lines", "num_branches", "covered_branches"):
            rooms[room][name] += summary[name]
    return rooms


def share(part: int, whole: int) -> str:
    """A share in per cent, rounded down so that 100 % leaves out nothing."""
    return f"{int(1000 * part / whole) / 10:.1f} %" if whole else ""


def row(name: str, counts: Counter[str]) -> str:
    """A line of the table."""
    lines, branches = counts["num_statements"], counts["num_branches"]
    cells = (
        name,
        f"{lines:,}",
        share(counts["covered_lines"], lines),
        f"{branches:,}",
        share(counts["covered_branches"], branches),
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """The table and what it was measured with, in Markdown."""
    rooms = counts_by_room()
    total: Counter[str] = Counter()
    for counts in rooms.values():
        total += counts
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [
        "| room | lines | reached | branches | reached |",
        "|---|--:|--:|--:|--:|",
        *(row(f"`{name}`", counts) for name, counts in sorted(rooms.items())),
        row("all", total),
        "",
        f"Python {platform.python_version()}, {versions}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, or write it into the page."""
    text = table()
    if "--write" not in sys.argv[1:]:
        print(text, end="")
        return
    page = PAGE.read_text(encoding="utf-8")
    assert PLACE.search(page), f"{PAGE} has no place for the table"
    PAGE.write_text(PLACE.sub(lambda _: text, page), encoding="utf-8")


if __name__ == "__main__":
    main()
