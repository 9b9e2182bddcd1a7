"""The command line, whoever reads it: shells that complete, readers that leave, plain terminals."""

import errno
import io
import os
import sys
from pathlib import Path

import h5py
import pytest

from nanreplay.commands import COMMANDS, COMPLETION, run_command_line

SAMPLE = Path(__file__).parents[2] / "sample_runs" / "log_of_zero.h5"


def completed(words: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is given for the last word of a line."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    monkeypatch.setenv(COMPLETION, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert run_command_line([]) == 0
    sys.stdout.flush()
    return written.getvalue().decode().split()


def test_a_shell_completes_commands_options_captures_and_fixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run.h5", "rest.txt", "train.py"):
        (tmp_path / name).touch()
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert completed("nanreplay re", monkeypatch) == [
        "plain,replay",
        "plain,report",
        "plain,redact",
    ]
    assert completed("nanreplay bisect --js", monkeypatch) == ["plain,--json", "plain,--jsonl"]
    assert completed("nanreplay bisect r", monkeypatch) == ["plain,run.h5", "plain,runs/"]
    assert completed("nanreplay info x", monkeypatch) == ["file,x"]
    assert "plain,clipnorm" in completed("nanreplay whatif run.h5 --fix cl", monkeypatch)
    assert completed("nanreplay replay --mode f", monkeypatch) == ["plain,float64"]
    assert completed("nanreplay run t", monkeypatch) == ["plain,train.py"]
    assert "plain,recorded,ops" in completed("nanreplay diff run.h5 --modes rec", monkeypatch)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_asks_nanreplay(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"{COMPLETION}={shell}_complete" in script
    assert 'string split ","' not in script  # fish would cut `recorded,ops` at its comma
    if shell == "zsh":  # a ~/.zshrc may not have loaded what completes
        assert script.startswith("#compdef nanreplay\n")
        assert script.index("autoload -Uz compinit") < script.index("compdef _nanreplay_completion")


def test_a_mistyped_command_names_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command_line(["bisct", "run.h5"]) == 2
    assert "Did you mean bisect?" in capsys.readouterr().err
    assert run_command_line(["xyzzy"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


def test_the_exit_code_is_the_same_when_the_reader_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert run_command_line(["replay", str(SAMPLE)]) == 1


class FullDisk(io.StringIO):
    """A stdout whose disk is full."""

    def write(self, text: str) -> int:
        """Refuse."""
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", FullDisk())
    assert run_command_line(["info", str(SAMPLE)]) == 2
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert said == "nanreplay: What was found could not be written: No space left on device.\n"


def test_one_file_that_cannot_be_read_hides_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["info", "nowhere.h5", str(SAMPLE)]) == 2
    said = capsys.readouterr()
    assert "nowhere.h5: no such file." in said.err
    assert "keyframes   before step 0\n" in said.out
    assert "takes batch[0] float32[32, 4], batch[1]" in said.out


def test_a_terminal_without_a_cursor_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert run_command_line(["open", str(SAMPLE)]) == 2
    assert "TERM=dumb has none. `nanreplay bisect FILE` prints" in capsys.readouterr().err


def test_a_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run_command_line(["bisect", "--no-fixes", str(SAMPLE)]) == 1


def test_a_terminal_that_knows_ascii_alone_is_written_to_in_ascii(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run_command_line(["bisect", "--no-fixes", "--quiet", str(SAMPLE)]) == 1
    sys.stdout.flush()
    sentence = written.getvalue().decode("ascii")
    assert sentence.startswith("step 12 - loss - `Log` of 0.0 at [18, 0]")
    assert sentence.count("\n") == 1  # --quiet prints the sentence alone


def test_a_place_that_cannot_be_written_to_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["minimize", str(SAMPLE), "-o", "/proc/small.h5"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nanreplay: ")
    assert "/proc" in said
    assert said.count("\n") == 1


def test_a_capture_that_was_cut_off_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = SAMPLE.read_bytes()
    cut = tmp_path / "cut.h5"
    cut.write_bytes(content[:50_000])
    assert run_command_line(["info", str(cut)]) == 2
    assert f"is cut off: 50000 of {len(content)} bytes are there" in capsys.readouterr().err
    assert run_command_line(["logs", str(cut)]) == 2
    assert f"is cut off: 50000 of {len(content)} bytes are there" in capsys.readouterr().err


def test_every_command_has_a_line_in_the_documents() -> None:
    commands = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"nanreplay {name}" not in commands] == []


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("bisect", "a.h5", "--fix", "lr"), "No such option '--fix'. `nanreplay whatif` has it."),
        (("bisect", "a.h5", "--mode", "ops"), "'--mode'. `nanreplay replay` has it."),
        (("info", "a.h5", "--jsnol"), "Did you mean '--json'?"),
        (("--json",), "Write it after a command that has it, such as `nanreplay"),
        (("run", "--window", "x", "a.py"), "Expected a whole number of at least 1. Received: x"),
        (("run", "--window", "0", "a.py"), "Expected a whole number of at least 1. Received: 0"),
        (
            ("minimize", "a.h5", "-o", "b.h5", "--budget", "-3"),
            "Expected a number of at least 0. Received: -3",
        ),
        (("triage", ".", "--timeout", "0"), "Expected a number above 0. Received: 0"),
        (("export", "a.h5", "--csv", "empty.h5"), "Name another file, or replace it with --force."),
        (
            ("export", "a.h5", "--npy", "a.npy", "--tensor", "dense", "--step", "99"),
            "--step 99: FILE holds steps 0 to 12.",
        ),
        (
            ("export", "a.h5", "--npy", "a.npy", "--tensor", "zzzz"),
            "Step 12 has no tensor 'zzzz'. Its names are such as batch[0],",
        ),
        (("bisect", "empty.h5"), "empty.h5: is empty."),
        (("bisect", "."), "is a folder, not a capture. (nanreplay open and triage take folders)"),
        (("bisect", "weights.h5"), "not a nanreplay capture. (nanreplay logs reads Keras's"),
        (("diff", "a.h5"), "Say what to compare FILE with: a second file, --modes MODE,MODE"),
        (("diff", "a.h5", "a.h5", "--modes", "ops,graph"), "Compare FILE with one thing alone"),
        (
            ("report", "a.h5", "--html", "page", "--md", "./page"),
            "--html and --md are both page: give each a file of its own.",
        ),
        (("export", "a.h5", "--tensorboard", "empty.h5"), "Cannot write into empty.h5: it is a"),
        (
            ("run", "a.h5"),
            "it is no Python program. (nanreplay bisect a.h5 explains a capture)",
        ),
        (("demo", "-o", "no/demo.h5"), "Cannot write no/demo.h5: the folder"),
        (("redact", "a.h5", "-o", "no/b.h5"), "Cannot write no/b.h5: the folder"),
    ],
)
def test_a_wrong_line_says_what_is_wrong_and_what_to_do(
    arguments: tuple[str, ...],
    answer: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.h5").write_bytes(SAMPLE.read_bytes())
    (tmp_path / "empty.h5").touch()
    h5py.File(tmp_path / "weights.h5", "w").close()
    assert run_command_line(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert answer in said.err


def test_help_of_completion_has_a_line_for_each_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["completion", "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line.partition(":")[0] for line in lines if "nanreplay completion" in line] == [
        "Usage",
        "bash",
        "zsh",
        "fish",
    ]
