"""Nothing in the package turns data into code."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "nanreplay"
CODE_FROM_DATA = re.compile(
    r"(import|from) (pickle|cPickle|dill|cloudpickle|marshal|shelve|joblib)\b"
    r"|\b(pickle|marshal)\.loads?\("
    r"|(?<![\w.])(eval|exec|compile)\("
    r"|allow_pickle\s*=\s*True|\b(np|numpy)\.load\(|yaml\.(unsafe_)?load\(|\b(saved_model\.load|load_model)\("
)

ASKED_FOR = {
    "recorder/script.py",
    "recorder/loops.py",
    "recorder/loop_rewriter.py",
    "commands/shell.py",
}
"""`nanreplay run` compiles and runs the program that its user names, `nanreplay shell -c` the code
that its user writes; nothing of that comes from a capture."""


def test_no_module_reads_pickles_or_evaluates_text() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    found = {}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if CODE_FROM_DATA.search(line) and str(file.relative_to(PACKAGE)) not in ASKED_FOR:
                found[f"{file.relative_to(PACKAGE)}:{number}"] = line.strip()
    assert not found
