"""Which logs and checkpoints lie where: files, folders, patterns and URLs become runs.

A folder with the logs of several trainings gives several runs. Folders that tell a part of a run
(`train`, `validation`, `checkpoints`) belong to the one that they lie in.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanreplay.capture.storage import RemotePath, filesystem, location
from nanreplay.errors import FormatError, NanreplayError, StorageError
from nanreplay.limits import check_size
from nanreplay.logs.file_kinds import CHECKPOINTS, FileKind, kind_of

_MOST_FILES = 200_000
_SKIPPED = frozenset((
    ".git", ".hg", ".svn", "__pycache__", "node_modules", "site-packages", ".venv", "venv",
    ".ipynb_checkpoints", ".trash", ".mypy_cache", ".ruff_cache", ".pytest_cache",
))  # fmt: skip
_PARTS = frozenset((
    "train", "training", "val", "valid", "validation", "eval", "evaluation", "test", "logs", "log",
    "tb", "tensorboard", "events", "summaries", "checkpoints", "checkpoint", "ckpt", "ckpts",
    "weights", "models", "model", "saved_model", "savedmodel", "variables", "backup", "backups",
    "chief", "metrics", "files", "csv", "output", "outputs",
))  # fmt: skip
"""Names of folders that hold a part of a run."""
_TRAIN_PARTS = frozenset(("train", "training"))


@dataclass(frozen=True)
class FoundFile:
    """A log or a checkpoint."""

    path: Path
    kind: FileKind
    home: Path
    """The folder of the run that it belongs to."""
    root: Path
    """What the user named."""
    shown: str
    """The path as the user knows it: the URL of a remote file."""
    part: str = ""
    """The folder within the run, such as `validation`; "" at its top."""
    is_named: bool = False
    """Whether the user named this very file."""


@dataclass
class FoundFiles:
    """What was found under all paths."""

    files: list[FoundFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """A line for each file that should be a log and is not."""


def find_files(
    paths: Sequence[str], scratch: Path, say: Callable[[str], None] | None = None
) -> FoundFiles:
    """Find the logs and checkpoints under the paths.

    Args:
        paths: Files, folders, patterns such as `runs/*/train`, URLs.
        scratch: A folder that remote files are copied to.
        say: Called with a line before a file is fetched.
    """
    files = FoundFiles()
    seen: set[Path] = set()
    for text in paths:
        try:
            for root, path, shown in _expanded(text, scratch, say):
                _add(files, root, path, shown, seen)
        except NanreplayError as error:
            files.problems.append(str(error))
    return files


def _expanded(
    text: str, scratch: Path, say: Callable[[str], None] | None
) -> Iterator[tuple[Path, Path, str]]:
    """The root, the file or folder, and its name for people, of what one argument names."""
    where = location(text)
    if isinstance(where, RemotePath):
        local = _fetched(where, scratch, say)
        yield local, local, text
        return
    if where.exists():
        yield where, where, text
        return
    index = Path(f"{text}.index")  # a checkpoint goes by its prefix
    if index.is_file():
        yield index, index, str(index)
        return
    matches = sorted(glob.glob(text, recursive=True)) if glob.has_magic(text) else []
    if not matches:
        raise FormatError(f"{text}: no such file or folder.")
    base = Path(os.path.commonpath(matches)) if len(matches) > 1 else Path(matches[0])
    for match in matches:
        yield base if base.is_dir() else Path(match), Path(match), match


def _add(found: FoundFiles, root: Path, path: Path, shown: str, seen: set[Path]) -> None:
    if not path.is_dir():
        _add_file(found, root, path, shown, seen, is_named=True)
        return
    n_before = len(found.files) + len(found.problems)
    for count, (file, name) in enumerate(_walk(path, shown)):
        if count >= _MOST_FILES:
            found.problems.append(f"{shown}: has more than {_MOST_FILES} files; name a subfolder.")
            break
        _add_file(found, root, file, name, seen, is_named=False)
    if len(found.files) + len(found.problems) == n_before:
        found.problems.append(f"{shown}: holds no logs and no checkpoints.")


def _walk(folder: Path, shown: str) -> Iterator[tuple[Path, str]]:
    top = folder.resolve()
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            path = Path(place) / name
            if path.is_symlink() and not _real(path).is_relative_to(top):
                continue
            if path.is_file():
                yield path, os.path.join(shown, path.relative_to(folder))


def _real(path: Path) -> Path:
    """Where a file lies; `Path.resolve` raises for a link to itself."""
    return Path(os.path.realpath(path))


def _add_file(
    files: FoundFiles, root: Path, path: Path, shown: str, seen: set[Path], *, is_named: bool
) -> None:
    real = _real(path)
    if real in seen:
        return
    seen.add(real)
    try:
        if not path.is_file():
            raise FormatError(f"{shown}: is no file.")
        kind = kind_of(path, is_named=is_named)
    except FormatError as error:
        files.problems.append(str(error).replace(str(path), shown, 1))
        return
    if kind == "bundle" and path.suffix != ".index":
        path = path.with_name(path.name.partition(".data-")[0] + ".index")
        shown = shown.partition(".data-")[0] + ".index"
    if kind is not None:
        home, part = _home(path, root)
        files.files.append(FoundFile(path, kind, home, root, shown, part, is_named))


def _home(path: Path, root: Path) -> tuple[Path, str]:
    """The folder of the run that a file belongs to, and the part of the run that it is in."""
    folder, part = path.parent, ""
    stop = root if root.is_dir() else root.parent
    while folder.name.lower() in _PARTS and folder not in (stop, folder.parent):
        part = folder.name if not part else f"{folder.name}/{part}"
        folder = folder.parent
    # a folder that is a part by its name may be named itself: `nanreplay logs run/validation`
    if folder == stop and folder.name.lower() in _PARTS and not part:
        part = "" if folder.name.lower() in _TRAIN_PARTS else folder.name
    if path.stem == "variables" and (path.parents[1] / "saved_model.pb").is_file():
        folder, part = path.parents[2], ""
    if "metrics" in path.parts[:-1]:  # metrics of MLflow may have folders in their names
        at = len(path.parts) - 1 - path.parts[::-1].index("metrics")
        folder, part = Path(*path.parts[:at]), ""
    return folder, part


def is_checkpoint(file: FoundFile) -> bool:
    """Whether a file is a checkpoint."""
    return file.kind in CHECKPOINTS


# URLs.


def _fetched(where: RemotePath, scratch: Path, say: Callable[[str], None] | None) -> Path:
    """Copy a remote file, or all files of a remote folder, into a folder; returns the copy.

    Raises:
        StorageError: It cannot be reached, or is not there.
        MemoryLimitError: It is larger than what may be taken.
    """
    system, inner = filesystem(where)
    target = scratch / str(len(list(scratch.iterdir()))) / (where.name or "logs")
    try:
        is_folder = bool(system.isdir(inner)) and not system.isfile(inner)
        names = system.find(inner) if is_folder else [inner]
        sizes = {}
        for name in names[:_MOST_FILES]:
            sizes[name] = int(system.size(name) or 0)
        check_size(str(where), sum(sizes.values()))
        for name in sizes:
            relative = Path(name[len(inner) :].lstrip("/")) if is_folder else Path()
            copy = (target / relative).resolve()
            if not copy.is_relative_to(target.resolve()):
                continue  # a name that leads out of the folder
            if say is not None:
                say(f"fetching {name.rpartition('/')[2]}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(name, str(copy))
    except NanreplayError:
        raise
    except FileNotFoundError:
        raise StorageError(f"{where}: no such file or folder.") from None
    except Exception as error:  # each file system has errors of its own
        text = " ".join(str(error).split())[:200]
        raise StorageError(f"{where}: cannot be read ({type(error).__name__}: {text}).") from error
    if not target.exists():
        raise StorageError(f"{where}: no such file or folder.")
    return target
