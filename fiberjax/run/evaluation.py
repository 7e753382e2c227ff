"""Held-out prompts, before, while and after training: sampled, rewarded, compared.

The k samples of a prompt become one number: their mean reward (`mean@k`), and the chance that one
of them passes (`pass@k`). Prompts are the independent units. The overall figure is the unweighted
mean over domains, whatever their numbers of prompts.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fiberjax import seeds
from fiberjax.experiment import Experiment
from fiberjax.parallel import mesh
from fiberjax.run import rollouts, statistics
from fiberjax.run.progress import Progress
from fiberjax.run.shown import cell, visible
from fiberjax.run.statistics import Interval, difference, interval, mean_of, real_interval
from fiberjax.tasks import PromptStream, prompt_batch
from fiberjax.tasks.rewards import passes

OVERALL = "overall"
"""The name of the rows that hold the unweighted mean over domains."""


@dataclass(frozen=True)
class Measures:
    """What one evaluation measured.

    Attributes:
      by_name: name, such as "mean@4", -> float[prompts].
      domain: int[prompts].
      samples: completions that were asked for, by `rollouts.SCHEMA`; not part of its JSON.
    """

    by_name: dict[str, np.ndarray]
    domain: np.ndarray
    samples: pa.Table | None = None

    def first(self, prompts: int) -> "Measures":
        """The same of the first prompts of each domain, so many at most; without samples."""
        kept = rollouts.rank(self.domain) < prompts
        return Measures({name: of[kept] for name, of in self.by_name.items()}, self.domain[kept])

    def to_json(self) -> dict[str, Any]:
        """As JSON-like values."""
        measures = {name: values.tolist() for name, values in self.by_name.items()}
        return {"measures": measures, "domain": self.domain.tolist()}

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Measures":
        """Reads what `to_json` made."""
        measures = {name: np.array(of) for name, of in values["measures"].items()}
        return cls(measures, np.array(values["domain"]))


def evaluate(
    experiment: Experiment,
    params: Any,
    description: str | None,
    *,
    prompts: int | None = None,
    samples: int = 0,
    iteration: int = 0,
) -> Measures:
    """Samples held-out prompts and rewards them; the same prompts and keys at every call.

    Args:
      experiment: its `evaluation` section says how many, and how they are drawn.
      params: of the policy, on the mesh.
      description: shown with the progress; None shows none.
      prompts: of each domain, the first; `evaluation.prompts` where None.
      samples: completions of each domain that `Measures.samples` holds, those of its first prompts.
      iteration: that the policy has finished, for these.
    """
    wanted = experiment.evaluation
    examples = experiment.held_out
    chosen, domain = _held_out_prompts(experiment, wanted.prompts if prompts is None else prompts)
    kept = np.flatnonzero(rollouts.rank(domain) < samples)
    # One static shape: the last batch is filled up with the first prompts again.
    num_batches = -(-len(chosen) // wanted.batch)
    filled = np.resize(chosen, num_batches * wanted.batch).reshape(num_batches, -1)
    index, count = mesh.process_share(experiment.mesh, wanted.batch)
    share = slice(index * wanted.batch // count, (index + 1) * wanted.batch // count)
    sampler = experiment.evaluation_sampler()
    params = sampler.read(params)
    rewards, tables = [], []
    bar: contextlib.AbstractContextManager[Progress | None] = contextlib.nullcontext()
    if description is not None:
        bar = Progress(num_batches, description, log_every=0)
    with bar as progress:
        for step, rows in enumerate(filled):
            batch = prompt_batch(examples, rows[share], experiment.window.prompt)
            drawn = sampler(
                params, batch, samples=wanted.samples, stream=seeds.EVALUATION, step=step
            )
            rewards.append(mesh.gather(experiment.mesh, drawn.reward).reshape(-1, wanted.samples))
            if samples > 0:
                here = kept[kept // wanted.batch == step] % wanted.batch
                tables.append(
                    rollouts.table(
                        experiment,
                        drawn,
                        here * wanted.samples,
                        iteration=iteration,
                        split=rollouts.HELD_OUT,
                    )
                )
            if progress is not None:
                progress.update(step + 1, reward=float(np.mean(rewards[-1])))
    by_prompt = np.concatenate(rewards)[: len(chosen)]
    passed = passes(by_prompt, experiment.tasks.pass_threshold)
    values = [statistics.mean_at_k(by_prompt), statistics.pass_at_k(passed, wanted.samples)]
    measures = dict(zip(wanted.measures, values, strict=False))  # pass@1 is none of its own.
    return Measures(measures, domain, pa.concat_tables(tables) if tables else None)


def curve_point(measured: Measures, names: Sequence[str]) -> dict[str, float]:
    """An evaluation as metrics: `evaluation/<measure>/<domain>` with its 95 % limits, by name.

    Args:
      measured: the evaluation.
      names: the domains' names; one without prompts has no metrics.

    Returns:
      For each measure and domain, and the unweighted mean over domains as `overall`: the value, and
      under its name with `/low` and `/high` the limits, by the rules of `compare`.
    """
    scalars: dict[str, float] = {}
    for measure, values in measured.by_name.items():
        bounded = bool(((values >= 0) & (values <= 1)).all())
        estimate = interval if bounded else real_interval
        parts = {name: estimate(values[of]) for name, of in _by_domain(measured.domain, names)}
        for name, found in (parts | {OVERALL: mean_of(list(parts.values()))}).items():
            metric = f"evaluation/{measure}/{name}"
            scalars |= {
                metric: found.value,
                f"{metric}/low": found.low,
                f"{metric}/high": found.high,
            }
    return scalars


def settings(experiment: Experiment) -> dict[str, float]:
    """How completions are drawn in evaluations, as JSON."""
    wanted = experiment.evaluation
    return {name: getattr(wanted, name) for name in ("temperature", "top_k", "top_p")}


def comparable(
    before: Measures, drawn_by: Mapping[str, float] | None, experiment: Experiment
) -> bool:
    """Whether an evaluation by the experiment would measure the same of the same prompts.

    Args:
      before: of an earlier evaluation of the run, whose `config.evaluation` may have changed since.
      drawn_by: its `settings`; None where the run has kept none, and had no choice.
      experiment: of the run.
    """
    _, domain = _held_out_prompts(experiment, experiment.evaluation.prompts)
    return (
        np.array_equal(before.domain, domain)
        and f"mean@{experiment.evaluation.samples}" in before.by_name
        and (drawn_by is None or dict(drawn_by) == settings(experiment))
    )


def _held_out_prompts(experiment: Experiment, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The prompts that are evaluated, so many of a domain at most, and the domain of each."""
    examples = experiment.held_out
    chosen = np.concatenate(
        [
            offset + np.arange(min(size, most))
            for offset, size in zip(examples.offsets, examples.sizes, strict=True)
        ]
    )
    return chosen, np.array([examples.domain_of(int(index)) for index in chosen])


