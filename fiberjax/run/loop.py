"""The run: warm start, evaluation, iterations of rollouts and updates, evaluation, report.

One command starts a run and, given the same directory, resumes it. A resumed run ends bitwise where
one that was never interrupted does, on the same devices: everything random is a function of the
seed and the iteration, and the checkpoint holds the rest (policy, optimizer, prompt stream).
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from jax.experimental import multihost_utils

from fiberjax import disk, storage
from fiberjax.experiment import Experiment
from fiberjax.parallel import distributed
from fiberjax.policy import lora
from fiberjax.run import ahead, evaluation, identity, lock, provenance, refused, rollouts, writers
from fiberjax.run.ahead import Drawn
from fiberjax.run.base import Base, make_base
from fiberjax.run.best import Best, EarlyStop
from fiberjax.run.checkpoints import Checkpoints
from fiberjax.run.control import Controller
from fiberjax.run.evaluation import EvaluationTable, Measures, comparable, evaluate, profile
from fiberjax.run.interrupts import Interrupted, Interrupts
from fiberjax.run.keeping import Keeper
from fiberjax.run.nonfinite import NonFinite
from fiberjax.run.progress import Progress
from fiberjax.run.trainer import Trainer
from fiberjax.run.unpaid import Unpaid
from fiberjax.run.warm_start import not_finite, starting_params
from fiberjax.run.watching import Watch
from fiberjax.tasks import PromptStream
from fiberjax.tasks.rewards import close_all
from fiberjax.train.rollout import Rollouts
from fiberjax.train.server import ServerError
from fiberjax.train.update import TrainState

SHOWN = {"reward": "reward/mean", "kl": "actor/ppo_kl", "entropy": "actor/entropy"}


def run(
    experiment: Experiment,
    directory: str | Path,
    config_json: str,
    *,
    trace_iteration: int | None = None,
) -> EvaluationTable:
    """Trains the experiment in a directory, or goes on with what is there.

    Args:
      experiment: from `experiment.from_config`.
      directory: the run folder: `config.json`, `run.json`, `metrics.jsonl` and what other writers
        make, `samples/`, `checkpoints/`, `evaluation.{json,md}` and `plots/`.
      config_json: the config as JSON; a directory with another one is refused. See `identity`.
      trace_iteration: an iteration, counted from 1, that is traced into `trace/` for TensorBoard's
        profiler, on every host; None traces none.

    Returns:
      The evaluation on held-out prompts, before and after.

    Raises:
      ValueError: the directory cannot be written, is in use, or holds a run of another config;
        `refused.Unreadable` where what lies in it, or in the model's folder, cannot be used.
      NotFinite: an update was not finite, and the config says to stop; see `nonfinite`.
      NoRoom: the disk is full.
      ServerError: a server that draws could not be reached, or answered what cannot be used.
      Interrupted: the run was asked to end.
    """
    directory = storage.place(directory)
    barrier("run folder claimed")
    with lock.held(directory), contextlib.ExitStack() as ending:
        ending.callback(close_all)  # The workers of rewards.
        identity.claim(directory, experiment, config_json)
        before, state, base = train(experiment, directory, trace_iteration)
        after = evaluate_after(experiment, directory, experiment.whole(state.params, base.params))
        table = evaluation.compare(
            before.by_name,
            after.by_name,
            before.domain,
            names=tuple(domain.name for domain in experiment.test),
        )
        if jax.process_index() == 0:
            with disk.writing("the report", directory):
                report(directory, table)
    return table


def evaluate_after(experiment: Experiment, directory: Path, params: Any) -> Measures:
    """The evaluation after the last iteration; its samples are kept as of that iteration."""
    with Checkpoints(directory / "checkpoints", keep=experiment.checkpoint.keep) as saved:
        iteration = saved.latest() or 0
    samples = rollouts.kept_of_evaluations(experiment)
    after = evaluate(experiment, params, "evaluation after", samples=samples, iteration=iteration)
    folder = rollouts.open_folder(experiment, directory, iteration)
    if folder is not None and after.samples is not None:
        folder.write(after.samples)
    return after


class SavedPolicy(NamedTuple):
    """What a run's checkpoint holds of the policy.

    Attributes:
      iteration: that it was saved after.
      trained: all parameters, or the adapters.
      base: of the adapters.
    """

    iteration: int
    trained: Any
    base: Base


Wanted = int | Literal["best"] | None
"""Which checkpoint: its iteration, the best one by `config.checkpoint.best`, or the newest."""


def saved_policy(experiment: Experiment, directory: Path, iteration: Wanted = None) -> SavedPolicy:
    """The policy of a run's checkpoint, on the experiment's mesh.

    Args:
      experiment: of the run.
      directory: its folder.
      iteration: of the checkpoint; "best" for the best one by `config.checkpoint.best`; None for
        the newest.

    Raises:
      ValueError: there is none, or it is not of this experiment, or adapts another base.
    """
    if not (directory / "checkpoints").is_dir():
        raise ValueError(f"{str(directory)!r} holds no checkpoint of a run")
    with Checkpoints(directory / "checkpoints", keep=experiment.checkpoint.keep) as saved:
        wanted = saved.best() if iteration == "best" else iteration
        found = saved.restore(experiment.abstract_state(), wanted)
    if found is None:
        raise ValueError(f"{str(directory)!r} holds no checkpoint of a run")
    base = make_base(experiment)
    base.check(found.host)
    return SavedPolicy(found.iteration, found.state.params, base)


def saved_params(
    experiment: Experiment, directory: Path, iteration: Wanted = None
) -> tuple[int, Any]:
    """Iteration and parameters of a checkpoint, adapters merged into them; as `saved_policy`."""
    found = saved_policy(experiment, directory, iteration)
    return found.iteration, lora.merged(experiment.lora, found.base.params, found.trained)


def first_params(experiment: Experiment) -> Any:
    """The parameters that a run starts from, on the experiment's mesh, new adapters among them."""
    if experiment.lora is None:
        return starting_params(experiment)
    base = make_base(experiment).params
    trained = jax.jit(lambda base: experiment.fresh_state(base).params)(base)
    return experiment.whole(trained, base)


