"""How documents are written: lines that fit, links that lead somewhere, pages that are listed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "sample_runs" / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
]
LONGEST = 100
HARD_TO_READ = re.compile(
    r"\b(?:is|are|was|were) said to\b|\bsaid (?:is|are)\b|\bin so far as\b|\bhome-made\b"
)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(#[^)\s]*)?\)")


def prose(document: Path) -> Iterator[str]:
    """Lines that can be wrapped: no code, no tables, no pictures."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for line in text.splitlines():
        if not line.lstrip().startswith(("|", "![", "```")):
            yield line


def anchors(document: Path) -> set[str]:
    """What a link may name within a document, as GitHub and the site make it of headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {f"#{word.strip().replace(' ', '-')}" for word in words}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_fits_and_reads_plainly_and_its_links_lead_somewhere(document: Path) -> None:
    lines = list(prose(document))
    assert [line for line in lines if len(line) > LONGEST] == []
    assert [line for line in lines if HARD_TO_READ.search(line)] == []
    for address, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        target = document.parent / address if address else document
        assert target.exists(), address
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{address}{anchor}"


def test_the_site_has_every_file_that_a_page_links_to() -> None:
    left_out = yaml.safe_load((ROOT / ".mkdocs.yml").read_text(encoding="utf-8"))["exclude_docs"]
    for page in ROOT.glob("docs/*.md"):
        for address, _ in LINK.findall(page.read_text(encoding="utf-8")):
            is_text = address.startswith("../")  # docs/site_hooks.py takes the link away
            for pattern in () if is_text else left_out.split():
                assert not PurePath(address).match(pattern), address
                assert not address.startswith(pattern), address


def test_the_site_and_the_list_of_documents_have_every_page() -> None:
    settings = (ROOT / ".mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w-]+\.md", settings))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert yaml.safe_load(settings)["nav"]
    assert pages - named == set()
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {page for page in pages - {"README.md"} if f"]({page})" not in listed} == set()
