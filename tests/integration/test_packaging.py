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

pytestmark = pytest.mark.timeout(600)


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
    required = re.findall(r"^Requires-Dist: ([\w-]+)([^;\n]*)$", metadata, re.MULTILINE)
    assert {package for package, _ in required} == {
        "click", "h5py", "ml-dtypes", "numpy", "pandas", "rich",
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