class Begun(NamedTuple):
    """Where a run stands when its next iteration begins.

    Attributes:
      base: what adapters adapt.
      state: the train state.
      done: iterations finished.
      stream: of the prompts.
      control: of the gate's budgets, or of steps.
      best: of the checkpoints.
      stop: whether to stop early.
      nonfinite: the updates that were left out.
      unpaid: what the first iterations were paid.
      before: the evaluation before the first iteration.
      ahead: what was sampled for iterations to come.
    """

    base: Base
    state: TrainState
    done: int
    stream: PromptStream
    control: Controller
    best: Best
    stop: EarlyStop
    nonfinite: NonFinite
    unpaid: Unpaid
    before: Measures
    ahead: tuple[Drawn, ...] = ()

    def to_host(self, experiment: Experiment) -> dict[str, Any]:
        """What a checkpoint holds beside the train state, as JSON; `begin` reads it."""
        host = {
            "stream": self.stream.get_state(),
            "control": self.control.get_state(),
            "best_value": self.best.get_state(),
            "stop": self.stop.get_state(),
            "nonfinite": self.nonfinite.get_state(),
            "unpaid": self.unpaid.get_state(),
            "before": self.before.to_json(),
            "evaluation": evaluation.settings(experiment),
        }
        return host | ({"base": self.base.digest} if self.base.digest else {})


