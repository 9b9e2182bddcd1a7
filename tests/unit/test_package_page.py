"""The README on the page of the package: no picture and no link leads to a file that is missing."""

from __future__ import annotations

import importlib.util
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = "https://example.org/nanreplay/raw/main/"


class Addresses(HTMLParser):
    """What a page leads to."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.links: list[str] = []
        self.feed(MarkdownIt("commonmark").enable("table").render(markdown))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                (self.pictures if tag == "img" else self.links).append(value or "")


@pytest.fixture(scope="module")
def package_page() -> Any:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.package_page


def test_in_a_clone_each_picture_and_link_of_the_readme_is_there() -> None:
    found = Addresses(README)
    assert found.pictures
    for address in (*found.pictures, *found.links):
        assert (ROOT / address.partition("#")[0]).exists(), address


def test_on_a_page_with_an_address_pictures_and_links_are_whole(package_page: Any) -> None:
    here, there = Addresses(README), Addresses(package_page(README, FILES))
    assert there.pictures == [FILES + address for address in here.pictures]
    assert there.links == [FILES + address for address in here.links]


def test_on_a_page_without_an_address_nothing_is_broken(package_page: Any) -> None:
    found = Addresses(package_page(README, ""))
    assert found.pictures == []
    assert [address for address in found.links if not address.startswith("http")] == []
