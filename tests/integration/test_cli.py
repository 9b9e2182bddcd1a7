"""The command line in real processes: exit codes, one line on stderr, results on stdout alone."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import warm_python
from conftest import ROOT, environment

import nanreplay
from nanreplay.commands import COMMANDS, run_command_line
from nanreplay.report.explain import explain

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ONE_LINE = re.compile(r"nanreplay: [^\n]+\n")
FILES = ("info", "replay", "bisect", "whatif")


def imported(*arguments: str) -> set[str]:
    """Top-level packages that a command line imports."""
    code = (
        "import sys\nfrom nanreplay.commands import run_command_line\n"
        f"run_command_line({list(arguments)!r})\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(child.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    lines = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    heavy = ["tensorflow", "keras", "pandas", "numpy", "h5py", "textual", "rich"]
    code = (
        "import sys\nfrom nanreplay.commands import run_command_line\n"
        f"for line in {lines!r}:\n"
        "    assert run_command_line(line) == 0, line\n"
        f"    found = [name for name in {heavy!r} if name in sys.modules]\n"
        "    assert not found, (line, found)\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_info_needs_no_tensorflow_and_no_pandas(made_up: Path) -> None:
    assert not imported("info", str(made_up)) & {"tensorflow", "keras", "pandas", "textual"}


@pytest.mark.parametrize("name", ["bisect", "report", "open"])
def test_a_file_that_cannot_be_read_is_named_before_tensorflow_loads(name: str) -> None:
    arguments = ["missing.h5", *(["--md", "-"] if name == "report" else [])]
    assert not imported(name, *arguments) & {"tensorflow", "keras"}


def test_help_lists_the_commands_and_the_exit_codes(command: Command) -> None:
    child = command("--help")
    assert child.returncode == 0
    assert all(name in child.stdout for name in COMMANDS)
    assert "Exit codes: 0 finite or healthy, 1 non-finite reproduced" in child.stdout


def test_version(command: Command) -> None:
    lines = command("--version").stdout.splitlines()
    assert lines[0] == f"nanreplay {nanreplay.__version__}"
    assert f"keras {version('keras')}" in lines
    assert lines[-1].startswith("python 3.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["info"],
        ["replay"],
        ["bisect", "--nonsense", "x"],
        ["replay", "x", "--mode", "warp"],
        ["whatif", "x", "--fix", "warp"],
        ["whatif", "x", "--fix"],
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert ONE_LINE.fullmatch(err)


@pytest.mark.parametrize("name", FILES)
def test_unreadable_files_are_one_line_and_exit_2(
    name: str, made_up: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign.h5").write_text("not HDF5")
    (tmp_path / "cut.h5").write_bytes(made_up.read_bytes()[:5000])
    for file in ("nope.h5", "foreign.h5", "cut.h5", "."):
        assert run_command_line([name, str(tmp_path / file)]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert ONE_LINE.fullmatch(err), err


def test_a_program_that_is_no_graph_is_one_line(made_up: Path, command: Command) -> None:
    for name in ("replay", "bisect"):
        child = command(name, made_up)
        assert child.returncode == 2
        assert child.stdout == ""
        assert ONE_LINE.fullmatch(child.stderr), child.stderr


def test_info_tells_what_is_held(made_up: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["info", str(made_up)]) == 0
    text = capsys.readouterr().out
    for part in (
        "step 4: loss is NaN",
        "tensorflow 2.21.0",
        "steps 3 to 4",
        "p0: graph",
        "2 (32 bytes): 2 trainable",
        "note: a note",
    ):
        assert part in text


def test_info_as_json(made_up: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["info", str(made_up), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["steps"], facts["keyframes"], facts["incident"]["step"]) == ([3, 4], [3], 4)
    assert facts["timeline"]["tail"]["loss"] == [1.5, "nan"]


def test_bisect_names_the_op_and_exits_1(recorded_runs: Path, command: Command) -> None:
    child = command("bisect", recorded_runs / "nan.h5")
    assert child.returncode == 1
    sentence = child.stdout.splitlines()[0]
    assert sentence.startswith(
        "step 4 · loss · `Log` of 0.0 at [2, 1] (sample 2 of the batch) gave -inf, which"
    )
    assert "recorded_runs.py:" in sentence
    assert "Replays bit for bit. Cause: log of zero." in sentence
    assert sentence.endswith("`clipnorm=1` and `lr x 0.1 (0.001)` do not help.")


def test_a_command_that_leaves_at_once_still_does_what_waits_for_the_exit(
    recorded_runs: Path, tmp_path: Path
) -> None:
    code = (
        "import atexit, sys\nfrom pathlib import Path\nfrom nanreplay.commands import main\n"
        f"sys.argv = ['nanreplay', 'replay', {str(recorded_runs / 'nan.h5')!r}]\n"
        f"atexit.register(Path({str(tmp_path / 'left')!r}).touch)\n"
        "class Last:\n"
        "    def __del__(self):\n"
        "        print('Python was taken apart')\n"
        "last = Last()\n"
        "main()\n"
    )
    done = warm_python.run(["-c", code], env=environment())
    assert done.returncode == 1
    assert (tmp_path / "left").exists()
    assert "step 4" in done.stdout
    assert "taken apart" not in done.stdout


def test_whatif_exits_0_when_a_fix_prevents_it(recorded_runs: Path, command: Command) -> None:
    child = command("whatif", recorded_runs / "nan.h5")
    assert child.returncode == 0
    assert re.search(r"epsilon=1e-7 +yes +steps 0 to 4", child.stdout)
    assert "return tf.math.log(x + 1e-7)   # recorded_runs.py:" in child.stdout


def test_whatif_exits_1_when_none_does(recorded_runs: Path, command: Command) -> None:
    child = command(
        "whatif", recorded_runs / "nan.h5", "--fix", "clipnorm=1.0", "--fix", "lr=0.5", "--json"
    )
    assert child.returncode == 1
    fixes = {fix["name"]: fix for fix in json.loads(child.stdout)["fixes"]}
    assert list(fixes) == ["clipnorm", "lr", "clipnorm+lr"]
    assert [fix["nonfinite"]["step"] for fix in fixes.values()] == [4, 4, 4]


def test_whatif_exits_3_when_none_can_be_tried(recorded_runs: Path, command: Command) -> None:
    child = command("whatif", recorded_runs / "nan.h5", "--fix", "leaky_relu")
    assert child.returncode == 3
    assert "The step holds no relu." in child.stdout


def test_whatif_of_a_value_that_a_fix_does_not_take_is_one_line(
    recorded_runs: Path, command: Command
) -> None:
    child = command("whatif", recorded_runs / "nan.h5", "--fix", "clipnorm=much")
    assert (child.returncode, child.stdout) == (2, "")
    lines = [line for line in child.stderr.splitlines() if line.startswith("nanreplay:")]
    assert lines == ["nanreplay: clipnorm: Expected a number above 0. Received: much"]


def test_bisect_prints_json_and_nothing_else_on_stdout_and_leaves_fixes_out_when_asked(
    recorded_runs: Path, command: Command
) -> None:
    child = command("bisect", recorded_runs / "nan.h5", "--no-fixes", "--json")
    assert child.returncode == 1
    report = json.loads(child.stdout)
    assert report["fixes"] == []
    assert report["cause"]["kind"] == "log_of_zero"
    assert report["format"] == "nanreplay-report"
    assert (report["origin"]["step"], report["origin"]["op_type"], report["origin"]["rows"]) == (
        4,
        "Log",
        [2],
    )
    assert set(child.stderr.splitlines()) == {"a training step may print"}


def test_a_healthy_capture_exits_0(recorded_runs: Path, command: Command) -> None:
    child = command("bisect", recorded_runs / "healthy.h5")
    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout.startswith("steps 0 to 5 · nothing non-finite. Replays bit for bit.\n")


def test_replay_shows_every_step(recorded_runs: Path, command: Command) -> None:
    child = command("replay", recorded_runs / "nan.h5")
    assert child.returncode == 1
    assert re.search(r"4 +-inf +NON-FINITE: loss is -inf +bit for bit", child.stdout)
    assert child.stdout.endswith("5 steps replayed, 5 of 5 bit for bit; step 4 is non-finite.\n")


def test_replay_goes_on_after_a_file_that_cannot_be_read(
    recorded_runs: Path, command: Command
) -> None:
    child = command(
        "replay", "--json", recorded_runs / "nope.h5", recorded_runs / "healthy.h5", "--mode", "ops"
    )
    assert child.returncode == 2
    (capture,) = json.loads(child.stdout)["captures"]
    assert (capture["finite"], capture["mode"], len(capture["steps"])) == (True, "ops", 6)
    assert ONE_LINE.fullmatch(child.stderr)


def test_python_code_cannot_be_replayed_and_exits_3(recorded_runs: Path, command: Command) -> None:
    for name in ("replay", "bisect"):
        child = command(name, recorded_runs / "python.h5")
        assert child.returncode == 3
        assert ONE_LINE.fullmatch(child.stderr), child.stderr
        assert "PyFunc" in child.stderr


@pytest.mark.parametrize("trust", [(), ("--trust",)])
def test_a_program_that_writes_files_is_replayed_without_them(
    trust: tuple[str, ...], recorded_runs: Path, command: Command
) -> None:
    written = recorded_runs / "written"
    written.unlink(missing_ok=True)
    child = command("replay", recorded_runs / "unsafe.h5", *trust)
    assert child.returncode == 1
    assert "bit for bit" in child.stdout
    assert not written.exists()


def test_a_reader_that_goes_away_is_no_error(made_up: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "nanreplay", "info", str(made_up)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == ""
    child.wait()
    child.stderr.close()
    assert child.returncode == 0


def test_ctrl_c_is_one_line(
    made_up: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nanreplay.report.inventory.inventory", interrupted)
    assert run_command_line(["info", str(made_up)]) == 130
    assert capsys.readouterr().err == "nanreplay: interrupted\n"


def test_an_error_that_nobody_foresaw_is_one_line_too(
    made_up: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("nanreplay.report.inventory.inventory", broken)
    monkeypatch.delenv("NANREPLAY_DEBUG", raising=False)
    assert run_command_line(["info", str(made_up)]) == 3
    assert ONE_LINE.fullmatch(capsys.readouterr().err)
    monkeypatch.setenv("NANREPLAY_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run_command_line(["info", str(made_up)])


def quoted_in_readme() -> str:
    """The sentence that the README shows."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("> ") for line in readme if line.startswith("> "))


