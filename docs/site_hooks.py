"""What the site of the documents does differently from the repository."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)\)")
"""A link from a document to a file that is none."""


def on_page_markdown(markdown: str, **about: Any) -> str:
    """Show links out of docs/ as text. One that leads nowhere stays, and fails the build."""

    def as_text(link: re.Match[str]) -> str:
        return link[1] if (ROOT / link[2]).exists() else link[0]

    return OUTSIDE.sub(as_text, markdown)
