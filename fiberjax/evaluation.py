"""Statistics of an evaluation: scores of prompts, their means and intervals, before and after.

Scores first become one number a prompt (`mean_at_k`, `pass_at_k`, `maj_at_k`), then means with 95 %
intervals over prompts, which are the independent units: the k samples of a prompt are not. The
overall figure is the unweighted mean over domains, whatever their numbers of prompts.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, Self

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

OVERALL = "overall"
"""The name of the rows that hold the unweighted mean over domains."""

_Z = 1.959963984540054  # The 97.5 % point of the normal distribution.


class Interval(NamedTuple):
    """An estimate and the limits of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the limits."""
        return self.low > 0 or self.high < 0


def mean_at_k(correct: np.ndarray) -> np.ndarray:
    """Averages the samples of every prompt, an unbiased estimate of its pass rate; `[prompts]`.

    Args:
      correct: bool or float[prompts, k], scores in [0, 1].

    Returns:
      float64[prompts], each in [0, 1].

    Raises:
      ValueError: wrong shape, no samples, or a score outside [0, 1].
    """
    return _check_scores(correct).mean(axis=1)


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Estimates without bias the chance that one of `k` samples is right; `[prompts]`.

        pass@k = 1 − C(n − c, k) / C(n, k) = 1 − Πᵢ₌₀ᵏ⁻¹ (n − c − i) / (n − i)

    with `c` of `n` samples right. The product never forms a large binomial.

    Args:
      correct: bool[prompts, n], or floats that are 0 or 1.
      k: number of tries, 1 ≤ k ≤ n.

    Returns:
      float64[prompts], each in [0, 1].

    Raises:
      ValueError: wrong shape, scores other than 0 and 1, or `k` out of range.

    References:
      Chen et al., Evaluating Large Language Models Trained on Code (2021), eq. 1.

    >>> pass_at_k(np.array([[True, False, False, False]]), 2)
    array([0.5])
    """
    scores = _check_scores(correct)
    if not np.isin(scores, (0, 1)).all():
        raise ValueError("pass@k needs scores that are 0 or 1")
    n = scores.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= {n} (samples of a prompt), got k = {k}")
    tries = np.arange(k)
    wrong, prompt = np.unique(n - scores.sum(axis=1), return_inverse=True)
    # All k tries wrong: one factor is exactly 0 where fewer than k samples are.
    all_wrong = [np.prod((count - tries) / (n - tries)) for count in wrong]
    return 1 - np.array(all_wrong)[prompt]


def maj_at_k(answers: Sequence[Sequence[str]], correct: np.ndarray) -> np.ndarray:
    """Scores the majority's answer of every prompt; `[prompts]`.

    Each sample votes for its answer; the empty string (nothing could be read) does not vote. A tie
    gives the expected score of a fair draw among the tied answers; no votes at all give 0.

    Args:
      answers: [prompts][k] answers in canonical form, so that equal answers are equal strings.
      correct: bool or float[prompts, k], their scores in [0, 1]; an answer's score is the mean over
        its samples.

    Returns:
      float64[prompts], each in [0, 1].

    Raises:
      ValueError: the shapes differ, or a score is outside [0, 1].

    >>> maj_at_k([["7", "7", "8"], ["1", "2", ""]], np.array([[1, 1, 0], [1, 0, 0]]))
    array([1. , 0.5])
    """
    scores = _check_scores(correct)
    if [len(row) for row in answers] != [scores.shape[1]] * scores.shape[0]:
        raise ValueError(f"answers must be {scores.shape} strings, one for each score")
    return np.array([_majority(a, s) for a, s in zip(answers, scores, strict=True)], dtype=float)


def interval(values: np.ndarray) -> Interval:
    """Estimates the mean over prompts with a 95 % interval.

    Wilson's score interval, solved for the mean of values in [0, 1] with the variance they show:

        |x̄ − p| ≤ z √(φ p(1 − p) / n),   φ = s² / (x̄(1 − x̄))

    At 0/1 values φ = 1 and it is Wilson's own; averages over k samples of a prompt vary less, and
    φ < 1. Unlike t or bootstrap it keeps its coverage near 0 and 1, where s² = 0 says nothing: φ is
    then 1. It is closed-form, so it needs no seed, and lies in [0, 1].

    Args:
      values: float[prompts], one score in [0, 1] a prompt, prompts drawn independently.

    Returns:
      The mean and its limits.

    Raises:
      ValueError: no values, or one outside [0, 1].

    References:
      Wilson, Probable Inference (1927); Brown, Cai and DasGupta, Interval Estimation for a Binomial
      Proportion (2001).
    """
    x = _check_values(values)
    mean = float(x.mean())
    # In [0, 1] the population variance is at most p(1 − p): φ ≤ 1, 0/0 at the ends.
    spread, bound = float(x.var()), mean * (1 - mean)
    phi = min(spread / bound, 1.0) if x.size > 1 and spread > 0 and bound > 0 else 1.0
    a = _Z**2 * phi / x.size
    centre = (mean + a / 2) / (1 + a)
    half = math.sqrt(a * bound + a**2 / 4) / (1 + a)
    return Interval(mean, min(max(centre - half, 0.0), mean), max(min(centre + half, 1.0), mean))


