"""Which files are captures, and what of them an earlier run knows."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import pytest

from nanreplay.commands import run_command_line
from nanreplay.commands.console import write_text
from nanreplay.commands.open import readable_captures
from nanreplay.errors import CaptureNotFoundError
from nanreplay.triage import answer_cache, found_captures
from nanreplay.triage.capture_answer import CaptureAnswer, undecided_answer
from nanreplay.triage.found_captures import find_captures
from nanreplay.triage.triage_engine import triage
from nanreplay.triage.triage_pages import triage_html

ONE_TO_STDOUT = "Of --json, --html - and --md -, only one can go to stdout."
REPORT = {"origin": None, "cause": None, "capture": {"trigger": {"what": "loss", "name": "loss"}}}


@pytest.fixture
def runs(made_up: Path, tmp_path: Path) -> Path:
    """A folder with two captures, two damaged ones, and files that are none."""
    folder = tmp_path / "runs"
    (folder / "deep" / "er").mkdir(parents=True)
    shutil.copy(made_up, folder / "a.h5")
    shutil.copy(made_up, folder / "deep" / "er" / "b.hdf5")
    content = made_up.read_bytes()
    (folder / "cut.h5").write_bytes(content[: len(content) // 2])
    (folder / "deep" / "empty.h5").write_bytes(b"")
    (folder / ".c.h5.tmp").write_bytes(content)
    (folder / "train.py").write_text("")
    with h5py.File(folder / "model.weights.h5", "w") as file:
        file["dense/kernel"] = [1.0, 2.0]
    return folder


def found_in(*paths: Path | str) -> dict[str, bool]:
    """Names of what is found, and whether it can be read."""
    return {Path(each.name).name: each.error is None for each in find_captures([*map(str, paths)])}


def test_folders_are_searched_to_the_bottom(runs: Path) -> None:
    expected = {"a.h5": True, "b.hdf5": True, "cut.h5": False, "empty.h5": False}
    assert found_in(runs) == expected
    assert found_in(runs, runs / "a.h5", runs / "*.h5") == expected


def test_patterns_and_files_name_what_is_taken(runs: Path) -> None:
    assert found_in(runs / "**" / "*.hdf5") == {"b.hdf5": True}
    assert found_in(runs / "model.weights.h5") == {"model.weights.h5": False}


def test_folders_of_a_url_are_searched(runs: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="the extra `remote` is not installed")
    system = fsspec.filesystem("memory")
    system.put(str(runs), "/triaged", recursive=True)
    try:
        expected = {"a.h5": True, "b.hdf5": True, "cut.h5": False, "empty.h5": False}
        assert found_in("memory://triaged") == expected
        assert found_in("memory://triaged/*.h5") == {"a.h5": True, "cut.h5": False}
        assert found_in("memory://triaged/a.h5") == {"a.h5": True}
    finally:
        system.rm("/triaged", recursive=True)


def test_a_url_that_ends_in_a_slash_is_a_folder_though_its_store_calls_it_a_file(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec", reason="the extra `remote` is not installed")
    system = fsspec.filesystem("memory")
    system.put(str(runs), "/listed", recursive=True)
    is_file = type(system).isfile

    def says_so(self: Any, path: str) -> bool:
        return path.rstrip("/").endswith("listed") or is_file(self, path)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(type(system), "isfile", says_so)
            found = set(found_in("memory://listed/"))
        assert {"a.h5", "b.hdf5", "cut.h5", "empty.h5"} <= found
    finally:
        system.rm("/listed", recursive=True)


def test_nothing_found_is_one_line(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (runs / "none").mkdir()
    for path, said in {
        runs / "none": "holds no captures (*.h5).",
        runs / "gone": "no such file or folder.",
        runs / "*.nothing": "no such file or folder.",
    }.items():
        with pytest.raises(CaptureNotFoundError):
            find_captures([str(path)])
        assert run_command_line(["triage", str(path)]) == 2
        assert capfd.readouterr() == ("", f"nanreplay: {path}: {said}\n")


def test_what_takes_more_than_the_limit_is_a_row(
    made_up: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANREPLAY_MAX_MEMORY", "1GiB")  # put back after the test
    assert run_command_line(["triage", str(made_up), "--no-cache", "--max-memory", "9 B"]) == 2
    out, error = capfd.readouterr()
    assert error == ""
    assert out.startswith("1 capture: 1 not read.\n\nnot read: ")
    assert "--max-memory" in out


class Worker:
    """Answers by name, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, names: Sequence[str]) -> Iterator[CaptureAnswer]:
        for name in reversed(names):
            self.asked.append(Path(name).name)
            if "lost" in name:
                yield undecided_answer(name, "took longer than 5 s.")
            else:
                yield CaptureAnswer(name, "nonfinite", "It failed.", report=REPORT)

    def asked_now(self) -> list[str]:
        asked, self.asked = sorted(self.asked), []
        return asked


