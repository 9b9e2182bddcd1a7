"""The README as the page of the package shows it, where no other file of the repository is.

Pictures and links of the README are relative, so that they work in a clone. On the page of the
package they lead to `files`, the address of the repository's files, which stands in pyproject.toml
under `tool.hatch.metadata.hooks.custom`. Without an address, pictures are left out and links are
text: a broken picture says less than none.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?://)([^)]+)\)\n?")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?://|#)([^)]+)\)")


def package_page(readme: str, files: str) -> str:
    """Return a README whose pictures and links need no file beside it.

    Args:
        readme: Markdown.
        files: Address of the repository's files, ending in a slash; "" where there is none.
    """
    if files:
        whole = _PICTURE.sub(rf"![\1]({files}\2)\n", readme)
        return _LINK.sub(rf"[\1]({files}\2)", whole)
    return _LINK.sub(r"\1", _PICTURE.sub("", readme))


class PackagePage(MetadataHookInterface):
    """Gives the package its description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Put the README into the metadata."""
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = package_page(readme, str(self.config.get("files", "")))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
