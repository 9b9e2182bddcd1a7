"""Answers of earlier runs, by what the captures hold: a second run bisects only what is new.

The key is a hash of the content, so that a copy or a renamed file is known. Of a large file it is
one of its ends, size and time of change; of a URL, of what the store says of the object. What
replays it (nanreplay, TensorFlow) is part of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nanreplay import __version__
from nanreplay.capture.storage import Location, RemotePath, filesystem
from nanreplay.errors import OutputExistsError
from nanreplay.triage.capture_answer import CaptureAnswer, answer_from_json, answer_to_json

_SCHEME = 1
"""Raised when what is kept of an answer, or how it is found, changes."""
_WHOLE_BYTES = 64 * 2**20
"""Files up to this size are hashed whole."""
_END_BYTES = 2**20
_BLOCK_BYTES = 2**20
_LIBRARIES = ("tensorflow", "tensorflow-cpu", "tf-nightly", "keras")
_TAGS = frozenset((
    "etag", "content-md5", "content_md5", "md5hash", "md5", "crc32c", "generation", "last-modified",
    "lastmodified", "last_modified", "mtime", "modified", "updated", "versionid", "created",
))  # fmt: skip
"""What stores call what changes with an object, in lower case."""


class AnswerCache:
    """A folder of answers.

    Only what bisecting found is kept: a capture that could not be read, or whose worker ended, is
    tried again.

    Args:
        folder: Made when it is not there; None keeps nothing.

    Raises:
        OutputExistsError: It cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputExistsError(
                    f"Cannot keep answers in {folder}: {error.strerror}.",
                    hint="--cache DIR keeps them elsewhere, --no-cache keeps none",
                ) from error

    def known(self, key: str | None, path: str) -> CaptureAnswer | None:
        """The answer of an earlier run; None where there is none, or its file is damaged."""
        if self.folder is None or key is None:
            return None
        try:
            text = (self.folder / f"{key}.json").read_text(encoding="utf-8")
            value = json.loads(text)
            return answer_from_json({**value, "path": path, "is_cached": True})
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, key: str | None, answer: CaptureAnswer) -> None:
        """Keep an answer that bisecting gave; a full disk only costs the next run time."""
        if self.folder is None or key is None or answer.report is None:
            return
        with contextlib.suppress(OSError):
            descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump(answer_to_json(answer), file, ensure_ascii=False, allow_nan=False)
                os.replace(name, self.folder / f"{key}.json")  # readers see all of it or nothing
            finally:
                Path(name).unlink(missing_ok=True)


def default_cache_folder() -> Path:
    """Where answers are kept unless told otherwise, by the custom of the system."""
    import platformdirs

    return platformdirs.user_cache_path("nanreplay") / "triage"


def content_key(where: Location) -> str | None:
    """The name of an answer: what a capture holds, and what replays it.

    None for a file that cannot be read, and for a URL whose store tells nothing that changes with
    the content.
    """
    digest = hashlib.sha256(json.dumps([_SCHEME, __version__, *_versions()]).encode())
    try:
        if isinstance(where, RemotePath):
            return digest.hexdigest() if _hash_remote(where, digest) else None
        _hash_file(where, digest)
        return digest.hexdigest()
    except Exception:  # a file system of fsspec has errors of its own; the worker will say it
        return None


def _versions() -> Iterator[str]:
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"


def _hash_file(path: Path, digest: hashlib._Hash) -> None:
    status = path.stat()
    with path.open("rb") as file:
        if status.st_size <= _WHOLE_BYTES:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
            return
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        digest.update(file.read(_END_BYTES))
        file.seek(-_END_BYTES, os.SEEK_END)
        digest.update(file.read())


def _hash_remote(where: RemotePath, digest: hashlib._Hash) -> bool:
    """Whether the store tells what changes with the content."""
    system, inner = filesystem(where)
    facts = {str(name).lower(): str(fact) for name, fact in system.info(inner).items()}
    tags = {name: fact for name, fact in facts.items() if name in _TAGS and fact != "None"}
    told = {"url": where.url, "size": facts.get("size"), **tags}
    digest.update(json.dumps(told, sort_keys=True).encode())
    return bool(tags)
