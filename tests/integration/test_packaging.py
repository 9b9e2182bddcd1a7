"""What is released: the wheel, the source archive, and an installation without TensorFlow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, environment

from nanreplay import Capture
from nanreplay.capture.writer import lazy_contents, write_capture

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("packaging"),  # one worker builds the archives
]
SAMPLES = sorted((ROOT / "sample_runs").glob("*.h5"))
BARE = {**os.environ, "PYTHONPATH": ""}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built without a network."""
    pytest.importorskip("hatchling", reason="the backend that builds the archives is not installed")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, env=environment())
    return folder


def wheel_of(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(archives: Path) -> None:
    with zipfile.ZipFile(wheel_of(archives)) as wheel:
        inside = set(wheel.namelist())
    package = {name for name in inside if name.startswith("nanreplay/")}
    tracked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "nanreplay").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert package == tracked
    assert "nanreplay/py.typed" in package
    assert all(".dist-info/" in name for name in inside - package)


def test_the_source_archive_holds_what_its_own_tests_need(archives: Path) -> None:
    (archive,) = archives.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    for needed in (
        ".mkdocs.yml",
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "pyproject.toml",
        "tests/conftest.py",
        "sample_runs/log_of_zero.h5",
        "docs/recording.md",
    ):
        assert needed in inside


def test_nothing_that_is_installed_may_replace_the_users_tensorflow(archives: Path) -> None:
    with zipfile.ZipFile(wheel_of(archives)) as wheel:
        (name,) = (each for each in wheel.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = wheel.read(name).decode()
    assert "names the op, the line, the sample" in metadata  # the README, with no broken picture
    assert "](docs/" not in metadata
    required = re.findall(r"^Requires-Dist: ([\w-]+)([^;\n]*)$", metadata, re.MULTILINE)
    assert {package for package, _ in required} == {
        "bitmath", "click", "google-crc32c", "h5py", "ml-dtypes", "numpy", "pandas", "pebble",
        "platformdirs", "rich",
    }  # fmt: skip
    assert not [limit for _, limit in required if "==" in limit]


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment_without_tensorflow(
    archives: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    bare = {**os.environ, "PYTHONPATH": ""}
    install = [python, "-m", "pip", "install", "--quiet", wheel_of(archives)]
    subprocess.run(install, check=True, capture_output=True, env=bare)
    installed = [python, "-c", "import importlib.util as u; print(u.find_spec('tensorflow'))"]
    found = subprocess.run(installed, check=True, capture_output=True, text=True, env=bare)
    assert found.stdout.strip() == "None"

    sample = ROOT / "sample_runs" / "log_of_zero.h5"
    tool = tmp_path / "env" / "bin" / "nanreplay"
    for arguments in (["--version"], ["info", str(sample)], ["--help"]):
        done = subprocess.run(
            [tool, *arguments], capture_output=True, text=True, env=bare, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), arguments
    with Capture(sample) as capture:  # without its answer
        write_capture(tmp_path / "run.h5", lazy_contents(capture))
    sample = tmp_path / "run.h5"
    for arguments, extra in (
        (["bisect", str(sample)], "tensorflow"),
        (["triage", str(sample), "--no-cache"], "tensorflow"),
        (["triage", str(sample), "--no-cache", "--html", str(tmp_path / "out.html")], "view"),
        (["triage", str(sample), "--no-cache", "--scheduler", "tcp://127.0.0.1:9"], "cluster"),
        (["open", str(sample)], "view"),
    ):
        done = subprocess.run(
            [tool, *arguments], capture_output=True, text=True, env=bare, check=False
        )
        assert done.returncode == 2
        assert f"nanreplay[{extra}]" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def bare(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and its `view` extra alone."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    venv.create(folder, with_pip=True)
    wheel = f"{wheel_of(archives)}[view]"
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", wheel]
    subprocess.run(install, check=True, capture_output=True, env=BARE)
    return folder / "bin"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, env=BARE, check=False)


@pytest.mark.slow
def test_the_view_extra_brings_no_tensorflow(bare: Path) -> None:
    code = "import importlib.util as u; print(u.find_spec('tensorflow'), u.find_spec('keras'))"
    assert run(bare / "python", "-c", code).stdout.split() == ["None", "None"]
    for arguments in (["--version"], ["--help"], ["info", SAMPLES[0]]):
        done = run(bare / "nanreplay", *arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments


@pytest.mark.slow
def test_every_sample_run_is_reported_and_opened_without_tensorflow(
    bare: Path, tmp_path: Path
) -> None:
    for sample in SAMPLES:
        page, text = tmp_path / f"{sample.stem}.html", tmp_path / f"{sample.stem}.md"
        done = run(bare / "nanreplay", "report", sample, "--html", page, "--md", text)
        assert done.returncode == 1, (sample, done.stderr)
        assert done.stdout.startswith("step "), sample
        # matplotlib says so where it takes long to find the fonts of a new machine
        said = [line for line in done.stderr.splitlines() if line.startswith("nanreplay: ")]
        assert "TensorFlow is not installed, so this is the stored answer" in said[0]
        assert said[1:] == [f"nanreplay: wrote {written}" for written in (page, text)]
        assert done.stdout.strip()[:60] in text.read_text(encoding="utf-8")
        with Capture(sample) as capture:  # a timeline of one step is no plot
            assert ("<svg" in page.read_text(encoding="utf-8")) == (len(capture.timeline()) > 1)
    done = run(bare / "python", "-I", "-c", OPEN, *SAMPLES)  # not what lies around here
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [sample.name for sample in SAMPLES]


@pytest.mark.slow
def test_what_has_no_stored_answer_says_what_it_needs(bare: Path, tmp_path: Path) -> None:
    with Capture(SAMPLES[0]) as capture:
        write_capture(tmp_path / "run.h5", lazy_contents(capture))
    for verb in ("bisect", "whatif", "replay"):
        done = run(bare / "nanreplay", verb, tmp_path / "run.h5")
        assert (done.returncode, done.stdout) == (2, ""), verb
        (line,) = done.stderr.splitlines()
        assert "nanreplay[tensorflow]" in line, verb


OPEN = """
import asyncio
import sys
from pathlib import Path

from nanreplay.report.stored_answers import stored_answer
from nanreplay.tui.app import NanreplayApp


async def look(path):
    app = NanreplayApp([path])
    async with app.run_test(size=(160, 50)) as pilot:
        for _ in range(400):
            await pilot.pause(0.02)
            lines = [line.text for line in app.screen._compositor.render_strips()]
            if any("stored in the file by nanreplay" in line for line in lines):
                assert repr(app.screen.state.report) == repr(stored_answer(path).report)
                print(path.name)
                return


for path in map(Path, sys.argv[1:]):
    asyncio.run(look(path))
"""
