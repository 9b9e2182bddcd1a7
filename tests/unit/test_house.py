"""The house keeps its order: one name for one thing, and files that a reader can take in."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import nanreplay

PACKAGE = Path(nanreplay.__file__).parent
DOCUMENTS = PACKAGE.parent / "docs"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 450
MOST_CLAUSES = 2
"""`for` and `if` of a comprehension."""
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def test_no_two_modules_share_a_name() -> None:
    places = defaultdict(list)
    for path in MODULES:
        if path.name != "__init__.py":
            places[path.stem].append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_file_is_longer_than_a_reader_takes_in() -> None:
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in MODULES
    }
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_a_comprehension_is_one_thought() -> None:
    long = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, COMPREHENSIONS):
                clauses = sum(1 + len(part.ifs) for part in node.generators)
                if clauses > MOST_CLAUSES:
                    long.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert long == []


def test_the_document_for_developers_names_files_and_rooms_that_exist() -> None:
    text = (DOCUMENTS / "development.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)+[\w.]+\.(?:py|md|txt|toml))", text))
    named |= set(
        re.findall(
            r"(?<![\w/.])((?:program|recorder|replay|bisect|diagnose|whatif|report|capture)/\w+\.py)",
            text,
        )
    )
    assert named, "it names files"
    roots = (PACKAGE, PACKAGE.parent)
    assert {name for name in named if not any((root / name).exists() for root in roots)} == set()
    rooms = set(re.findall(r"^\| `([a-z_]+)`", text, re.MULTILINE))
    assert "recorder" in rooms
    unknown = {room for room in rooms if not (PACKAGE / room).exists()}
    assert {room for room in unknown if not (PACKAGE / f"{room}.py").exists()} == set()