def begin(experiment: Experiment, saved: Checkpoints) -> Begun:
    """The newest checkpoint, or what a run starts from: warm-started, evaluated and profiled."""
    stream = experiment.prompt_stream()
    control = Controller(experiment.control, experiment.iterations)
    best = Best(experiment.checkpoint.best, experiment.checkpoint.best_mode)
    stop, nonfinite, unpaid = EarlyStop(experiment.stop), NonFinite(experiment), Unpaid(experiment)
    parts = stream, control, best, stop, nonfinite, unpaid
    shapes = experiment.abstract_state()
    base = make_base(experiment)
    with refused.reading():
        found = saved.restore(shapes)
    if found is not None:
        with refused.reading():
            broken = not_finite(experiment.mesh, found.state)
            if broken:
                raise ValueError(
                    f"the checkpoint of iteration {found.iteration} is not finite in "
                    f"{', '.join(broken[:3])}: an earlier version saved it. Remove its folder to "
                    "go on from the one before"
                )
            base.check(found.host)
            stream.set_state(found.host["stream"])
            control.set_state(found.host.get("control", found.host.get("budget_control")))
            best.set_state(found.host.get("best_value"))
            stop.set_state(found.host.get("stop"))
            nonfinite.set_state(found.host.get("nonfinite"))
            unpaid.set_state(found.host.get("unpaid"))
            before = Measures.of(found.host["before"])
            state, done, told = found.state, found.iteration, found.host.get("ahead", [])
            arrays = saved.ahead(done, ahead.abstract(experiment, told)) if told else []
            waiting = ahead.of_host(experiment, told, arrays)
        if not comparable(before, found.host.get("evaluation"), experiment):  # Changed since.
            first = base.params if experiment.lora else starting_params(experiment)
            before = evaluate(experiment, first, "evaluation before")
        return Begun(base, state, done, *parts, before, waiting)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    if experiment.lora is None:
        # Donated: nothing but the state is kept on the devices.
        make = jax.jit(experiment.fresh_state, out_shardings=shardings, donate_argnums=0)
        state = make(starting_params(experiment))
    else:
        state = jax.jit(experiment.fresh_state, out_shardings=shardings)(base.params)
    params = experiment.whole(state.params, base.params)
    samples = rollouts.seen_before_training(experiment)
    before = evaluate(experiment, params, "evaluation before", samples=samples)
    profile(experiment, params, stream)
    return Begun(base, state, 0, *parts, before)


