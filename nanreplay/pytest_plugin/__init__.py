"""The pytest plugin: captures as tests, a marker for cases, and a fixture that records trainings.

pytest loads this module in every run, so it imports pytest alone; what asks for more imports more.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanreplay.pytest_plugin.stash_keys import CAPTURES, CASES, NAMED, RECORDER, SHOWN, model_of

if TYPE_CHECKING:
    from nanreplay.recorder import Recorder

__all__ = ["nan_recorder"]
MARKER = (
    "nanreplay(capture, *, model=None, **options): fail while the recorded failure is not fixed; "
    "options are those of nanreplay.replay_with"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options; nothing happens without them."""
    group = parser.getgroup("nanreplay", "recorded NaN failures")
    group.addoption(
        "--nanreplay",
        action="append",
        default=[],
        metavar="PATH",
        help="Collect a capture, or those of a folder, as tests. Repeatable.",
    )
    group.addoption(
        "--nanreplay-model",
        metavar="MODULE:FUNCTION",
        help="Replay captures with today's code: a function that returns the model.",
    )
    group.addoption(
        "--nanreplay-keep",
        metavar="FOLDER",
        help="Where nan_recorder writes captures; in the test's tmp_path unless given.",
    )
    group.addoption(
        "--nanreplay-trust",
        action="store_true",
        help="Run recorded programs that reach files, the network or processes.",
    )
    parser.addini("nanreplay_model", "Default of --nanreplay-model.")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and find the captures that are asked for."""
    config.addinivalue_line("markers", MARKER)
    start = config.invocation_params.dir
    named = []
    for path in config.getoption("nanreplay"):
        named.append(Path(os.path.abspath(start / path)))
    captures: dict[Path, None] = {}  # a set that keeps the order
    for path in named:
        if not path.exists():
            raise pytest.UsageError(f"--nanreplay {path}: no such file or folder.")
        captures.update(dict.fromkeys(sorted(path.rglob("*.h5")) if path.is_dir() else [path]))
    config.stash[NAMED] = named
    config.stash[CAPTURES] = list(captures)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what is replayed, and with what."""
    if not config.stash[NAMED]:
        return None
    start = config.invocation_params.dir
    places = ", ".join(os.path.relpath(path, start) for path in config.stash[NAMED])
    count = len(config.stash[CAPTURES])
    files = f"{count} file{'' if count == 1 else 's'}"
    program = model_of(config) or "the recorded program"
    return f"nanreplay: {files} in {places}, replayed with {program}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the captures to the tests, also those in folders that pytest does not look into."""
    if config.stash[CAPTURES]:
        from nanreplay.pytest_plugin.collected import CaptureFile

        for path in config.stash[CAPTURES]:
            items.extend(session.genitems(CaptureFile.from_parent(session, path=path)))


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Read what the markers ask for: a mistake there is an error of the test, and no failure."""
    if isinstance(item, pytest.Function) and item.get_closest_marker("nanreplay"):
        from nanreplay.pytest_plugin.collected import case_of

        item.stash[CASES] = [case_of(marker, item) for marker in item.iter_markers("nanreplay")]


@pytest.fixture
def nan_recorder(request: pytest.FixtureRequest) -> Iterator[Recorder]:
    """A `nanreplay.Recorder` that fails the test when a training meets a non-finite value.

    The test fails even where it catches the recorder's error, and its message holds the sentence of
    `nanreplay bisect`. The capture is written to the test's `tmp_path`, or to the folder of
    `--nanreplay-keep`, under a name that is the same in each run.

    Examples:
        >>> def test_fit_stays_finite(nan_recorder):
        ...     model.fit(data, callbacks=[nan_recorder], verbose=0)

        >>> def test_the_loop_stays_finite(nan_recorder):
        ...     step = nan_recorder.wrap(train_step)
        ...     for batch in data:
        ...         step(batch)
    """
    from nanreplay.pytest_plugin.recorder_fixture import recorder_of

    with recorder_of(request) as recorder:
        request.node.stash[RECORDER] = recorder
        yield recorder


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Replay the cases of a marked test before its body, and look at what was recorded after it."""
    __tracebackhide__ = True
    for case in pyfuncitem.stash.get(CASES, ()):
        from nanreplay.pytest_plugin.collected import check

        check(case, pyfuncitem)
    recorder = pyfuncitem.stash.get(RECORDER, None)
    if recorder is None:
        return (yield)
    from nanreplay.pytest_plugin.recorder_fixture import check_recorded

    # however the body ended: a test may catch the recorder's error, or fail for it later
    result, error = None, None
    try:
        result = yield
    except (Exception, pytest.fail.Exception, pytest.skip.Exception) as raised:
        error = raised
    check_recorded(recorder, pyfuncitem, error)
    if error is not None:
        raise error
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put on the report what the end of the run says of it."""
    # with pytest-xdist, reports are all that reaches the process that writes the summary
    report = yield
    if report.when == "call" and SHOWN in item.stash:
        report.nanreplay = item.stash[SHOWN]  # type: ignore[attr-defined]
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List the captures that were written, and annotate the lines of code on GitHub."""
    reports = terminalreporter.getreports("failed")
    failed = [report for report in reports if hasattr(report, "nanreplay")]
    kept = [report for report in failed if "kept" in report.nanreplay]
    if kept:
        terminalreporter.section("nanreplay captures")
        for report in kept:
            terminalreporter.write_line(f"{report.nanreplay['kept']}  {report.nodeid}")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for report in failed:
            terminalreporter.write_line(report.nanreplay["annotation"])