def changed(path: Path) -> Path:
    with h5py.File(path, "r+") as file:
        file.attrs["note"] = ascii(path.name)
    return path


def test_a_second_run_bisects_only_what_is_new(runs: Path, tmp_path: Path) -> None:
    worker, cache = Worker(), tmp_path / "cache" / "answers"
    changed(runs / "deep" / "er" / "b.hdf5")
    first = triage([str(runs)], cache=cache, answers=worker)
    assert worker.asked_now() == ["a.h5", "b.hdf5"]
    assert first.code == 1
    assert len(first.of_status("unreadable")) == 2

    shutil.move(runs / "a.h5", runs / "renamed.h5")
    changed(Path(shutil.copy(runs / "renamed.h5", runs / "new.h5")))
    second = triage([str(runs)], cache=cache, answers=worker)
    assert worker.asked_now() == ["new.h5"]
    cached = {Path(each.answer.path).name for each in second.captures if each.answer.is_cached}
    assert cached == {"renamed.h5", "b.hdf5"}
    assert len(second.groups[0].captures) == 3

    triage([str(runs)], cache=None, answers=worker)
    assert worker.asked_now() == ["b.hdf5", "new.h5", "renamed.h5"]


def test_copies_are_bisected_once(runs: Path) -> None:
    worker = Worker()
    result = triage([str(runs)], answers=worker)
    assert worker.asked_now() == ["a.h5"]
    assert len(result.groups[0].captures) == 2


def test_what_a_worker_lost_is_tried_again(made_up: Path, tmp_path: Path) -> None:
    worker = Worker()
    lost = changed(Path(shutil.copy(made_up, tmp_path / "lost.h5")))
    for _ in range(2):
        result = triage([str(lost)], cache=tmp_path / "cache", answers=worker)
        assert worker.asked_now() == ["lost.h5"]
        assert result.code == 3


def test_a_damaged_answer_is_found_again(made_up: Path, tmp_path: Path) -> None:
    worker, cache = Worker(), tmp_path / "cache"
    damages: tuple[str | tuple[str, str], ...] = (
        "",
        "[]",
        "{}",
        '{"path": "x", "status": "odd", "sentence": ""}',
        "[" * 100_000,
        ("It failed", "It faileD"),
        (json.dumps(REPORT), "5"),
    )
    for damage in damages:
        triage([str(made_up)], cache=cache, answers=worker)
        assert worker.asked_now() == ["made-up.h5"], damage
        (kept,) = cache.glob("*.json")
        whole = kept.read_text(encoding="utf-8")
        kept.write_text(whole.replace(*damage) if isinstance(damage, tuple) else damage)


def test_another_version_bisects_anew(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    triage([str(made_up)], cache=tmp_path / "cache", answers=worker)
    monkeypatch.setattr(answer_cache, "__version__", "99.0")
    triage([str(made_up)], cache=tmp_path / "cache", answers=worker)
    assert worker.asked_now() == ["made-up.h5", "made-up.h5"]


def test_large_files_are_known_by_their_ends_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "_WHOLE_BYTES", 100)
    monkeypatch.setattr(answer_cache, "_END_BYTES", 10)
    path = tmp_path / "large.h5"
    path.write_bytes(bytes(1000))
    first = answer_cache.content_key(path)
    assert first is not None
    assert answer_cache.content_key(path) == first
    path.write_bytes(bytes(500) + b"x" + bytes(499))
    assert answer_cache.content_key(path) != first