def train(
    experiment: Experiment, directory: Path, trace_iteration: int | None = None
) -> tuple[Measures, TrainState, Base]:
    """Runs the iterations that the directory's newest checkpoint has not seen yet.

    Arguments as `run`.

    Returns:
      The evaluation before the first iteration; the state after the last, or after the one that
      `config.stop` stopped at; and the base of its adapters.

    Raises:
      SystemExit: a host was asked to end, nothing is paid (`unpaid`), or too many updates in a
        row were not finite (`nonfinite`); the run is saved.
      Interrupted: a host alone was asked to end; what is done is saved.
      ServerError: what draws in our place does not; what is done is saved.
    """
    primary, keep = jax.process_index() == 0, experiment.checkpoint.keep
    record = directory / identity.NEWEST
    with Checkpoints(directory / "checkpoints", keep=keep, record=record) as saved:
        begun = begin(experiment, saved)
        base, state, done, stream, control, best, stop, nonfinite, unpaid, before, waiting = begun
        if stop.reached and primary:
            print(f"{directory} stopped early after iteration {done}: {stop}")
        if done == experiment.iterations or stop.reached:
            return before, state, base
        if primary:
            with disk.writing("what makes the run", directory):
                provenance.record(directory, done)
        reference = base.params
        if experiment.lora is None and experiment.training.kl_coefficient > 0:
            # The start, a second time: only a KL penalty needs it beside the state.
            reference = starting_params(experiment)
        with (
            writers.open_writers(
                directory, resume_step=done or None, names=experiment.writers, enabled=primary
            ) as writer,
            Progress(experiment.iterations, "training", start=done) as progress,
            Interrupts() as interrupts,
        ):
            with refused.reading():
                folder = rollouts.open_folder(experiment, directory, done)
            watch = Watch(experiment, folder, writer, progress)

            def drawn(iteration: int, rollouts: Rollouts) -> None:
                interrupts.hold()
                watch.rollouts(iteration, rollouts)

            def save(iteration: int, host: dict[str, Any], waiting: tuple[Drawn, ...]) -> None:
                lock.check(directory)
                writer.flush()
                arrays = ahead.to_arrays(experiment, waiting)
                host = host | ({"ahead": ahead.to_host(waiting, arrays)} if waiting else {})
                saved.save(iteration, state, host, best.iteration, arrays)
                keeper.saved(iteration)

            updates = functools.partial(nonfinite.observe, directory)
            with refused.reading():
                keeper = Keeper(experiment, directory, done, progress.print)
            trainer = Trainer(experiment, reference, watch=drawn, updates=updates, keeper=keeper)
            trainer.ahead = waiting
            if done == 0:
                stop.observe(0, watch.start(before))
            for iteration in range(done, experiment.iterations):
                undrawn, waiting = stream.get_state(), trainer.ahead

                def rescue(
                    iteration: int = iteration,
                    undrawn: Any = undrawn,
                    waiting: tuple[Drawn, ...] = waiting,
                ) -> None:
                    if saved.latest() != iteration and iteration > 0:
                        save(iteration, begun.to_host(experiment) | {"stream": undrawn}, waiting)

                try:
                    interrupts.abandon(rescue)
                    with traced(directory / "trace", iteration + 1 == trace_iteration):
                        state, scalars = trainer.iterate(state, stream, iteration, control.factor)
                    interrupts.hold()
                except Interrupted as error:
                    interrupts.rescue()
                    raise Interrupted(error.signal, kept(iteration)) from None
                except ServerError as error:
                    interrupts.rescue()
                    raise ServerError(f"{error}; {kept(saved.latest() or 0)}") from None
                lock.check(directory)
                control.observe(iteration, scalars)
                try:
                    nonfinite.check()
                    scalars |= watch.evaluation(
                        iteration + 1, experiment.whole(state.params, base.params)
                    )
                    scalars["timing/watching_s"] = watch.seconds() + keeper.seconds()
                except ServerError as error:
                    save(iteration + 1, begun.to_host(experiment), trainer.ahead)
                    raise ServerError(f"{error}; {kept(iteration + 1)}") from None
                finally:
                    writer.write(iteration + 1, scalars)
                progress.update(
                    iteration + 1,
                    **{name: scalars[key] for name, key in SHOWN.items() if key in scalars},
                )
                watch.failures(iteration + 1, scalars)
                if primary and scalars.get("resample/prompts_kept") == 0:
                    print(
                        f"iteration {iteration + 1} makes no update: all rewards are equal in each "
                        f"of the {scalars['resample/prompts_drawn']:.0f} prompt groups drawn"
                    )
                improved = best.observe(iteration + 1, scalars)
                stop.observe(iteration + 1, scalars)
                last = iteration + 1 == experiment.iterations
                stopping = stop.reached and not last
                ending = distributed.asked_to_end(iteration + 1) and not (last or stopping)
                due = (iteration + 1) % experiment.checkpoint.every == 0
                interrupted = bool(interrupts.asked)
                wrong = unpaid.observe(iteration, scalars) or nonfinite.problem
                if last or stopping or ending or due or interrupted or improved or wrong:
                    interrupts.in_time()
                    save(iteration + 1, begun.to_host(experiment), trainer.ahead)
                if last and not wrong and (told := unpaid.at_end()):
                    progress.print(told)
                if stopping:
                    progress.print(f"stops early after iteration {iteration + 1}: {stop}")
                    break
                if ending:
                    raise distributed.Ended(
                        f"asked to end; iteration {iteration + 1} is saved, and the same command "
                        "on every host goes on from there",
                        distributed.ASKED,
                    )
                if wrong:
                    raise distributed.Ended(f"stopped: {wrong}")
                if interrupted:
                    raise Interrupted(interrupts.asked, kept(iteration + 1))
    keeper.close()  # The checkpoints are whole.
    return before, state, base


def kept(iteration: int) -> str:
    """What is saved of a run that ends after an iteration."""
    return f"iteration {iteration} is saved" if iteration > 0 else "nothing was trained yet"


def traced(directory: Path, wanted: bool) -> contextlib.AbstractContextManager:
    """Traces what runs within into the directory, where that is wanted."""
    return _traced(directory) if wanted else contextlib.nullcontext()


@contextlib.contextmanager
def _traced(directory: Path) -> Iterator[None]:
    with storage.filled(directory) as folder, jax.profiler.trace(folder):
        yield


def report(directory: Path, table: EvaluationTable) -> None:
    """Writes the evaluation table and the plots, and prints the table."""
    storage.write(directory / "evaluation.json", table.to_json())
    storage.write(directory / "evaluation.md", table.to_markdown())
    draw(directory, table)
    table.print()
    print(f"everything is in {directory}")


def draw(directory: Path, table: EvaluationTable) -> None:
    """Draws the metrics and the evaluation into `plots/`."""
    # With what it draws by, the slowest import of a run, and needed at its end alone.
    from fiberjax.run import plots

    plots.plot_run(directory / "metrics.jsonl", directory / "plots")
    plots.plot_evaluation(table, directory / "plots" / "evaluation.png")


def barrier(name: str) -> None:
    """Waits for every process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
