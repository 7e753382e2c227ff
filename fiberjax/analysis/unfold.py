"""One objective, step after step on one batch: how far it drifts before its budgets hold it.

With a policy the steps change its parameters. Without one they change a table of logits: of each
sampled token one, against all other tokens together,

    log p = −log(1 + e^−z),    ∂ log p/∂z = 1 − p

so that log-probabilities stay below 0. Its tokens know nothing of each other, as those of a policy
do: what a gate does to a batch is seen there without what a policy does to it. `Unfold.space` says
which of the two it is.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fiberjax import step_share as shares
from fiberjax.analysis import batch as batches
from fiberjax.analysis import drift as drifts
from fiberjax.analysis.batch import look
from fiberjax.analysis.drift import SIDES
from fiberjax.analysis.objectives import Asked, ungated
from fiberjax.analysis.replay import jsonable
from fiberjax.analysis.through import Through
from fiberjax.run.kept import Kept
from fiberjax.run.shown import visible

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "sgd": optax.sgd,
}
"""What may take the steps, at a constant rate and without decay."""

PARAMETERS, LOGITS = "parameters", "logits"
"""What the steps change: those of a policy, or a table of logits."""

STEPS = 10
"""As many as show where the levels hold; through a policy each costs about what an update does."""

RATE = 0.05
"""Of the steps in a table of logits."""

_LARGEST_LOG_PROB = float(np.log1p(-1e-6))
"""Nats. A token that is certain has a logit all the same: 1e-6 is the chance that it is another."""


@dataclasses.dataclass(frozen=True, eq=False)
class Unfold:
    """K steps on one batch, as arrays over K + 1 points: before each step, and after the last.

    Attributes:
      label: of the objective.
      space: `PARAMETERS` or `LOGITS`.
      series: by name: `surrogate`, `coefficient_norm`, `open_share`, `kl` (k3, nats a token, of the
        old policy and the one of the step), `reward` and `effective` (see `replay`),
        `clipped/<level>`.
      drift: by level and name of `drift.Summary`, float64[K + 1, 2], up and down, nats.
      about: what was done, in words.
    """

    label: str
    space: str
    series: dict[str, np.ndarray]
    drift: dict[str, dict[str, np.ndarray]]
    about: str

    def print(self, console: Console | None = None) -> None:
        """Prints about ten of the steps on a console, the terminal where None."""
        console = Console() if console is None else console
        steps = len(self.series["kl"])
        table = Table(box=None, pad_edge=False)
        names = [name for name in ("kl", "reward", "open_share") if name in self.series]
        for name in ("step", *(name.replace("_", " ") for name in names)):
            table.add_column(name, justify="right")
        for level, of in self.drift.items():
            budget = of["budget"][0]
            told = f"\nbudget {_sides(budget)}" if np.isfinite(budget).all() else ""
            table.add_column(f"{level}, largest +/−{told}", justify="right")
        for step in np.unique(np.linspace(0, steps - 1, 11).round().astype(int)):
            cells = [f"{self.series[name][step]:.4g}" for name in names]
            # What has drifted the other way alone has not drifted this way.
            cells += [_sides(of["largest"][step].clip(0)) for of in self.drift.values()]
            table.add_row(str(step), *cells)
        console.print(Text(visible(self.about)))
        console.print(table)

    def to_json(self) -> str:
        """All numbers as JSON; what is not finite is a text there."""
        found = {
            "label": self.label,
            "space": self.space,
            "about": self.about,
            "series": {name: of.tolist() for name, of in self.series.items()},
            "drift": {
                level: {name: table.tolist() for name, table in of.items()}
                for level, of in self.drift.items()
            },
            "sides": SIDES,
        }
        return json.dumps(jsonable(found), indent=1, allow_nan=False)

    def plot(self, folder: str | Path) -> tuple[Path, ...]:
        """Draws it into a folder, made where missing; the PNG files."""
        from fiberjax.analysis import pictures

        return pictures.plot_unfold(self, Path(folder))


def unfold(
    kept: Kept,
    asked: Asked,
    *,
    policy: Any = None,
    steps: int = STEPS,
    rate: float | None = None,
    optimizer: str = "adam",
    step_share: bool | None = None,
    weighting: str | None = None,
    minibatch: int | None = None,
    told: Callable[[int], None] | None = None,
) -> Unfold:
    """Many steps of one objective on one batch of kept rollouts; an `Unfold`.

    Args:
      kept: of `load_rollouts` or `from_arrays`.
      asked: the objective, as one of those of `replay`.
      policy: of `load_policy`, whose parameters the steps start from; None for a table of logits,
        which starts from the log-probabilities of `kept`.
      steps: K, at least 1.
      rate: of the optimizer; None for the run's learning rate, or 0.05 in a table of logits.
      optimizer: one of `OPTIMIZERS`.
      step_share: whether steps are as long as the share that the gate leaves open (see
        `step_share`); None for where the gate is a silent hierarchy, as configs have it.
      weighting: of tokens; None for the run's, or "trajectory".
      minibatch: an optimizer batch alone; None for all trajectories as one batch.
      told: is given the number of steps that are done, after each; None tells nobody.

    Raises:
      ValueError: as `replay`; or steps, rate or optimizer that do not exist.
    """
    if type(steps) is not int or steps < 1:
        raise ValueError(f"steps = {steps!r}: expected a whole number, at least 1")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer {optimizer!r} does not exist; choose from {[*OPTIMIZERS]}")
    named = asked if isinstance(asked, dict) else [asked]
    chosen = batches.chosen(kept, named, weighting)
    label, objective = list(chosen.items())[-1]
    plain = ungated(objective)
    batch = batches.seen(kept, chosen, minibatch)
    space: _Logits | _Parameters = _Logits(kept) if policy is None else _Parameters(policy, kept)
    rate = space.rate if rate is None else rate
    if not (np.isfinite(rate) and rate > 0):
        raise ValueError(f"rate = {rate!r}: expected a number above 0")
    if step_share is None:
        step_share = objective.gate.structure.name == "silent"
    stepper = OPTIMIZERS[optimizer](rate)
    if step_share:
        stepper = shares.scale_by_share(stepper)
    stepper = optax.with_extra_args_support(stepper)
    params = space.start
    state, update = stepper.init(params), _update(stepper)
    seen: list[dict[str, float]] = []
    levels: list[dict[str, drifts.Summary]] = []
    for step in range(steps + 1):
        log_prob = space.log_prob(params)
        found = jax.device_get(look(objective, log_prob, batch))
        whole = jax.device_get(look(plain, log_prob, batch)).coefficients
        share = batches.open_share(found.coefficients, whole)
        drawn = batches.drawn(kept, batch.layout, log_prob)
        seen.append(_measured(found, share, drawn, batch))
        log_ratio = np.where(np.asarray(batch.layout.mask), log_prob - kept.old_log_prob, 0)
        held = _levels(objective.gate, log_ratio, batch.advantage, batch.layout)
        levels.append({level: drifts.summary(of) for level, of in jax.device_get(held).items()})
        if step < steps:
            gradient = space.gradient(params, found.coefficients)
            params, state = update(params, state, gradient, np.float32(share))
            if told is not None:
                told(step + 1)
    about = f"{label}: {steps} steps of {optimizer} at {rate:g}"
    about += ", as long as the share left open" if step_share else ""
    about += f", in {space.words}"
    return Unfold(
        label=label,
        space=space.name,
        series={name: np.array([of[name] for of in seen]) for name in seen[0]},
        drift={
            level: {
                name: np.stack([getattr(of[level], name) for of in levels])
                for name in drifts.Summary._fields
            }
            # A compiled function gives its dicts back in alphabetical order.
            for level in (drifts.TOKEN, *batch.layout.levels)
            if level in levels[0]
        },
        about=about,
    )


def _sides(pair: np.ndarray) -> str:
    """Up and down, nats; what is less than half of 1e-5 is 0."""
    return "/".join(f"{round(float(side), 5) + 0.0:.3g}" for side in pair)


def _measured(
    found: batches.Look, share: float, drawn: batches.Drawn, batch: batches.Seen
) -> dict[str, float]:
    fractions = found.clip_fractions(batch.layout)
    measured = {
        "surrogate": float(found.surrogate),
        "coefficient_norm": float(np.linalg.norm(found.coefficients.astype(np.float64))),
        "open_share": share,
        "kl": drawn.kl,
        "effective": drawn.effective,
        **{f"clipped/{level}": of for level, of in fractions.items()},
    }
    return measured if drawn.reward is None else measured | {"reward": drawn.reward}


_levels = jax.jit(drifts.levels)


def _update(stepper: optax.GradientTransformationExtraArgs) -> Callable[..., tuple[Any, Any]]:
    """The compiled step of an optimizer up a gradient."""

    @jax.jit
    def update(params: Any, state: Any, gradient: Any, share: jax.Array) -> tuple[Any, Any]:
        loss = jax.tree.map(jnp.negative, gradient)
        updates, state = stepper.update(loss, state, params, share=share)
        return optax.apply_updates(params, updates), state

    return update


class _Parameters:
    """Steps in the parameters of a policy."""

    name = PARAMETERS

    def __init__(self, policy: Any, kept: Kept):
        self._through = Through(policy, kept)
        self.start = self._through.params
        self.rate = float(kept.meta["config"]["optimizer"]["learning_rate"]) if kept.meta else 1e-4
        self.words = f"the parameters of the policy after iteration {policy.iteration}"
        self.log_prob, self.gradient = self._through.log_prob, self._through.gradient


class _Logits:
    """Steps in a table of logits, one of each sampled token against all others together."""

    name, rate = LOGITS, RATE
    words = "a table of logits, one of each sampled token against all others"

    def __init__(self, kept: Kept):
        log_prob = np.minimum(batches.log_prob_of(kept).astype(np.float64), _LARGEST_LOG_PROB)
        # log p − log(1 − p).
        self.start = jnp.asarray(log_prob - np.log(-np.expm1(log_prob)), jnp.float32)

    def log_prob(self, logits: jax.Array) -> np.ndarray:
        return np.asarray(jax.nn.log_sigmoid(logits))

    def gradient(self, logits: jax.Array, coefficients: np.ndarray) -> jax.Array:
        return jnp.asarray(coefficients) * jax.nn.sigmoid(-logits)
