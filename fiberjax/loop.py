"""The run: warm start, evaluation, iterations of rollouts and updates, evaluation, report.

One command starts a run and, given the same directory, resumes it. A resumed run ends bitwise where
one that was never interrupted does, on the same devices: everything random is a function of the
seed and the iteration, and the checkpoint holds the rest (policy, optimizer, prompt stream).
"""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from fiberjax import distributed, evaluation, mesh, metrics, plots
from fiberjax.checkpoints import Checkpoints
from fiberjax.evaluation import EvaluationTable
from fiberjax.experiment import Experiment, process_share
from fiberjax.progress import Progress
from fiberjax.rollout import EVALUATION, PROFILE
from fiberjax.tasks import Examples, PromptStream, prompt_batch
from fiberjax.tasks.builders import VERSION
from fiberjax.trainer import Trainer
from fiberjax.update import TrainState
from fiberjax.warm_start import warm_start

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
      directory: the run folder: `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/`,
        `evaluation.{json,md}` and `plots/`.
      config_json: the config as JSON; a directory with another one is refused.
      trace_iteration: an iteration, counted from 1, that is traced into `trace/` for TensorBoard's
        profiler, on every host; None traces none.

    Returns:
      The evaluation on held-out prompts, before and after.

    Raises:
      ValueError: the directory cannot be written, or holds a run of another config.
      FloatingPointError: an update was not finite; names the step and the term.
    """
    directory = Path(directory)
    primary = jax.process_index() == 0
    barrier("run folder claimed")
    claim(directory, config_json)
    before, state = train(experiment, directory, trace_iteration)
    after = evaluate(experiment, state.params, "evaluation after")
    table = evaluation.compare(
        before.measures,
        after.measures,
        before.domain,
        names=tuple(domain.name for domain in experiment.test),
    )
    if primary:
        report(directory, table)
    return table


def claim(directory: str | Path, config_json: str) -> None:
    """Writes the config into a new run folder; a folder with this very config is resumed.

    Raises:
      ValueError: the folder cannot be written, or holds a run of another config.
    """
    path = Path(directory) / "config.json"
    if path.exists():
        saved, given = json.loads(path.read_text()), json.loads(config_json)
        changed = sorted(_differences(saved, given))
        if changed:
            raise ValueError(
                f"{directory} holds a run of another config; it differs in {', '.join(changed)}. "
                "Choose another --workdir, or give the same config to resume."
            )
    elif jax.process_index() == 0:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Renamed into place: a kill leaves no half of a config.
            written = path.with_name("config.json.new")
            written.write_text(config_json)
            written.replace(path)
        except OSError as error:
            raise ValueError(f"workdir {str(directory)!r} cannot be written: {error}") from None


def _differences(a: Any, b: Any, path: str = "config") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        return [
            found for key in keys for found in _differences(a.get(key), b.get(key), f"{path}.{key}")
        ]
    return [] if a == b else [f"{path} ({a!r} there, {b!r} here)"]


def initial_params(experiment: Experiment) -> Any:
    """The warm-started parameters of an experiment; see `warm_start`."""
    tasks = dataclasses.asdict(experiment.tasks)
    file = tasks["file"]
    tasks |= {"data_dir": "", "test_file": ""}  # Neither changes what is trained on.
    return warm_start(
        experiment.warm_start,
        experiment.policy,
        experiment.mesh,
        experiment.supervised_stream,
        chunk=experiment.training.chunk,
        seed=experiment.seed,
        depends_on=[
            tasks,
            dataclasses.asdict(experiment.window),
            repr(Examples(experiment.train)),
            hashlib.blake2b(Path(file).read_bytes()).hexdigest() if file else VERSION,
        ],
    )


@dataclasses.dataclass(frozen=True)
class Scores:
    """One evaluation.

    Attributes:
      measures: name, such as "mean@4", -> float[prompts].
      domain: int[prompts].
    """

    measures: dict[str, np.ndarray]
    domain: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """As JSON-like values."""
        measures = {name: values.tolist() for name, values in self.measures.items()}
        return {"measures": measures, "domain": self.domain.tolist()}

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Scores":
        """Reads what `to_json` made."""
        measures = {name: np.array(scores) for name, scores in values["measures"].items()}
        return cls(measures, np.array(values["domain"]))


def evaluate(experiment: Experiment, params: Any, description: str) -> Scores:
    """Samples held-out prompts and scores them; the same prompts and keys at every call.

    Args:
      experiment: its `evaluation` section says how many.
      params: of the policy, on the mesh.
      description: shown with the progress.
    """
    wanted = experiment.evaluation
    examples = Examples(experiment.test)
    chosen = np.concatenate(
        [
            offset + np.arange(min(size, wanted.prompts))
            for offset, size in zip(examples.offsets, examples.sizes, strict=True)
        ]
    )
    domain = np.array([examples.domain_of(int(index)) for index in chosen])
    # One static shape: the last batch is filled up with the first prompts again.
    num_batches = -(-len(chosen) // wanted.batch)
    filled = np.resize(chosen, num_batches * wanted.batch).reshape(num_batches, -1)
    index, count = process_share(experiment.mesh, wanted.batch)
    share = slice(index * wanted.batch // count, (index + 1) * wanted.batch // count)
    sampler = experiment.sampler(experiment.test)
    correct = []
    with Progress(num_batches, description, log_every=0) as progress:
        for step, rows in enumerate(filled):
            prompts = prompt_batch(
                examples, rows[share], experiment.vocabulary, experiment.window.prompt
            )
            rollouts = sampler(
                params, prompts, samples=wanted.samples, stream=EVALUATION, step=step
            )
            correct.append(
                mesh.gather(experiment.mesh, rollouts.reward).reshape(-1, wanted.samples)
            )
            progress.update(step + 1, reward=float(np.mean(correct[-1])))
    scores = np.concatenate(correct)[: len(chosen)]
    k = wanted.samples
    measures = {f"mean@{k}": evaluation.mean_at_k(scores)}
    if k > 1:
        measures[f"pass@{k}"] = evaluation.pass_at_k(scores, k)
    return Scores(measures, domain)


def newest_params(experiment: Experiment, directory: Path) -> tuple[int, Any]:
    """Iteration and parameters of a run's newest checkpoint, on the experiment's mesh.

    Raises:
      ValueError: there is none, or it is not of this experiment.
    """
    if not (directory / "checkpoints").is_dir():
        raise ValueError(f"{str(directory)!r} holds no checkpoint of a run")
    with Checkpoints(directory / "checkpoints", keep=experiment.checkpoint.keep) as saved:
        found = saved.restore(experiment.abstract_state())
    if found is None:
        raise ValueError(f"{str(directory)!r} holds no checkpoint of a run")
    return found.iteration, found.state.params


class Begun(NamedTuple):
    """Where a run stands when its next iteration begins.

    Attributes:
      state: the train state.
      done: iterations finished.
      stream: of the prompts.
      before: the evaluation before the first iteration.
    """

    state: TrainState
    done: int
    stream: PromptStream
    before: Scores


def begin(experiment: Experiment, saved: Checkpoints) -> Begun:
    """The newest checkpoint, or what a run starts from: warm-started, evaluated and profiled."""
    stream = experiment.prompt_stream()
    shapes = experiment.abstract_state()
    found = saved.restore(shapes)
    if found is not None:
        stream.set_state(found.host["stream"])
        return Begun(found.state, found.iteration, stream, Scores.of(found.host["before"]))
    start = initial_params(experiment)
    before = evaluate(experiment, start, "evaluation before")
    profile(experiment, start, stream)
    # Donated: nothing but the state is kept on the devices.
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    make = jax.jit(experiment.fresh_state, out_shardings=shardings, donate_argnums=0)
    return Begun(make(start), 0, stream, before)


def train(
    experiment: Experiment, directory: Path, trace_iteration: int | None = None
) -> tuple[Scores, TrainState]:
    """Runs the iterations that the directory's newest checkpoint has not seen yet.

    Arguments as `run`.

    Returns:
      The evaluation before the first iteration, and the state after the last.

    Raises:
      SystemExit: a host was asked to end; the run is saved.
    """
    primary = jax.process_index() == 0
    with Checkpoints(directory / "checkpoints", keep=experiment.checkpoint.keep) as saved:
        state, done, stream, before = begin(experiment, saved)
        if done == experiment.iterations:
            return before, state
        # The start, a second time: only a KL penalty needs it beside the state.
        reference = initial_params(experiment) if experiment.training.kl_coefficient > 0 else None
        trainer = Trainer(experiment, reference)
        with (
            metrics.MetricWriter(directory, resume_step=done, enabled=primary) as writer,
            Progress(experiment.iterations, "training", start=done) as progress,
        ):
            for iteration in range(done, experiment.iterations):
                with traced(directory / "trace", iteration + 1 == trace_iteration):
                    state, scalars = trainer.iterate(state, stream, iteration)
                writer.write(iteration + 1, scalars)
                metrics.finite_or_raise(iteration + 1, scalars)
                progress.update(
                    iteration + 1, **{name: scalars[key] for name, key in SHOWN.items()}
                )
                last = iteration + 1 == experiment.iterations
                ending = distributed.asked_to_end(iteration + 1) and not last
                if last or ending or (iteration + 1) % experiment.checkpoint.every == 0:
                    host = {"stream": stream.get_state(), "before": before.to_json()}
                    saved.save(iteration + 1, state, host)
                if ending:
                    raise SystemExit(
                        f"asked to end; iteration {iteration + 1} is saved, and the same command "
                        "on every host goes on from there"
                    )
    return before, state


def traced(directory: Path, wanted: bool) -> contextlib.AbstractContextManager:
    """Traces what runs within into the directory, where that is wanted."""
    return jax.profiler.trace(directory) if wanted else contextlib.nullcontext()


def profile(experiment: Experiment, params: Any, stream: PromptStream) -> None:
    """Estimates the pass rate of training prompts before the first iteration.

    Profiling every prompt costs as much as training on them; the config says how many samples, and
    0 leaves it to the stream, which tries unknown prompts as if they stood on the target.
    """
    samples = experiment.curriculum.profile_samples
    if samples == 0:
        return
    examples = Examples(experiment.train)
    size = experiment.rollout.prompts
    index, count = process_share(experiment.mesh, size)
    share = slice(index * size // count, (index + 1) * size // count)
    sampler = experiment.sampler(experiment.train)
    num_batches = -(-len(examples) // size)
    filled = np.resize(np.arange(len(examples)), num_batches * size).reshape(num_batches, size)
    with Progress(num_batches, "profiling prompts", log_every=0) as progress:
        for step, rows in enumerate(filled):
            prompts = prompt_batch(
                examples, rows[share], experiment.vocabulary, experiment.window.prompt
            )
            rollouts = sampler(params, prompts, samples=samples, stream=PROFILE, step=step)
            stream.observe(rows, mesh.gather(experiment.mesh, rollouts.reward).reshape(-1, samples))
            progress.update(step + 1)


def report(directory: Path, table: EvaluationTable) -> None:
    """Writes the evaluation table and the plots, and prints the table."""
    (directory / "evaluation.json").write_text(table.to_json())
    (directory / "evaluation.md").write_text(table.to_markdown())
    plots.plot_run(directory / "metrics.jsonl", directory / "plots")
    plots.plot_evaluation(table, directory / "plots" / "evaluation.png")
    table.print()
    print(f"everything is in {directory}")


def barrier(name: str) -> None:
    """Waits for every process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