def test_a_store_that_tells_no_change_is_asked_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec", reason="the extra `remote` is not installed")
    from nanreplay.capture.storage import RemotePath

    system = fsspec.filesystem("memory")
    system.pipe("/known.h5", b"first")
    where = RemotePath("memory://known.h5")
    first = answer_cache.content_key(where)
    assert first is not None
    assert answer_cache.content_key(where) == first
    system.pipe("/known.h5", b"other")
    assert answer_cache.content_key(where) != first
    monkeypatch.setattr(type(system), "info", lambda self, path: {"name": path, "size": 5})
    assert answer_cache.content_key(where) is None
    system.rm("/known.h5")


def test_a_cache_that_cannot_be_made_is_one_line(
    made_up: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "cache"
    assert run_command_line(["triage", str(made_up), "--cache", str(folder)]) == 2
    out, error = capfd.readouterr()
    assert out == ""
    (line,) = error.splitlines()
    assert line.startswith(f"nanreplay: Cannot keep answers in {folder}: Not a directory. (--cache")


def test_links_that_lead_in_a_circle_end_somewhere(runs: Path) -> None:
    for name in ("one", "another"):
        (runs / "deep" / name).symlink_to(runs, target_is_directory=True)
    (runs / "itself.h5").symlink_to("itself.h5")
    expected = {"a.h5": True, "b.hdf5": True, "cut.h5": False, "empty.h5": False}
    assert found_in(runs) == expected
    assert found_in(runs / "**") == expected
    by_pattern = found_in(runs / "**" / "*.h5", runs / "**" / "*.hdf5")
    assert by_pattern == {**expected, "itself.h5": False}
    assert found_in(runs / "**s.h5") == {"model.weights.h5": False}


def test_a_folder_with_a_link_to_itself_holds_no_captures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "itself.h5").symlink_to("itself.h5")
    (tmp_path / "gone.h5").symlink_to("nowhere.h5")
    for verb in ("triage", "open"):
        assert run_command_line([verb, str(tmp_path)]) == 2
        assert capfd.readouterr() == ("", f"nanreplay: {tmp_path}: holds no captures (*.h5).\n")


