"""`Replay`: seeking to a step of a capture and running it again.

Steps run compiled as in training or op by op. Everything that explains a capture (bisect, diagnose,
what-if, the terminal interface) works through a `Replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from nanreplay.errors import StepRaisedError
from nanreplay.limits import give_back_freed
from nanreplay.program.bit_hashes import BitHash, compiled_hashes
from nanreplay.program.nonfinite_values import nonfinite_kind
from nanreplay.records import ArrayLike, BatchRecord
from nanreplay.replay.determinism import begun_anew
from nanreplay.replay.interpreter import ErrorHandler, Observer
from nanreplay.replay.kernels import run_kernel
from nanreplay.replay.provenance import OpEvent, ValueId
from nanreplay.replay.replay_programs import Mode
from nanreplay.replay.replay_state import KnownStates, LiveState
from nanreplay.replay.step_results import StepResult, compare_step, tells_losses
from nanreplay.replay.step_runs import StepRuns

__all__ = ["Replay", "StepResult"]
AtKeyframe: TypeAlias = Callable[[int, Mapping[int, Any], Mapping[int, Any]], Mapping[int, Any]]


class Replay(StepRuns):
    """Runs the steps of a capture again, with the state and the batches that were recorded.

    Examples:
        >>> with Capture("run.h5") as capture, Replay(capture) as replay:
        ...     results = replay.run_window("recorded")
        >>> results[-1].step, results[-1].finite
        (12, False)

        The same steps with every float as float64: here it is not precision that fails.

        >>> with Capture("run.h5") as capture, Replay(capture) as replay:
        ...     results = replay.run_window("float64")
        >>> results[-1].finite
        False

    Op determinism is on while a `Replay` is open, and its variables take memory: close it, or use
    it in a `with` statement as above.

    Args:
        capture: An open capture.
        trust: Let ops that touch files, the network or processes run. False unless given; only for
            captures of your own.
    """

    def __enter__(self) -> Replay:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the state."""
        self.close()

    @begun_anew
    def run_window(
        self,
        mode: Mode = "recorded",
        *,
        first: int | None = None,
        last: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        at_keyframe: AtKeyframe | None = None,
        takes_state: bool = True,
        stops_at_other_bits: bool = False,
        keeps_state: bool = True,
    ) -> list[StepResult]:
        """Run a window of steps one after another and compare each with the recording.

        Args:
            mode: "recorded" compiles as the training did (graph or XLA; an eager step runs op by
                op); "graph" compiles without XLA; "ops" runs op by op; "float64" op by op with
                every float as float64.
            first: First step; the first that can be replayed unless given.
            last: Last step; the last that can be replayed unless given.
            progress: Called with (steps done, steps in all).
            at_keyframe: Called at a keyframe that the replay reaches, with the step, the replayed
                variables just before it, and those that the keyframe holds; returns the ones to
                set. All that it holds unless given.
            takes_state: Whether the failing step, as it was trained, begins with the state that
                the recording holds of it. Where all steps before it came out bit for bit, that is
                the state that they left.
            stops_at_other_bits: Whether a step that comes out with other bits than the recorded
                ones is the last.
            keeps_state: Whether the state before the incident is kept, a second one in memory, for
                whoever asks for it afterwards; it is replayed for them otherwise.

        Returns:
            One result a step. Where the step that raised in training raises again, its result has
            a trigger `exception`, and is the last.

        Raises:
            ReplayError: A step could not be run.
            MissingPartError: No step between `first` and `last` can be replayed.
        """
        wanted = self.window(first, last)
        keyframes = set(self.capture.keyframe_steps)
        live = self._wide if mode == "float64" else self._live
        results: list[StepResult] = []
        # The state before the incident is worth keeping only while the replay is the training's
        # own: in the recorded mode, with every keyframe set as it was held.
        is_faithful = mode == "recorded" and takes_state and keeps_state
        matrices: Mapping[int, Any] = {}
        for done, step in enumerate(wanted):
            follows = bool(results) and wanted[done - 1] == step - 1
            if step in keyframes:
                # set even after the step before it has run: between the two, metrics were reset or
                # a callback set weights
                is_faithful &= self._set_keyframe(step, live, at_keyframe if follows else None)
            elif not follows:
                live.assign(self.state(step))
            is_exact = all(result.bit_exact is True for result in results)
            if follows and takes_state and mode == "recorded" and not is_exact:
                self._set_held_state(step)
            if is_faithful and self._states.is_worth(step, self.incident.step, is_first=not done):
                self._remember(step)
            matrices = self._note_change(step, matrices) if is_faithful else {}
            try:
                results.append(self._run_step(step, mode))
            except StepRaisedError as error:
                if step != self.incident.step or self.incident.trigger.what != "exception":
                    raise
                results.append(StepResult.raised(step, error.kind, error.reason))
                break  # it has left no state for a step after it
            if progress is not None:
                progress(done + 1, len(wanted))
            if stops_at_other_bits and results[-1].bit_exact is not True:
                break
        if mode == "recorded" and takes_state:
            self.recorded_results.update((result.step, result) for result in results)
        return results

    def _set_keyframe(self, step: int, live: LiveState, at_keyframe: AtKeyframe | None) -> bool:
        """Set the variables that a keyframe holds, or those chosen of it; returns whether all."""
        held = self.capture.lazy_keyframe(step)
        chosen = at_keyframe(step, live.read(), held) if at_keyframe is not None else held
        live.assign(chosen)
        return chosen is held

    @begun_anew
    def run(
        self,
        step: int,
        observer: Observer | None = None,
        *,
        batch: Sequence[ArrayLike] | None = None,
        on_error: ErrorHandler | None = None,
        fetches: Sequence[str] | None = None,
        update: bool = True,
        mode: Literal["ops", "float64"] = "ops",
    ) -> Mapping[str, Any]:
        """Run a step op by op from the state just before it and return the fetched tensors by name.

        Args:
            step: One of `steps`.
            observer: Called after each op; what it raises passes through.
            batch: Arrays to feed in place of the recorded ones (the batch's, then the recorded
                outputs of ops).
            on_error: Called when a kernel raises; returns the op's outputs.
            fetches: Tensor names of the main graph. The program's outputs, losses and gradients
                unless given.
            update: Whether everything runs for its effect; False runs only what `fetches` need.
            mode: "float64" runs with every float as float64. Events then hold float64 tensors, and
                ops that have no float64 kernel come between ops of type `Cast` (`replay.notes`
                names them).

        Raises:
            MissingPartError: The step cannot be replayed.
            ReplayError: A kernel raised and there is no `on_error`.
        """
        program, live = self._program_and_state(step, mode)
        if mode == "float64":
            self._live.assign(self.state(step))  # what the last step left takes as much memory
        live.assign(self.state(step))
        leaves = self.batch(step).arrays if batch is None else batch
        if fetches is None:
            signature = program.signature
            fetches = [*signature.outputs, *signature.losses, *signature.gradient_tensors]
        return self._determined(
            step,
            lambda: program.run_ops(
                leaves,
                live.variables,
                fetches=fetches,
                update=update,
                observer=observer,
                on_error=on_error,
            ),
        )

    def result_after(
        self, step: int, fetched: Mapping[str, Any], mode: Literal["ops", "float64"] = "ops"
    ) -> StepResult:
        """Judge a step that has just run op by op as part of `run`, and compare it.

        Args:
            step: One that has run in a window before; nothing may have run since.
            fetched: Its losses and outputs; gradients as well where it is judged by them.
            mode: How it ran.
        """
        batch, (program, live) = self.batch(step), self._program_and_state(step, mode)
        signature, trigger = program.signature, self.incident.trigger
        asks_gradients = trigger.what == "gradient" and step == self.incident.step
        bad_before = self._bad_before[step]
        result = compare_step(
            step,
            signature,
            program.fingerprint_after_ops(fetched, live.variables, batch.fingerprint),
            batch.fingerprint,
            paths=[info.path for info in self.variables],
            count_skips=trigger.what == "gradient",
            bad_variable=lambda index: "" if index in bad_before else live.bad_kind(index),
            slots=self.optimizer_slots,
        )
        if asks_gradients and result.finite and result.nonfinite is None:
            gradient = self._first_bad([fetched[spec.tensor] for spec in signature.gradients], step)
            if gradient is not None:
                return replace(result, finite=False, nonfinite=gradient)
        return result

    @begun_anew
    def loses_in_float64(self, step: int) -> bool | None:
        """Whether a loss of a step is not finite with every float as float64.

        Only what the losses need runs, and of the variables only what they depend on is widened: a
        whole state in float64 takes twice the memory. None where losses do not decide.

        Args:
            step: One of `steps`.
        """
        signature, batch = self.signature(step), self.batch(step)
        if not (signature.losses and tells_losses(signature)) or batch.fingerprint is None:
            return None
        state = self.state(step)
        # What the last step left takes as much memory as the state. Whoever noted its ops holds
        # handles, and so the variables: they are not let go of.
        self._live.assign(state)
        if self._states.are_large:
            self._live.give_back()
            give_back_freed()
        program = self.program(step).wide_losses
        self._note_narrow(program.narrow_ops)
        needed = program.needed_variables(signature.losses)
        variables = self._wide.some({index: state[index] for index in needed})
        fetched = self._determined(
            step,
            lambda: program.run_ops(
                batch.arrays, variables, fetches=signature.losses, update=False
            ),
        )
        del self.program(step).wide_losses  # a copy of the graph, which is asked for once
        return any(bool(nonfinite_kind(loss)) for loss in fetched.values())

    def plan_ops(self, step: int, fetches: Sequence[str]) -> None:
        """Make ready what a run of a step op by op needs, and one of its losses in float64.

        Nothing runs, so a step may run meanwhile in another thread.

        Args:
            step: One of `steps`.
            fetches: The tensors that `run` will be asked for.
        """
        program, losses = self.program(step), self.signature(step).losses
        program.plan_ops(fetches)
        if losses and tells_losses(self.signature(step)):
            program.wide_losses.plan_ops(losses, update=False)

    @begun_anew
    def probe(self, step: int) -> Mapping[str, tuple[bool, bool]]:
        """Run a step compiled as it was trained and say what each float tensor holds.

        Returns:
            Whether it holds NaN, and whether infinities, by name of the main graph's tensor.
        """
        self._live.assign(self.state(step))
        return self._determined(
            step, lambda: self.program(step).probe(self.batch(step).arrays, self._live.variables)
        )

    @begun_anew
    def compiled_values(self, step: int, names: Sequence[str]) -> Mapping[str, Any]:
        """Run a step compiled as it was trained and return tensors of the main graph by name."""
        self._live.assign(self.state(step))
        program = self.program(step)
        _, tensors = self._determined(
            step,
            lambda: program.compiled(names)(
                self.batch(step).arrays, self._live.variables, program.record.constants
            ),
        )
        return dict(zip(names, tensors, strict=True))

    @begun_anew
    def compiled_hashes(self, step: int, names: Sequence[str]) -> Mapping[str, BitHash]:
        """Run a step compiled as it was trained and return hashes of float tensors by name."""
        self._live.assign(self.state(step))
        record, leaves = self.program(step).record, self.batch(step).arrays
        return self._determined(
            step,
            lambda: compiled_hashes(record, names, batch=leaves, variables=self._live.variables),
        )

    def compiled_event(self, step: int, op: str, *, one_by_one: bool = False) -> OpEvent | None:
        """Return one op's execution in the step compiled as it was trained.

        None for an op that takes or gives a handle or a string, which no compiled program fetches.

        Args:
            step: The step.
            op: Name of an op of the main graph.
            one_by_one: Compile the step once for each of its tensors. A tensor that is fetched is
                not computed as one with those that follow, which may change what these give.
        """
        node = self.program(step).node(op)
        inputs = self.inputs_of(step)[op]
        names = [*inputs, *node.outputs]
        if not {"resource", "variant", "string"}.isdisjoint(self.program(step).kinds(names)):
            return None
        fetched = [[name] for name in dict.fromkeys(names)] if one_by_one else [names]
        tensors: dict[str, Any] = {}
        for together in fetched:
            tensors.update(self.compiled_values(step, together))
        # made-up identities below those of the feeds: nobody followed what made these inputs
        n_feeds = len(self.feed_names(step))
        ids = tuple(ValueId(-1 - n_feeds - i, 0) for i in range(len(inputs)))
        input_tensors = tuple(tensors[name] for name in inputs)
        outputs = tuple(tensors[name] for name in node.outputs)
        return OpEvent(0, "", op, node.type, (), input_tensors, ids, outputs, node.attrs)

    def execute(self, event: OpEvent, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run the kernel of an event again on other inputs.

        Args:
            event: Its op type and attributes are taken.
            inputs: Tensors, or arrays that become tensors of their own dtype.
        """
        return run_kernel(event.type, event.attrs, inputs)

    @begun_anew
    def state_after(self, step: int) -> Mapping[int, Any]:
        """Return the variables just after a step, replayed as it was trained, by index.

        Raises:
            MissingPartError: The step cannot be replayed.
        """
        self._live.assign(self.state(step))
        self._run_step(step, "recorded")
        return self._live.read()

    def make_room(self) -> None:
        """Let go of what the last run left; of large states all but the incident's go, too."""
        self._live.clear()
        self._wide.clear()
        self._states.make_room()

    def make_room_if_large(self) -> None:
        """Let go of what the last run left, where that is worth making new variables for."""
        if self._states.are_large:
            self.make_room()
            give_back_freed()

    def replace_batch(self, step: int, batch: BatchRecord) -> None:
        """From now on, run a step with another input than was recorded of it."""
        self._edit_batch(step, batch)
        self._held_states -= {held for held in self._held_states if held > step}
        for known in [known for known in self._states if known > step]:
            self._states.drop(known)  # reached through the input that was replaced
        self._changes.clear()

    def replace_state(self, step: int, values: Mapping[int, Any]) -> None:
        """From now on, start a step with these values of some variables.

        The others are as they were just before it.
        """
        self._live.assign(self.state(step))
        self._live.assign(values)
        self._states = KnownStates(self.variables, step)
        self._held_states -= {held for held in self._held_states if held >= step}
        self._states.add(step, self._live.read())
        self._changes.clear()

    @begun_anew
    def fingerprint(self, step: int) -> Any:
        """Return the fingerprint of a step that runs as it was trained; None without one."""
        self._live.assign(self.state(step))
        batch, program = self.batch(step), self.program(step)
        return self._determined(
            step,
            lambda: program.step("recorded", batch.arrays, self._live.variables, batch.fingerprint),
        )

    def now(self) -> Mapping[int, Any]:
        """Return the variables as the last run left them (one in float64 aside), by index."""
        return self._live.read()
