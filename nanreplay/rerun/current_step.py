"""Today's training step: made on a recorded batch, set to recorded state, and recorded as it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from nanreplay.errors import ModelError
from nanreplay.program import observe
from nanreplay.program.nondeterministic_ops import is_outside
from nanreplay.program.safety import all_nodes
from nanreplay.program.step_programs import program_of
from nanreplay.program.training_functions import TrainingFunction
from nanreplay.recorder.compiled_calls import CompiledCalls
from nanreplay.recorder.eager_step import EagerStep
from nanreplay.recorder.fit_hooks import check_model
from nanreplay.recorder.lifecycle import Suspicion
from nanreplay.recorder.recording import Recording
from nanreplay.recorder.settings import Settings
from nanreplay.recorder.variable_table import VariableTable
from nanreplay.recorder.wrapped_step import WrappedStep, is_compiled_function
from nanreplay.records import ArrayLike, BatchRecord, Compilation, Trigger
from nanreplay.replay.replay_state import as_type
from nanreplay.rerun.model_factory import Training, arguments_for, batch_of, raised
from nanreplay.tensorflow_internals import tf_distribution, tf_eager, tf_variables

OnSuspicion = Callable[[Suspicion], None]
_LARGE_BYTES = 2**50


class CurrentStep:
    """The training step of today's code.

    Args:
        training: What the factory made.
        compilation: How the recorded step was compiled; decides where today's code leaves that to Keras.

    Raises:
        AttachError: The model is not compiled, or no model of Keras 3.
    """

    def __init__(self, training: Training, compilation: Compilation) -> None:
        """Make nothing yet."""
        self.training = training
        self._step = training.step
        if training.step is None:
            check_model(training.model)
            if compilation != "eager" and tf_variables.is_jit_chosen_by_keras(training.model):
                training.model.jit_compile = compilation == "xla"
        self._session = self._new_session(Settings(""), 0)
        self._compiled: Any = None
        self.draws: tuple[str, ...] = ()
        """Types of ops in the step that give something else in every run (random draws whose state is no variable)."""

    @property
    def table(self) -> VariableTable:
        """Today's variables; empty before `build`."""
        return self._session.variables

    @property
    def optimizer(self) -> Any:
        """The optimizer whose learning rate holds, or None."""
        found = self.training.model.optimizer if self._step is None else self.training.optimizer
        flat = tf.nest.flatten(found)
        return flat[0] if len(flat) == 1 else None

    @property
    def is_eager(self) -> bool:
        """Whether the step runs as plain Python."""
        if self._step is None:
            return bool(self.training.model.run_eagerly)
        return not is_compiled_function(self._step)

    def arguments(self, batch: BatchRecord) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """How the step is called with a recorded batch.

        Raises:
            ReplayError: The batch cannot be rebuilt, or the step takes other arguments.
        """
        data = batch_of(batch.paths, batch.leaves)
        return ((data,), {}) if self._step is None else arguments_for(self._step, data)

    def build(self, batch: BatchRecord) -> None:
        """Make all variables that the step uses; afterwards they are as today's code makes them.

        A compiled step is traced. A plain Python step has to run once: the variables' first values are put back.

        Raises:
            ModelError: The step does not take the batch.
        """
        args, kwargs = self.arguments(batch)
        if self.is_eager:
            self._run_once(args, kwargs)
            return
        release = observe.install()
        try:
            self._compiled = (
                _train_step_function(self.training.model) if self._step is None else self._step
            )
            function = self._compiled.get_concrete_function(*args, **kwargs)
            training = TrainingFunction(function)
            flat = [
                leaf
                for leaf in tf.nest.flatten((args, kwargs), expand_composites=True)
                if tf.is_tensor(leaf)
            ]
            program = program_of(training, function.captured_inputs, flat)
            if program is None:
                raise ModelError(
                    f"{self.training.name}: the step fetches its data by itself; give one that takes a batch."
                )
            self._session.add_program(program)
            self._note_draws(node.op for _, node in all_nodes(program.graph.as_graph_def()))
        except Exception as error:
            raise raised(
                f"{self.training.name}: today's training step does not take the recorded batch",
                error,
            ) from error
        finally:
            release()

    def _run_once(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        session = self._session
        error: Exception | None = None
        types: set[str] = set()
        undo = tf_eager.add_op_callback(_note_types(types))
        try:
            self.runner(session, lambda suspicion: None)(*args, **kwargs)
        except Exception as raised_by_step:  # a check of the step's own, perhaps: what it made by then may be all there is
            error = raised_by_step
        finally:
            undo()
        self._note_draws(types)
        self._build_optimizers()
        if error is not None and not (
            session.variables.handles and isinstance(error, tf.errors.OpError)
        ):
            raise raised(
                f"{self.training.name}: today's training step does not take the recorded batch",
                error,
            ) from error
        if session.ring is not None and session.ring.keyframes:
            self.load(session.ring.keyframes[min(session.ring.keyframes)])

    def _note_draws(self, op_types: Iterable[str]) -> None:
        """Python functions and tables are today's code, and run; random draws are others than the recorded ones."""
        found = sorted({each for each in op_types if is_outside(each)})
        self.draws = tuple(
            each for each in found if not each.startswith(("PyFunc", "EagerPyFunc", "LookupTable"))
        )

    def _build_optimizers(self) -> None:
        """Make the slots that a step which was stopped did not come to make."""
        models = [
            model
            for model in tf.nest.flatten(self.training.model)
            if hasattr(model, "trainable_variables")
        ]
        for optimizer in tf.nest.flatten(self.training.optimizer):
            if (
                hasattr(optimizer, "build")
                and not getattr(optimizer, "built", True)
                and len(models) == 1
            ):
                optimizer.build(models[0].trainable_variables)
                self.table.name_optimizer(optimizer)
                self.table.add(map(tf_variables.handle_of, optimizer.variables))

    @property
    def _function(self) -> Callable[..., Any]:
        return self.training.model.train_step if self._step is None else self._step

    def load(self, values: Mapping[int, ArrayLike]) -> None:
        """Set variables by their index in `table`; values of another type are cast."""
        for index, value in values.items():
            typed = as_type(value, self.table.infos[index].dtype)
            tf.raw_ops.AssignVariableOp(resource=self.table.handles[index], value=typed)

    def state(self) -> dict[int, Any]:
        """All variables by index."""
        return self._session.read_state()

    def recording(self, path: str, first: int, *, steps: int, max_skipped: int) -> CurrentRun:
        """A recording of the step that begins with step `first`."""
        settings = Settings(
            path,
            window=steps,
            memory_limit=_LARGE_BYTES,
            history=max(steps, 1),
            max_skipped=max_skipped,
        )
        return CurrentRun(self, self._new_session(settings, first))

    def runner(self, session: Recording, on_suspicion: OnSuspicion) -> Callable[..., Any]:
        """Runs the step and records it in a session."""
        calls = CompiledCalls(session, on_suspicion)
        step = self._function if self.is_eager else self._compiled
        wrapped = WrappedStep(session, step, calls, EagerStep(session, step, on_suspicion))

        def run(*args: Any, **kwargs: Any) -> Any:
            release = observe.install()
            try:
                return wrapped(*args, **kwargs)
            finally:
                release()

        return run

    def _new_session(self, settings: Settings, first: int) -> Recording:
        session = Recording(settings, step=first)
        session.looks.is_always = True
        for each in tf.nest.flatten(self.training.model):
            session.variables.name_model(each)
        for each in tf.nest.flatten(self.training.optimizer):
            session.variables.name_optimizer(each)
        return session


def _train_step_function(model: Any) -> Any:
    """The compiled train step of a Keras model, as Keras makes it, that takes a batch."""
    reduced = tf_distribution.replica_reducer(model.distribute_strategy)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def one_step_on_data(data: Any) -> Any:
        return reduced(model.distribute_strategy.run(model.train_step, args=(data,)))

    return tf.function(one_step_on_data, reduce_retracing=True, jit_compile=model.jit_compile)


def _note_types(found: set[str]) -> Callable[..., None]:
    """An op callback that collects the types of ops."""

    def callback(
        op_type: Any, inputs: Any, attrs: Any, outputs: Any, op_name: Any = None, graph: Any = None
    ) -> None:
        found.add(op_type.decode() if isinstance(op_type, bytes) else op_type)

    return callback


class CurrentRun:
    """Today's step as it runs, recorded by the recorder's own rule of what is an incident.

    Args:
        step: The step.
        session: Its recording.
    """

    def __init__(self, step: CurrentStep, session: Recording) -> None:
        self.session = session
        self.trigger: Trigger | None = None
        """What was not finite, or the exception that the step raised; None while all is well."""
        self.failed: int | None = None
        """The step at which that was."""
        self.raised: Exception | None = None
        """What the step raised, or None."""
        self.numbers: dict[int, Mapping[str, Any]] = {}
        """The fingerprint of each step that has run, by name of the element."""
        self._step = step
        self._run = step.runner(session, self._note)

    def _note(self, suspicion: Suspicion) -> None:
        self.trigger, self.failed = suspicion.trigger, suspicion.step

    def ignore(self, indices: Iterable[int]) -> None:
        """Leave variables (of the step's table) out of what counts: they were non-finite before the first step."""
        handles = [self._step.table.handles[index] for index in indices]
        self.session.variables.add(handles)
        self.session.variables.born_nonfinite |= {
            self.session.variables.index[id(handle)] for handle in handles
        }

    def run(self, batch: BatchRecord) -> bool:
        """Run one step; returns whether it was finite.

        Raises:
            ModelError: The step cannot run on this batch, for a reason that has nothing to do with its numbers.
        """
        args, kwargs = self._step.arguments(batch)
        try:
            self._run(*args, **kwargs)
        except Exception as error:
            if self.trigger is None:
                raise raised(
                    f"{self._step.training.name}: today's training step does not take the recorded batch",
                    error,
                ) from error
            self.raised = error
        found = self.session.flush()  # on a GPU steps are looked at late, unless one asks
        if found is not None:
            self._note(found)
        entry = (
            None if self.session.ring is None else self.session.ring.entry(self.session.step - 1)
        )
        if entry is not None and entry.fingerprint is not None:
            self.numbers[entry.step] = entry.fingerprint
        if not self.session.lifecycle.is_active:
            raise ModelError(
                f"{self._step.training.name}: today's training step could not be recorded."
            )
        return self.trigger is None

    def close(self) -> None:
        """Let go of batches and keyframes; the timeline stays."""
        self.session.release()

    def write(self) -> str | None:
        """Write what was recorded as a capture; returns its path."""
        trigger, step = self.trigger, self.failed
        if trigger is None or step is None:
            trigger, step = Trigger("manual", "dump", "today's code"), max(0, self.session.step - 1)
        path, _ = self.session.write(trigger, step)
        return None if path is None else str(path)