def test_hidden_files_are_what_a_pattern_names_alone(made_up: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    (folder / ".trash").mkdir(parents=True)
    for name in ("run.h5", ".hidden.h5", ".trash/old.h5"):
        shutil.copy(made_up, folder / name)
    assert found_in(folder / "**" / "*.h5") == {"run.h5": True}
    assert found_in(folder / ".*.h5") == {".hidden.h5": True}


@pytest.mark.parametrize("verb", ["triage", "open", "info"])
def test_an_empty_path_is_no_folder(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([verb, ""]) == 2
    out, error = capfd.readouterr()
    assert (out, error) == (
        "",
        "nanreplay: A path is empty; `.` is the folder that you are in.\n",
    )


def test_a_folder_that_cannot_be_listed_is_a_row(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def scan_others(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_others)
    assert found_in(runs) == {"a.h5": True, "cut.h5": False, "deep": False}


def test_a_second_run_reads_only_what_is_new(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "_SETTLED_NS", 0)
    changed(runs / "deep" / "er" / "b.hdf5")
    (runs / "cut.h5").unlink()
    (runs / "deep" / "empty.h5").unlink()
    (runs / "model.weights.h5").unlink()
    worker, cache = Worker(), tmp_path / "cache"
    read: list[str] = []

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(path: Path, *arguments: Any) -> Any:
            read.append(path.name)
            return call(path, *arguments)

        return noted

    monkeypatch.setattr(answer_cache, "_hash_file", noting(answer_cache._hash_file))
    monkeypatch.setattr(found_captures, "Capture", noting(found_captures.Capture))

    triage([str(runs)], cache=cache, answers=worker)
    assert (worker.asked_now(), sorted(set(read))) == (["a.h5", "b.hdf5"],) * 2
    read.clear()
    triage([str(runs)], cache=cache, answers=worker)
    assert (worker.asked_now(), read) == ([], [])
    changed(runs / "a.h5")
    triage([str(runs)], cache=cache, answers=worker)
    assert (worker.asked_now(), set(read)) == (["a.h5"], {"a.h5"})

    read.clear()
    monkeypatch.setattr(answer_cache, "default_cache_folder", lambda: cache)
    assert [Path(str(each)).name for each in readable_captures([str(runs)])] == ["a.h5", "b.hdf5"]
    assert read == [], "the list of `nanreplay open` opens none of them"


def test_a_file_that_changed_just_now_is_read(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, cache = Worker(), tmp_path / "cache"
    monkeypatch.setattr(answer_cache, "_SETTLED_NS", 10**18)
    triage([str(made_up)], cache=cache, answers=worker)
    assert not (cache / "seen").exists()


def test_names_of_all_kinds_are_kept_and_told(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["with blank.h5", "emoji \N{GRINNING FACE}.h5", "[red]x[1].h5", "new\nline.h5"]
    if os.name == "posix":
        names.append(os.fsdecode(b"no\xfftext.h5"))
    folder, worker = tmp_path / "names", Worker()
    folder.mkdir()
    for name in names:
        changed(Path(shutil.copy(made_up, folder / name)))
    triage([str(folder)], cache=tmp_path / "cache", answers=worker)
    assert worker.asked_now() == sorted(names)
    result = triage([str(folder)], cache=tmp_path / "cache", answers=worker)
    assert worker.asked_now() == []
    assert result.notes == ()
    write_text(tmp_path / "page.html", triage_html(result))
    assert "with blank.h5" in (tmp_path / "page.html").read_text(encoding="utf-8")
    for name in names[:3]:
        assert found_in(folder / name) == {name: True}


def test_a_cache_that_takes_no_answer_costs_only_time(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(**options: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuses)
    result = triage([str(made_up)], cache=tmp_path / "cache", answers=Worker())
    assert result.code == 1
    folder = tmp_path / "cache"
    assert result.notes == (f"Answers cannot be kept in {folder}: Read-only file system.",)


def test_without_a_folder_of_ones_own_nothing_is_kept(
    made_up: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "triage"
    monkeypatch.setattr(answer_cache, "default_cache_folder", lambda: folder)
    content = made_up.read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    assert run_command_line(["triage", str(tmp_path / "cut.h5")]) == 2
    out, error = capfd.readouterr()
    assert out.startswith("1 capture: 1 not read.")
    (line,) = error.splitlines()
    assert line.startswith(f"nanreplay: Cannot keep answers in {folder}: Not a directory. (--cache")


def test_open_lists_what_triage_finds(runs: Path) -> None:
    names = [path.name for path in readable_captures([str(runs)])]
    assert sorted(names) == ["a.h5", "b.hdf5", "cut.h5", "empty.h5"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--json", "--md", "-"), "Of --json, --html - and --md -, only one can go to stdout."),
        (
            ("--html", "-", "--md", "-"),
            "Of --json, --html - and --md -, only one can go to stdout.",
        ),
        (("--timeout", "nan"), "--timeout takes a number of seconds."),
    ],
)
def test_options_that_cannot_be_followed_are_one_line(
    options: Sequence[str], said: str, made_up: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["triage", str(made_up), "--no-cache", *options]) == 2
    out, error = capfd.readouterr()
    assert (out, error) == ("", f"nanreplay: {said} (see nanreplay triage --help)\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_page_goes_into_a_pipe_and_takes_no_place_of_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_text(fifo, "a page")
    assert os.read(reader, 100) == b"a page"
    os.close(reader)
    assert fifo.is_fifo()
