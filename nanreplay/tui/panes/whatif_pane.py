"""The what-if pane: tick fixes, run them on the recording, read what each gave, copy its code."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Button, DataTable, Input, OptionList, Static

from nanreplay.capture.temporary import written_whole
from nanreplay.findings import FixResult
from nanreplay.report.contents import Report
from nanreplay.report.fix_patch import diff_of, group_of, patch_of, what_it_does
from nanreplay.report.fix_words import (
    OUTCOME_CLAUSES,
    OUTCOME_WORDS,
    fix_label,
    fix_option,
    fix_remark,
    outcome_of,
)
from nanreplay.report.numbers import readable_number, readable_steps
from nanreplay.tui.capture_state import CaptureState, cell_style, outcome_mark
from nanreplay.tui.engine import Explain
from nanreplay.tui.panes.base import Copyable, Failed, Pane
from nanreplay.tui.widgets.code_lines import diff_content
from nanreplay.tui.widgets.ticks import TickList
from nanreplay.whatif import FixError, check_fix
from nanreplay.whatif.edits import FITTING, LAST_RESORT, candidates

_COLUMNS = ("fix", "prevents it", "replayed", "loss changes", "last loss")
_NARROW = 2
"""Columns of the table in a narrow terminal."""
_BROAD = 84
"""Columns of the terminal from which all of them fit."""


class WhatIfPane(Pane):
    """Fixes to the left, what they gave to the right."""

    HELP = (
        "Each ticked fix is applied to the recorded program, batch or start, and the window is "
        "replayed with it. Several are tried one by one and together. Of each group those that fit "
        "the cause come first; `n` takes one of your own, such as clipnorm=0.5. The table says "
        "whether a fix prevents the non-finite value and how much it changes the loss before the "
        "failing step; below stand what it does and the change of the code. `y` copies that as a "
        "patch, `a` writes it to a file that `git apply` takes."
    )
    DEFAULT_CSS = """
    WhatIfPane #sides { height: 1fr; }
    WhatIfPane #choice { width: 32; height: 1fr; padding: 0 1; }
    WhatIfPane TickList {
        height: 1fr; border: none; padding: 0; background: $background;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    WhatIfPane #own { height: 1; border: none; padding: 0; }
    WhatIfPane #buttons { height: 1; }
    WhatIfPane #buttons Button { margin-right: 1; min-width: 12; }
    WhatIfPane #outcome { height: 1fr; padding: 0 1; }
    WhatIfPane TickList > .option-list--option-highlighted,
    WhatIfPane TickList:focus > .option-list--option-highlighted {
        background: $primary 30%; color: $foreground;
    }
    WhatIfPane DataTable { height: auto; max-height: 60%; background: $background; }
    WhatIfPane #change { height: 1fr; margin-top: 1; }
    WhatIfPane #how { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "r",
            "run",
            "Run",
            id="whatif.run",
            tooltip="Try the ticked fixes, one by one and together",
        ),
        Binding(
            "A", "run_all", "Run all", id="whatif.all", tooltip="Try all fixes that fit the cause"
        ),
        Binding(
            "n", "own", "Own", id="whatif.own", tooltip="Type a fix of your own, such as lr=0.3"
        ),
        Binding("y", "copy_patch", "Copy", id="whatif.copy", tooltip="Copy the patch of the fix"),
        Binding(
            "a",
            "write_patch",
            "Patch file",
            id="whatif.patch",
            tooltip="Write the patch of the fix to a file",
        ),
        Binding("x", "untick", "Untick", show=False, id="whatif.untick", tooltip="Untick all"),
        Binding(
            "escape",
            "no_own",
            "Close",
            show=False,
            id="whatif.no_own",
            tooltip="Leave the line for a fix of your own",
        ),
    ]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.results: dict[str, FixResult] = {}
        """What was tried, by label, in the order of the table."""
        self.own: list[str] = []
        """Fixes that the user has typed."""

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with Horizontal(id="sides"):
            with Vertical(id="choice"):
                yield TickList(id="fixes")
                yield Input(placeholder="own fix: lr=0.3", id="own", compact=True)
                with Horizontal(id="buttons"):
                    yield Button("Run", id="run", compact=True)
                    yield Button("Run all", id="run-all", compact=True)
            with Vertical(id="outcome"):
                yield DataTable(id="table", cursor_type="row", zebra_stripes=True)
                with VerticalScroll(id="change", can_focus=False):
                    yield Static("Tick fixes and run them.", id="how", markup=False)

    def on_mount(self) -> None:
        """Offer every fix."""
        self._offer(())
        super().on_mount()

    def on_resize(self) -> None:
        """Show as many columns as fit."""
        self.call_after_refresh(self._show_table)
        self.call_after_refresh(self._show_how)

    def _show_table(self) -> None:
        """Fill the table; numbers that have no room stand below, with the fix at the cursor."""
        if not self.is_attached:
            return
        table = self.query_one(DataTable)
        row, columns = table.cursor_row, _COLUMNS[: None if self._is_broad else _NARROW]
        rows = {
            name: _cells(name, fix, self.app.theme_variables)[: len(columns)]
            for name, fix in self.results.items()
        }
        table.clear(columns=True)
        for position, title in enumerate(columns):
            widest = max((len(cells[position]) for cells in rows.values()), default=0)
            table.add_column(title, width=max(widest, len(title)))
        for name, cells in rows.items():
            table.add_row(*cells, key=name)
        table.move_cursor(row=row)

    @property
    def _is_broad(self) -> bool:
        """Whether all columns of the table fit."""
        return self.query_one("#outcome").content_size.width >= _BROAD

    def show_report(self, report: Report) -> None:
        """Offer what fits the cause first, and show what was tried."""
        if not self.is_attached:
            return
        self._offer(candidates(report.causes))
        self._add(report.fixes)

    def _offer(self, fitting: Sequence[str]) -> None:
        """Offer the user's own fixes, those that fit the cause, then all others, in groups."""
        others = itertools.chain.from_iterable(FITTING.values())
        groups: dict[str, list[str]] = {"Code": [], "Data": [], "Optimizer": []}
        for name in dict.fromkeys([*self.own, *fitting, *others, LAST_RESORT]):
            groups[group_of(name).capitalize()].append(name)
        self.query_one(TickList).offer(groups)

    def _add(self, fixes: Sequence[FixResult]) -> None:
        self.results.update({fix_label(fix): fix for fix in fixes})
        self._show_table()
        ticks = self.query_one(TickList)
        marks = {}
        for name in ticks.names:
            tried = self._result_of(name)
            if tried is not None:
                mark, _, colour = outcome_mark(tried.prevents)
                marks[name] = Content.styled(mark, f"bold {colour}")
        ticks.mark(marks)
        self._show_how()

    def _result_of(self, name: str) -> FixResult | None:
        """What a fix of the list gave; None where it was not tried."""
        return next((fix for fix in self.results.values() if is_same_fix(name, fix)), None)

    # Keys and buttons

    @on(Button.Pressed, "#run")
    def action_run(self) -> None:
        """Try the ticked fixes."""
        ticked = self.query_one(TickList).chosen
        if not ticked:
            self.notify("Tick fixes first (space), or run all that fit (A).", severity="warning")
            return
        self.run_fixes(ticked)

    @on(Button.Pressed, "#run-all")
    def action_run_all(self) -> None:
        """Try all fixes that fit the cause."""
        self.run_fixes(None)

    def action_own(self) -> None:
        """Type a fix."""
        self.query_one("#own", Input).focus()

    def action_no_own(self) -> None:
        """Leave the line for a fix, which would take every other key as a letter."""
        self.query_one(TickList).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave the escape key to the screen while no fix is typed."""
        return action != "no_own" or self.query_one("#own", Input).has_focus

    def action_untick(self) -> None:
        """Untick all."""
        ticks = self.query_one(TickList)
        ticks.tick(ticks.names, ticked=False)

    @on(Input.Submitted, "#own")
    def _own_submitted(self, event: Input.Submitted) -> None:
        fix = event.value.strip()
        try:
            check_fix(fix)
        except FixError as error:
            self.notify(str(error), severity="error")
            return
        self.own.append(fix)
        ticks = self.query_one(TickList)
        report = self.state.report
        self._offer(candidates(report.causes) if report is not None else ())
        ticks.tick([fix])
        ticks.go_to(fix)
        ticks.focus()
        event.input.clear()

    @work(exclusive=True, group="whatif", exit_on_error=False)
    async def run_fixes(self, fixes: Sequence[str] | None) -> None:
        """Try fixes on the recording.

        Args:
            fixes: Which; all that fit unless given.
        """
        wanted = "all" if fixes is None else tuple(fixes)
        report = await self.ask(Explain(self.path, wanted, is_anew=False), partial=self._take_part)
        self._add(report.fixes)
        helpful = sum(fix.prevents is True for fix in report.fixes)
        self.notify(f"{helpful} of {len(report.fixes)} prevent it.")

    def _take_part(self, part: object) -> None:
        """Show a fix as soon as it was tried."""
        if isinstance(part, FixResult) and self.is_attached:
            self._add([part])

    # What was tried

    @on(DataTable.RowHighlighted)
    def _show_how(self) -> None:
        fix = self.chosen
        if fix is not None:
            box = self.query_one("#how", Static)
            numbers = not self._is_broad
            box.update(_how(fix, box.size.width, with_numbers=numbers))

    @on(OptionList.OptionHighlighted)
    def _name_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Say what the fix under the cursor of the list does; show its result where it has one."""
        name = event.option.id
        if name is None or not self.query_one(TickList).has_focus:
            return
        fix = self._result_of(name)
        if fix is not None:
            row = list(self.results.values()).index(fix)
            self.query_one(DataTable).move_cursor(row=row)
            self._show_how()
            return
        words = f": {what_it_does(name)}.\nNot tried yet: space ticks it, r runs it."
        self.query_one("#how", Static).update(Content.assemble((name, "bold"), words))

    def action_copy_patch(self) -> None:
        """Copy the patch of the fix at the cursor, or its code where it has none."""
        fix = self.chosen
        if fix is None or not fix.code:
            self.notify("No fix with code was tried yet.", severity="warning")
            return
        patch = patch_of(fix, self.path)
        self.app.copy_to_clipboard(patch or fix.code)
        self.notify(f"Copied the {'patch' if patch else 'code'} of {fix_label(fix)}.")

    def action_write_patch(self) -> None:
        """Write the patch of the fix at the cursor to the working directory."""
        from nanreplay.tui.copying import ExportError, export_path

        fix = self.chosen
        patch = patch_of(fix, self.path) if fix is not None else None
        if fix is None or patch is None:
            reason = "It changes no line of a file that is here; y copies its code."
            self.notify(reason if fix is not None else "No fix was tried.", severity="warning")
            return
        path = export_path(Path.cwd(), self.state.opened.name, fix.name, ".patch")
        try:
            with written_whole(path) as part:
                part.write_bytes(patch.encode())
        except OSError as error:
            self.post_message(Failed(ExportError(f"{path}: {error.strerror or error}.")))
            return
        self.notify(f"Written to {path}; `git apply {path.name}` takes it.")

    @property
    def chosen(self) -> FixResult | None:
        """The fix at the table's cursor."""
        row = self.query_one(DataTable).cursor_row
        return list(self.results.values())[row] if 0 <= row < len(self.results) else None

    def copies(self) -> Sequence[Copyable]:
        """The code of the fix at the cursor."""
        fix = self.chosen
        if fix is None or not fix.code:
            return []
        return [Copyable(f"the code of {fix_label(fix)}", fix.code)]

    def as_text(self) -> str:
        """The table of fixes, then the code of those that help."""
        lines = []
        for label, fix in self.results.items():
            lines.append("\t".join(cell.plain for cell in _cells(label, fix, {})))
        for label, fix in self.results.items():
            if fix.prevents and fix.code:
                lines.append(f"{label}: {fix.code}")
        return "\n".join(lines)


