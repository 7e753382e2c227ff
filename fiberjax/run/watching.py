"""What can be watched of a run while it trains: samples, and the curve of held-out prompts."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import pyarrow as pa

from fiberjax.experiment import Experiment
from fiberjax.run import rollouts, shown
from fiberjax.run.evaluation import Measures, curve_point, evaluate
from fiberjax.run.progress import Progress
from fiberjax.run.writers import CheckedWriter
from fiberjax.tasks.environments import Apart
from fiberjax.tasks.rewards import isolated_in, tells
from fiberjax.train.rollout import Rollouts


class Watch:
    """Keeps and shows samples, and evaluates now and then; see `options.Keep` and `Evaluation`.

    All processes of a run call it alike; the first one writes and shows.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: rollouts.Folder | None,
        writer: CheckedWriter,
        progress: Progress,
    ):
        """Begins where the run does.

        Args:
          experiment: of the run.
          folder: of the samples; None keeps none.
          writer: takes the curve's first point, and a few samples as text.
          progress: shows samples on the terminal.
        """
        self._experiment = experiment
        self._folder = folder
        self._writer = writer
        self._progress = progress
        self._seconds = 0.0
        self._told: set[str] = set()

    def start(self, before: Measures) -> dict[str, float]:
        """The evaluation before the first iteration: its samples, and the curve's point 0."""
        wanted, seen = self._experiment.evaluation, before.samples
        if seen is not None:
            if self._experiment.tasks.of_rows and self._experiment.rewards.shown > 0:
                self._first_look(rollouts.first_rows(seen, self._experiment.rewards.shown))
            kept = rollouts.kept_of_evaluations(self._experiment)
            if kept > 0:
                self._keep(rollouts.first_rows(seen, kept))
        if wanted.every == 0:
            return {}
        point = self._point(before.first(wanted.of_curve))
        self._writer.write(0, point)
        return point

    def rollouts(self, iteration: int, drawn: Rollouts) -> None:
        """Keeps and shows a few of an iteration's rollouts, where it is due.

        Args:
          iteration: that trains on them, counted from 1.
          drawn: this process's.
        """
        keep = self._experiment.keep
        kept, showing = _due(iteration, keep.every), _due(iteration, keep.show_every)
        if not (kept or showing):
            return
        began = time.monotonic()
        rows = rollouts.first_of_each_domain(self._experiment, drawn, keep.samples)
        found = rollouts.table(
            self._experiment, drawn, rows, iteration=iteration, split=rollouts.TRAIN
        )
        if kept:
            self._write(found)
        if showing and jax.process_index() == 0:
            self._progress.print(lambda console: shown.terminal(found, console))
            self._writer.write_text(iteration, f"samples/{rollouts.TRAIN}", shown.markdown(found))
        self._seconds += time.monotonic() - began

    def evaluation(self, iteration: int, params: Any) -> dict[str, float]:
        """The point of the curve after an iteration, as metrics; none where it is not due.

        Args:
          iteration: iterations finished.
          params: of the policy.
        """
        wanted = self._experiment.evaluation
        last = iteration == self._experiment.iterations
        if not (_due(iteration, wanted.every) or (last and wanted.every > 0)):
            return {}
        began = time.monotonic()
        measured = evaluate(
            self._experiment,
            params,
            None,
            prompts=wanted.of_curve,
            samples=rollouts.kept_of_evaluations(self._experiment),
            iteration=iteration,
        )
        if measured.samples is not None:
            self._keep(measured.samples)
        self._seconds += time.monotonic() - began
        return self._point(measured)

    def seconds(self) -> float:
        """What watching took since this was last asked."""
        taken, self._seconds = self._seconds, 0.0
        return taken

    def _point(self, measured: Measures) -> dict[str, float]:
        return curve_point(measured, [domain.name for domain in self._experiment.test])

    def failures(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Says once that a reward failed, and why; and once that an environment did.

        Args:
          iteration: that it failed in.
          scalars: its metrics.
        """
        if jax.process_index() > 0:
            return
        failed, environment = scalars.get("turns/failed", 0), self._experiment.turns.environment
        if failed > 0 and "turns/failed" not in self._told and isinstance(environment, Apart):
            self._told.add("turns/failed")
            self._progress.print(
                f"iteration {iteration}: the environment failed in {failed:.0f} episodes, which "
                "end there and are counted as turns/failed "
                f"({shown.visible(f'{environment.name}: {environment.trouble}')})"
            )
        failed = scalars.get("verifier/failed", 0)
        if "verifier/failed" in self._told or failed == 0:
            return
        self._told.add("verifier/failed")
        apart = [part for of in self._experiment.train for part in isolated_in(of.verify)]
        causes = dict.fromkeys(f"{part.name}: {part.trouble}" for part in apart if part.trouble)
        self._progress.print(
            f"iteration {iteration}: rewards failed for {failed:.0f} completions, which are paid 0 "
            f"and counted as verifier/failed ({shown.visible('; '.join(causes))})"
        )

    def _first_look(self, samples: pa.Table) -> None:
        """Shows what verifiers made of the first completions."""
        if jax.process_index() == 0:
            threshold = self._experiment.tasks.pass_threshold
            telling = {of.name for of in self._experiment.train if tells(of.verify)}
            self._progress.print(
                lambda console: shown.answers(samples, threshold, console, telling)
            )

    def _keep(self, samples: pa.Table) -> None:
        """Keeps an evaluation's samples, and writes a few as text."""
        self._write(samples)
        iteration = samples["iteration"][0].as_py()
        self._writer.write_text(iteration, f"samples/{rollouts.HELD_OUT}", shown.markdown(samples))

    def _write(self, samples: pa.Table) -> None:
        """Writes a file, unless the folder is full, which is said once."""
        if self._folder is None or self._folder.full:
            return
        self._folder.write(samples)
        if self._folder.full:
            limit = self._experiment.keep.megabytes
            self._progress.print(
                f"{rollouts.FOLDER}/ holds {limit:g} MB (config.keep.megabytes): no more are kept"
            )


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