def profile(experiment: Experiment, params: Any, stream: PromptStream) -> None:
    """Estimates the pass rate of training prompts before the first iteration.

    Profiling every prompt costs as much as training on them; the config says how many samples, and
    0 leaves it to the stream, which tries unknown prompts as if they stood on the target.
    """
    samples = experiment.curriculum.profile_samples
    if samples == 0:
        return
    examples = experiment.examples
    size = experiment.rollout.prompts
    index, count = mesh.process_share(experiment.mesh, size)
    share = slice(index * size // count, (index + 1) * size // count)
    sampler = experiment.sampler(experiment.train)
    params = sampler.read(params)
    num_batches = -(-len(examples) // size)
    filled = np.resize(np.arange(len(examples)), num_batches * size).reshape(num_batches, size)
    with Progress(num_batches, "profiling prompts", log_every=0) as progress:
        for step, rows in enumerate(filled):
            prompts = prompt_batch(examples, rows[share], experiment.window.prompt)
            drawn = sampler(params, prompts, samples=samples, stream=seeds.PROFILE, step=step)
            stream.observe(rows, mesh.gather(experiment.mesh, drawn.reward).reshape(-1, samples))
            progress.update(step + 1)


@dataclass(frozen=True)
class EvaluationRow:
    """One measure of one domain: before, after and their difference on the same prompts."""

    domain: str
    measure: str
    prompts: int
    before: Interval
    after: Interval
    difference: Interval


@dataclass(frozen=True)
class EvaluationTable:
    """What training changed on held-out prompts: rows by measure, domains first, `overall` last."""

    rows: tuple[EvaluationRow, ...]

    def row(self, domain: str, measure: str) -> EvaluationRow:
        """Looks one row up.

        Raises:
          ValueError: there is no such row.
        """
        for row in self.rows:
            if (row.domain, row.measure) == (domain, measure):
                return row
        raise ValueError(f"no row for {domain!r}, {measure!r}")

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures, in order."""
        return tuple(dict.fromkeys(row.measure for row in self.rows))

    def to_json(self) -> str:
        """Writes the table as JSON text that `from_json` reads back exactly."""
        return json.dumps({"rows": [asdict(row) for row in self.rows]}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads the text of `to_json`.

        Raises:
          ValueError: the text is something else.
        """
        try:
            rows = tuple(_row_from_json(row) for row in json.loads(text)["rows"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"not an evaluation table: {error!r}") from error
        return cls(rows)

    def to_markdown(self) -> str:
        """Writes a Markdown table; differences whose interval excludes 0 are bold."""
        lines = ["| " + " | ".join(_HEADER) + " |", "|---|---|---:|---:|---:|---:|"]
        for row in self.rows:
            change = _signed(row.difference)
            change = f"**{change}**" if row.difference.excludes_zero else change
            cells = (cell(row.domain), row.measure, row.prompts, row.before, row.after, change)
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        return "\n".join(lines) + "\n"

    def __rich__(self) -> Table:
        """Draws a table within 80 columns: intervals of the differences only, coloured."""
        table = Table(
            title="Held-out prompts, differences with 95 % intervals", box=box.SIMPLE_HEAD
        )
        for index, name in enumerate(_HEADER):
            table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
        for row, following in zip(self.rows, [*self.rows[1:], None], strict=True):
            colour = "green" if row.difference.low > 0 else "red" if row.difference.high < 0 else ""
            table.add_row(
                Text(visible(row.domain)),
                row.measure,
                str(row.prompts),
                f"{row.before.value:.3f}",
                f"{row.after.value:.3f}",
                Text(_signed(row.difference), style=colour),
                style="bold" if row.domain == OVERALL else None,
                end_section=following is not None and following.measure != row.measure,
            )
        return table

    def print(self, console: Console | None = None) -> None:
        """Prints the table on a console, the terminal where None."""
        (Console() if console is None else console).print(self)


def compare(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    domain: np.ndarray,
    *,
    names: Sequence[str],
) -> EvaluationTable:
    """Compares two evaluations of the same prompts, per domain and overall.

        table = compare({"mean@4": mean_at_k(c0)}, {"mean@4": mean_at_k(c1)}, domain, names=names)

    Args:
      before: by the name of each measure, float[prompts]. Where all values of a measure, before and
        after, lie in [0, 1], its intervals are those of `statistics.interval` and `difference`;
        those of other measures are of `statistics.real_interval`.
      after: the same measures of the same prompts in the same order.
      domain: int[prompts], the domain of each prompt, an index of `names`.
      names: the domains' names; a domain without prompts gets no row.

    Returns:
      A table with the rows of every measure, its `overall` row the unweighted mean over domains.

    Raises:
      ValueError: measures differ, shapes differ, or a domain has no name.
    """
    if list(before) != list(after) or not before:
        raise ValueError(f"measures must be the same, got {list(before)} and {list(after)}")
    rows: list[EvaluationRow] = []
    for measure in before:
        parts = []
        both = np.concatenate([before[measure], after[measure]])
        bounded = bool(((both >= 0) & (both <= 1)).all())
        for name, chosen in _by_domain(domain, names):
            for values in (before[measure], after[measure]):
                if np.shape(values) != chosen.shape:
                    raise ValueError(
                        f"{measure} must be of shape {chosen.shape}, got {np.shape(values)}"
                    )
            x, y = before[measure][chosen], after[measure][chosen]
            parts.append(EvaluationRow(name, measure, len(x), *_estimates(x, y, bounded)))
        rows.extend(parts)
        rows.append(
            EvaluationRow(
                OVERALL,
                measure,
                sum(part.prompts for part in parts),
                mean_of([part.before for part in parts]),
                mean_of([part.after for part in parts]),
                mean_of([part.difference for part in parts]),
            )
        )
    return EvaluationTable(tuple(rows))


def _estimates(
    before: np.ndarray, after: np.ndarray, bounded: bool
) -> tuple[Interval, Interval, Interval]:
    """Before, after and their difference."""
    if bounded:
        return interval(before), interval(after), difference(before, after)
    return real_interval(before), real_interval(after), real_interval(after - before)


_HEADER = ("domain", "measure", "prompts", "before", "after", "difference")


def _signed(change: Interval) -> str:
    return f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


def _row_from_json(row: Mapping) -> EvaluationRow:
    intervals = [Interval(*map(float, row[name])) for name in ("before", "after", "difference")]
    return EvaluationRow(str(row["domain"]), str(row["measure"]), int(row["prompts"]), *intervals)


def _by_domain(domain: np.ndarray, names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """The name and the mask [prompts] of every domain that has prompts."""
    ids = np.asarray(domain)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ValueError(f"domain must be int[prompts], got {ids.dtype}{list(ids.shape)}")
    if ids.min() < 0 or ids.max() >= len(names):
        raise ValueError(f"domain must index the {len(names)} names, got {ids.min()}..{ids.max()}")
    if OVERALL in names or len(set(names)) != len(names):
        raise ValueError(f"names must differ and not be {OVERALL!r}, got {list(names)}")
    return [(name, ids == index) for index, name in enumerate(names) if (ids == index).any()]