def _cells(label: str, fix: FixResult, colours: Mapping[str, str]) -> list[Text]:
    """A fix as a row of the table."""
    mark, _, colour = outcome_mark(fix.prevents)
    word = OUTCOME_WORDS[outcome_of(fix)]
    outcome = Text.assemble((f"{mark} ", cell_style(colour, colours)), word)
    return [Text(label, style="bold"), outcome, *map(Text, _numbers(fix))]


def _numbers(fix: FixResult) -> tuple[str, str, str]:
    """Which steps were replayed, how much the loss changes, the last loss; "" for not known."""
    steps = change = final_loss = ""
    if fix.steps_checked is not None:
        first, last = fix.steps_checked
        steps = readable_steps(range(first, last + 1)).removeprefix("steps ")
    if fix.loss_change is not None:
        change = f"{fix.loss_change:.2g}" if fix.loss_change else "0"
    if fix.final_loss is not None:
        final_loss = readable_number(fix.final_loss)
    return steps, change, final_loss


def is_same_fix(name: str, fix: FixResult) -> bool:
    """Whether a result is that of a fix of the list, such as `clipnorm=1.0` or `epsilon`."""
    fix_name, _, value = name.partition("=")
    if fix_name != fix.name:
        return False
    tried = fix_option(fix).partition("=")[2]
    try:
        return not value or not tried or float(value) == float(tried)
    except ValueError:
        return value == tried


def _how(fix: FixResult, width: int, *, with_numbers: bool) -> Content:
    """What a fix does and gave, and the change of the code.

    Args:
        fix: The fix.
        width: Columns that there are.
        with_numbers: Whether the table has no room for its numbers.
    """
    outcome = OUTCOME_CLAUSES[outcome_of(fix)]
    said = f": {what_it_does(fix.name)}. It {outcome}. {fix_remark(fix)}".rstrip()
    lines = [Content.assemble((fix_label(fix), "bold"), said)]
    if with_numbers:
        pairs = zip(_COLUMNS[_NARROW:], _numbers(fix), strict=True)
        lines.append(Content(" · ".join(f"{name} {value}" for name, value in pairs if value)))
        lines[-1] = lines[-1].stylize("dim")
    return Content("\n").join([*lines, Content(""), diff_content(diff_of(fix), width)])