def difference(before: np.ndarray, after: np.ndarray) -> Interval:
    """Estimates the mean change of the same prompts, `after − before`, with a 95 % interval.

    Newcombe's interval for paired proportions: with `δ` the distances from the two means to their
    limits (`interval`) and `ρ` the correlation of the pairs,

        low  = θ − √(δ₂₋² − 2ρ δ₂₋ δ₁₊ + δ₁₊²),   high = θ + √(δ₂₊² − 2ρ δ₂₊ δ₁₋ + δ₁₋²)

    Chosen over paired t and bootstrap because both shrink to nothing when few prompts change, which
    is when a change is easily claimed; it needs no seed and lies in [−1, 1].

    Args:
      before: float[prompts], scores in [0, 1].
      after: float[prompts], scores of the same prompts in the same order.

    Returns:
      The mean difference and its limits.

    Raises:
      ValueError: the shapes differ, there are no values, or one is outside [0, 1].

    References:
      Newcombe, Improved Confidence Intervals for the Difference Between Binomial Proportions Based
      on Paired Data (1998), method 10 (without its continuity correction).
    """
    x, y = _check_values(before), _check_values(after)
    if x.shape != y.shape:
        raise ValueError(f"paired values must be of the same prompts, got {x.size} and {y.size}")
    first, second = interval(x), interval(y)
    deviation = float(x.std() * y.std())
    rho = float(np.mean((x - x.mean()) * (y - y.mean()))) / deviation if deviation > 0 else 0.0
    rho = min(max(rho, -1.0), 1.0)

    def combine(a: float, b: float) -> float:
        return math.sqrt(max(a**2 - 2 * rho * a * b + b**2, 0.0))

    theta = second.value - first.value
    down = combine(second.value - second.low, first.high - first.value)
    up = combine(second.high - second.value, first.value - first.low)
    return Interval(theta, theta - down, theta + up)


def mean_of(parts: Sequence[Interval]) -> Interval:
    """Averages independent estimates without weights, such as those of domains.

    The distances to the limits add as root of squares: `x̄ ∓ √(Σ δ∓²) / n`.

    Raises:
      ValueError: there are no parts.

    References:
      Zou and Donner, Construction of Confidence Limits about Effect Measures (2008).
    """
    if not parts:
        raise ValueError("expected at least one estimate to average")
    value = sum(part.value for part in parts) / len(parts)
    down = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    up = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Interval(value, value - down, value + up)


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
            cells = (row.domain, row.measure, row.prompts, row.before, row.after, change)
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
                row.domain,
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
      before: scores by the name of their measure, each float[prompts] in [0, 1].
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
        for name, chosen in _by_domain(domain, names):
            for values in (before[measure], after[measure]):
                if np.shape(values) != chosen.shape:
                    raise ValueError(
                        f"{measure} must be of shape {chosen.shape}, got {np.shape(values)}"
                    )
            x, y = before[measure][chosen], after[measure][chosen]
            parts.append(
                EvaluationRow(name, measure, len(x), interval(x), interval(y), difference(x, y))
            )
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


def summarize(
    values: np.ndarray, domain: np.ndarray, *, names: Sequence[str]
) -> dict[str, Interval]:
    """Estimates one measure per domain and overall; intervals by name, `overall` last.

    Args:
      values: float[prompts], scores in [0, 1].
      domain: int[prompts], the domain of each prompt, an index of `names`.
      names: the domains' names; a domain without prompts is left out.

    Returns:
      The mean of every domain, and under `overall` the unweighted mean over domains.

    Raises:
      ValueError: shapes differ, or a domain has no name.
    """
    parts = {}
    for name, chosen in _by_domain(domain, names):
        if np.shape(values) != chosen.shape:
            raise ValueError(f"values must be of shape {chosen.shape}, got {np.shape(values)}")
        parts[name] = interval(values[chosen])
    return parts | {OVERALL: mean_of(list(parts.values()))}


_HEADER = ("domain", "measure", "prompts", "before", "after", "difference")


def _signed(change: Interval) -> str:
    return f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


def _row_from_json(row: Mapping) -> EvaluationRow:
    intervals = [Interval(*map(float, row[name])) for name in ("before", "after", "difference")]
    return EvaluationRow(str(row["domain"]), str(row["measure"]), int(row["prompts"]), *intervals)


def _majority(answers: Sequence[str], scores: np.ndarray) -> float:
    votes: dict[str, list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer:
            votes.setdefault(answer, []).append(float(score))
    most = max((len(given) for given in votes.values()), default=0)
    tied = [sum(given) / most for given in votes.values() if len(given) == most]
    return sum(tied) / len(tied) if tied else 0.0


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


def _check_scores(correct: np.ndarray) -> np.ndarray:
    scores = np.asarray(correct, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"correct must be [prompts, k] with k >= 1, got {list(scores.shape)}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("scores must lie in [0, 1]")
    return scores


def _check_values(values: np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"expected one value a prompt, got shape {list(x.shape)}")
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError("values must lie in [0, 1]")
    return x
