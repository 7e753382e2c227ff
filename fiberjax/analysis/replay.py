"""Replay: kept rollouts through any objective, on identical data.

    kept = fj.load_rollouts("runs/quickstart", 20)
    policy = fj.load_policy("runs/quickstart", 20)
    fj.replay(kept, ["gspo", ("fiberpo", {"trajectory": 0.1})], policy=policy).print()

All objectives see the same tokens, advantages, weights and log ratios. What is computed of each,
with `c` its coefficients, `c°` those of plain importance ratios and `g = Σ cᵢ ∇ log π(i)`:

| column | what |
|---|---|
| surrogate | `J`, what is maximised |
| coefficient_norm | `‖c‖` |
| cosine | of `c` and `c°` |
| open_share | `min(‖c‖/‖c°‖, 1)`; see `step_share` |
| effective_tokens | `(Σ|c|)²/(N Σc²)` over the N tokens: how many carry the gradient, as a share |
| vanished | share of the tokens with `c° ≠ 0` whose `c` is 0 |
| turned | share of them whose `c` has the other sign |
| clipped | by level the share of the tokens that the level's gate changes; "any" is any level |
| gradient_norm | `‖g‖`, through the policy |
| gradient_cosine | of `g` and `g°` |
| kl | after the step, nats a token: k3 of KL(old ‖ moved) over the tokens drawn |
| reward | after the step: the self-normalised importance-weighted mean of the sampled rewards |
| effective | the effective sample size of those weights, a share of the trajectories |

The step is `Δθ = s ‖θ‖ g/‖g‖`, gradient ascent of one length for all objectives; log-probabilities
are computed anew at `θ + Δθ`, and nothing is linearised. `before` has the same three at `θ`.
Weights of whole trajectories are products over their tokens: where `effective` is small, `reward`
says little.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fiberjax.analysis import batch as batches
from fiberjax.analysis.batch import Drawn, Seen, look
from fiberjax.analysis.objectives import Asked, Objective, ungated
from fiberjax.analysis.through import Through
from fiberjax.run.kept import Kept
from fiberjax.run.shown import visible

STEP = 1e-3
"""Length of the step over that of the parameters."""


class Row(NamedTuple):
    """What an objective makes of the rollouts; the columns of the table above.

    What needs a policy is None without one, and `reward` where none are known.
    """

    label: str
    surrogate: float
    coefficient_norm: float
    cosine: float
    open_share: float
    effective_tokens: float
    vanished: float
    turned: float
    clipped: dict[str, float]
    gradient_norm: float | None = None
    gradient_cosine: float | None = None
    kl: float | None = None
    reward: float | None = None
    effective: float | None = None


def _shown(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)


def _clipped(level: str) -> Callable[[Row], str]:
    return lambda row: _shown(row.clipped.get(level), ".3f")


_COEFFICIENTS: dict[str, Callable[[Row], str]] = {
    "‖c‖": lambda row: _shown(row.coefficient_norm),
    "cosine": lambda row: _shown(row.cosine, ".3f"),
    "open": lambda row: _shown(row.open_share, ".3f"),
    "tokens": lambda row: _shown(row.effective_tokens, ".3f"),
    "vanished": lambda row: _shown(row.vanished, ".3f"),
    "turned": lambda row: _shown(row.turned, ".3f"),
}
_THROUGH: dict[str, Callable[[Row], str]] = {
    "‖g‖": lambda row: _shown(row.gradient_norm),
    "cosine": lambda row: _shown(row.gradient_cosine, ".3f"),
    "KL after": lambda row: _shown(row.kl),
    "reward after": lambda row: _shown(row.reward, ".4f"),
    "ESS after": lambda row: _shown(row.effective, ".3f"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """Objectives on identical data.

    Attributes:
      rows: of each objective, plain importance ratios first.
      coefficients: by label, float32[R, C].
      cosines: float64[n, n], of the coefficients of any two objectives, in the order of the rows.
      gradient_cosines: float64[n, n], through the policy; None without one.
      before: the policy looked at, before any step.
      sample_sizes: by level, the effective sample size of the log ratios, of
        `diagnostics.effective_sample_sizes`.
      log_prob: float32[R, C], nats, of the policy looked at.
      batch: what all objectives saw.
      objectives: by label.
      about: what was looked at, in words.
    """

    rows: tuple[Row, ...]
    coefficients: dict[str, np.ndarray]
    cosines: np.ndarray
    gradient_cosines: np.ndarray | None
    before: Drawn
    sample_sizes: dict[str, float]
    log_prob: np.ndarray
    batch: Seen
    objectives: dict[str, Objective]
    about: str

    @property
    def labels(self) -> list[str]:
        """Of the rows, in their order."""
        return [row.label for row in self.rows]

    def row(self, label: str) -> Row:
        """The row of an objective.

        Raises:
          ValueError: there is none; names the choices.
        """
        if label not in self.labels:
            raise ValueError(f"no objective {label!r}; choose from {self.labels}")
        return self.rows[self.labels.index(label)]

    def print(self, console: Console | None = None) -> None:
        """Prints the tables on a console, the terminal where None."""
        console = Console() if console is None else console
        console.print(Text(self.about))
        console.print(self._table("of coefficients", _COEFFICIENTS))
        levels = dict.fromkeys(level for row in self.rows for level in row.clipped)
        clipped = {level: _clipped(level) for level in levels}
        console.print(self._table("tokens clipped, by level", clipped))
        if self.gradient_cosines is not None:
            console.print(self._table("through the policy", _THROUGH))
        before = f"before any step: KL {self.before.kl:.3g} nats/token"
        if self.before.reward is not None:
            before += f", reward {self.before.reward:.4g}"
        sizes = ", ".join(f"{level} {size:.3g}" for level, size in self.sample_sizes.items())
        console.print(Text(f"{before}; effective sample size by level: {sizes}"))

    def _table(self, title: str, columns: Mapping[str, Callable[[Row], str]]) -> Table:
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        table.add_column("objective", overflow="fold")
        for name in columns:
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(Text(visible(row.label)), *(of(row) for of in columns.values()))
        return table

    def to_json(self) -> str:
        """Rows, cosines and what was before, as JSON; what is not finite is a text there."""
        found = {
            "about": self.about,
            "before": self.before._asdict(),
            "sample_sizes": self.sample_sizes,
            "rows": [row._asdict() for row in self.rows],
            "cosines": self.cosines.tolist(),
            "gradient_cosines": None
            if self.gradient_cosines is None
            else self.gradient_cosines.tolist(),
        }
        return json.dumps(jsonable(found), indent=1, allow_nan=False)

    def plot(self, folder: str | Path) -> tuple[Path, ...]:
        """Draws the replay into a folder, made where missing; the PNG files."""
        from fiberjax.analysis import pictures

        return pictures.plot_replay(self, Path(folder))


def replay(
    kept: Kept,
    objectives: Sequence[Asked] | Mapping[str, Asked],
    *,
    policy: Any = None,
    weighting: str | None = None,
    minibatch: int | None = None,
    step: float = STEP,
) -> Replay:
    """Kept rollouts through objectives, on identical data; a `Replay`.

    Args:
      kept: of `load_rollouts` or `from_arrays`.
      objectives: see `objectives_of`: presets by name, with overrides, or a dict from labels to
        gates; "run" is the run's own gate.
      policy: of `load_policy`; None takes log-probabilities as `kept` has them.
      weighting: of tokens; None for the run's, or "trajectory".
      minibatch: an optimizer batch alone; None for all trajectories as one batch.
      step: length of the step that each would take, over that of the parameters.

    Returns:
      The table, coefficients and cosines. Each structure of a gate compiles one program, each
      policy three; budgets and batches compile none.

    Raises:
      ValueError: an objective, level, minibatch or step that does not exist, or a policy that the
        rollouts' tokens do not fit.
    """
    if not (np.isfinite(step) and step > 0):
        raise ValueError(f"step = {step!r}: expected a number above 0, a share of ‖θ‖")
    chosen = batches.chosen(kept, objectives, weighting)
    batch = batches.seen(kept, chosen, minibatch)
    through = None
    log_prob = batches.log_prob_of(kept)
    if policy is not None:
        through = Through(policy, kept)
        log_prob = through.log_prob(through.params)
    looks = {label: jax.device_get(look(of, log_prob, batch)) for label, of in chosen.items()}
    mask = np.asarray(batch.layout.mask)
    coefficients = {label: of.coefficients for label, of in looks.items()}
    flat = np.stack([of[mask].astype(np.float64) for of in coefficients.values()])
    before = batches.drawn(kept, batch.layout, log_prob)
    # Under a weighting of its own an objective's share is of ratios that are weighed alike.
    plain: dict[Any, np.ndarray] = {}
    for of in chosen.values():
        key = (of.weighting, of.constant_length)
        if key not in plain:
            plain[key] = jax.device_get(look(ungated(of), log_prob, batch)).coefficients
    rows = tuple(
        _row(label, of, flat[0], plain[of_.weighting, of_.constant_length], batch)
        for (label, of), of_ in zip(looks.items(), chosen.values(), strict=True)
    )
    gradient_cosines = None
    if through is not None:
        rows, gradient_cosines = _moved(rows, coefficients, kept, batch, through, step)
    return Replay(
        rows=rows,
        coefficients=coefficients,
        cosines=cosines(flat @ flat.T),
        gradient_cosines=gradient_cosines,
        before=before,
        sample_sizes=batches.sample_sizes(log_prob, batch),
        log_prob=log_prob,
        batch=batch,
        objectives=chosen,
        about=_about(kept, batch, policy, minibatch, step),
    )


def _row(
    label: str, found: batches.Look, ungated: np.ndarray, weighed: np.ndarray, batch: Seen
) -> Row:
    """What needs no policy.

    Args:
      label: of the objective.
      found: what it makes of the batch.
      ungated: float64[N], the coefficients of the first row.
      weighed: float32[R, C], those of plain ratios under the objective's own weighting.
      batch: what it saw.
    """
    own = found.coefficients[np.asarray(batch.layout.mask)].astype(np.float64)
    norm, size = np.linalg.norm(own), np.abs(own).sum()
    pushed = ungated != 0
    count = max(int(pushed.sum()), 1)
    return Row(
        label=label,
        surrogate=float(found.surrogate),
        coefficient_norm=float(norm),
        cosine=_cosine(float(own @ ungated), float(norm), float(np.linalg.norm(ungated))),
        open_share=batches.open_share(np.asarray(found.coefficients), weighed),
        effective_tokens=float(size**2 / (len(own) * norm**2)) if norm else 0.0,
        vanished=float((pushed & (own == 0)).sum() / count),
        turned=float((own * np.sign(ungated) < 0).sum() / count),
        clipped=found.clip_fractions(batch.layout),
    )


def _moved(
    rows: tuple[Row, ...],
    coefficients: Mapping[str, np.ndarray],
    kept: Kept,
    batch: Seen,
    through: Through,
    step: float,
) -> tuple[tuple[Row, ...], np.ndarray]:
    """The rows with what needs the policy, and the cosines of gradients.

    One gradient is on the devices at a time; those of all objectives wait on the host.
    """
    params = through.params
    length = step * float(optax.tree.norm(params))
    found, gradients = [], []
    for row in rows:
        gradient = through.gradient(params, coefficients[row.label])
        norm = float(optax.tree.norm(gradient))
        scale = length / norm if norm > 0 else 0.0
        moved = through.log_prob(_ahead(params, gradient, np.float32(scale)))
        after = batches.drawn(kept, batch.layout, moved)
        gradients.append([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradient)])
        found.append(
            row._replace(
                gradient_norm=norm, kl=after.kl, reward=after.reward, effective=after.effective
            )
        )
    products = np.array([[_dot(a, b) for b in gradients] for a in gradients])
    between = cosines(products)
    return (
        tuple(
            row._replace(gradient_cosine=float(cosine))
            for row, cosine in zip(found, between[0], strict=True)
        ),
        between,
    )


@jax.jit
def _ahead(params: Any, gradient: Any, scale: Any) -> Any:
    """The parameters a step along the gradient."""
    return jax.tree.map(lambda p, g: p + (scale * g).astype(p.dtype), params, gradient)


def _dot(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """The inner product of two gradients, added in float64, a leaf at a time."""
    return sum(
        float(np.dot(a.astype(np.float64), b.astype(np.float64)))
        for a, b in zip(first, second, strict=True)
    )


def cosines(products: np.ndarray) -> np.ndarray:
    """From inner products to cosines, float64[n, n]; 0 where one of the two is zero."""
    norms = np.sqrt(np.diag(products))
    return np.array(
        [
            [_cosine(products[i, j], norms[i], norms[j]) for j in range(len(norms))]
            for i in range(len(norms))
        ]
    )


def _cosine(product: float, first: float, second: float) -> float:
    return float(product / (first * second)) if first > 0 and second > 0 else 0.0


def _about(kept: Kept, batch: Seen, policy: Any, minibatch: int | None, step: float) -> str:
    mask = np.asarray(batch.layout.mask)
    words = f"{int(mask.any(axis=1).sum())} trajectories, {int(mask.sum())} tokens"
    if "iteration" in kept.meta:
        words += f" of iteration {kept.meta['iteration']}"
    if minibatch is not None:
        words += f", minibatch {minibatch}"
    if policy is not None:
        return (
            f"{words}, under the policy after iteration {policy.iteration}; a step of {step:g} ‖θ‖"
        )
    if kept.log_prob is not None:
        return f"{words}, log-probabilities as given"
    return f"{words}, under the policy that drew them: all log ratios are 0"


def jsonable(value: Any) -> Any:
    """A value as JSON holds it: numbers that are not finite become texts."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(of) for of in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else str(float(value))
    return value.item() if isinstance(value, np.generic) else value