def in_warm_process(command: list[str], *, env: dict[str, str], **options: Any) -> Any:
    """What `subprocess.run` does, with TensorFlow imported before; no fixes are tried."""
    arguments = [*command[1:], *(["--no-fixes"] if "bisect" in command else [])]
    done = warm_python.run(arguments, env=env)
    if not options.get("capture_output"):
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
    return done


def test_the_demo_records_replays_and_names_the_op(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nanreplay.commands.demo.subprocess.run", in_warm_process)
    assert run_command_line(["demo", "--json", "-o", str(tmp_path / "demo.h5")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (
        report["origin"]["op_type"],
        report["origin"]["layer_path"],
        report["origin"]["rows"],
    ) == ("Rsqrt", "encoder/norm", [17])
    assert report["verdict"]["bit_exact"] is True
    assert (tmp_path / "demo.h5").exists()
    quoted = quoted_in_readme()
    # Only the slow test waits for the fixes that the README names
    what_happened = report["sentence"].partition(" Verified fixes: ")[0]
    assert quoted.partition(" Verified fixes: ")[0] == what_happened


@pytest.mark.slow
def test_the_readme_quotes_the_sentence_of_the_demo_with_its_fixes(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("demo", "--json", "-o", tmp_path / "demo.h5")
    # A slow machine tries fewer fixes in the time that a report takes for them.
    monkeypatch.setattr("nanreplay.report.explain.FAST_S", math.inf)
    assert quoted_in_readme() == explain(tmp_path / "demo.h5").sentence
