"""What gates without levels measure of every token, and the bounds that they hold it to.

Each entry of `MEASURES` makes, for one gate of `gates.GATES`, the numbers that its docstring
compares. A gate that is not there, such as one of a plugin, is told by its clip mask alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fiberjax.analysis.batch import of_minibatch
from fiberjax.analysis.tokens import Tokens
from fiberjax.gates import masks, prefix, score, sequence, tokenwise
from fiberjax.layout import Layout


@dataclasses.dataclass(frozen=True, eq=False)
class Measure:
    """A number of each token, and what the gate lets it be.

    Attributes:
      what: what it is, the beginning of a sentence.
      value: float[R, C].
      low: float[R, C] or a number: the least that is allowed; −inf for no bound.
      high: the most that is allowed; inf for no bound.
      unit: behind the value, such as " nats".
    """

    what: str
    value: np.ndarray
    low: Any = -np.inf
    high: Any = np.inf
    unit: str = ""

    def text(self, at: tuple[int, int]) -> str:
        """A sentence on one token."""
        value = float(self.value[at])
        low, high = (
            float(np.broadcast_to(of, self.value.shape)[at]) for of in (self.low, self.high)
        )
        said = f"{self.what} {number(value)}{self.unit}"
        if np.isinf(low) and np.isinf(high):
            return f"{said}."
        if np.isinf(low):
            allowed = f"at most {number(high)}"
        elif np.isinf(high):
            allowed = f"at least {number(low)}"
        else:
            allowed = f"{number(low)} to {number(high)}"
        return f"{said}, allowed is {allowed}: {'within' if low <= value <= high else 'beyond'}."


@dataclasses.dataclass(frozen=True, eq=False)
class _Given:
    """What measures are made of: arrays over [R, C], 0 off the mask, and the gate's numbers."""

    log_ratio: Any
    advantage: Any
    old_log_prob: Any
    layout: Layout
    numbers: Mapping[str, float]
    level: str
    form: str

    @property
    def ratio(self) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.exp(self.log_ratio)

    def one_sided(self, what: str, value: Any, low: float, high: float, unit: str = "") -> Measure:
        """A measure bounded above where `Â ≥ 0`, below elsewhere."""
        good = self.advantage >= 0
        return Measure(
            what,
            np.asarray(value),
            np.where(good, -np.inf, low),
            np.where(good, high, np.inf),
            unit,
        )

    def clip(self, what: str, value: Any) -> Measure:
        """PPO's rule on any ratio."""
        return self.one_sided(
            what, value, 1 - self.numbers["clip_low"], 1 + self.numbers["clip_high"]
        )

    def mean(self, values: Any) -> np.ndarray:
        """The mean over each token's cell of the gate's level."""
        read = sequence.trajectory_mean(values, self.layout, self.level)
        return np.broadcast_to(np.asarray(read), values.shape)

    def total(self) -> np.ndarray:
        """The sum of the log ratios over each token's cell of the gate's level."""
        read = sequence.trajectory_sum(self.log_ratio, self.layout, self.level)
        return np.broadcast_to(np.asarray(read), self.log_ratio.shape)


def of(tokens: Tokens, minibatch: int) -> list[Measure]:
    """The measures of a gate without levels over an optimizer batch; [] of one that has none here.

    Tokens of other batches are 0 there.
    """
    structure, budgets = tokens.gate.structure, tokens.gate.budgets
    make = MEASURES.get(structure.spec.gate)
    if make is None:
        return []
    options = dict(structure.options)
    kept, layout = tokens.kept, of_minibatch(tokens.kept, minibatch)
    mask = np.asarray(layout.mask)
    return make(
        _Given(
            log_ratio=np.where(mask, kept.log_ratio, 0),
            advantage=np.where(mask, kept.advantage, 0),
            old_log_prob=np.where(mask, kept.old_log_prob, 0),
            layout=layout,
            numbers={name: float(of) for name, of in budgets.items() if of is not None},
            level=options.get("level", "trajectory"),
            form=options.get("form", "product"),
        )
    )


def _ppo(given: _Given) -> list[Measure]:
    return [given.clip("Its ratio is", given.ratio)]


def _clip(given: _Given) -> list[Measure]:
    low, high = 1 - given.numbers["clip_low"], 1 + given.numbers["clip_high"]
    return [Measure("Its ratio is", given.ratio, low, high)]


def _gspo(given: _Given) -> list[Measure]:
    ratio = np.exp(given.mean(given.log_ratio))
    return [given.clip(f"Its {given.level}'s ratio, a geometric mean, is", ratio)]


def _gmpo(given: _Given) -> list[Measure]:
    low, high = -given.numbers["clip_low"], given.numbers["clip_high"]
    return [given.one_sided("Its log ratio is", given.log_ratio, low, high, " nats")]


def _sapo(given: _Given) -> list[Measure]:
    positive, negative = (given.numbers[f"temperature_{of}"] for of in ("positive", "negative"))
    temperature = np.where(given.advantage > 0, positive, negative)
    slope = 1 / np.cosh(np.clip(temperature * (given.ratio - 1) / 2, -300, 300)) ** 2
    return [
        Measure("A soft gate: its ratio is", given.ratio),
        Measure("There the gate's slope, 1 on-policy, is", slope),
    ]


def _dppo_tv(given: _Given) -> list[Measure]:
    moved = score.moved_probability(given.log_ratio, given.old_log_prob)
    low, high = -given.numbers["delta_low"], given.numbers["delta_high"]
    cap = Measure("Its ratio is", given.ratio, high=given.numbers["weight_cap"])
    return [given.one_sided("Its probability has moved by", moved, low, high), cap]


def _dppo_kl(given: _Given) -> list[Measure]:
    log_prob = np.minimum(given.old_log_prob + given.log_ratio, 0)
    divergence = np.asarray(score.binary_kl(np.minimum(given.old_log_prob, 0), log_prob))
    back = np.where(given.advantage >= 0, given.log_ratio <= 0, given.log_ratio >= 0)
    bound = np.where(back, np.inf, given.numbers["delta"])
    return [
        Measure("The KL of drawing it or not is", divergence, high=bound, unit=" nats"),
        Measure("Its ratio is", given.ratio, high=given.numbers["weight_cap"]),
    ]


def _vespo(given: _Given) -> list[Measure]:
    total = given.total()
    good = given.advantage >= 0
    k, decay = (
        np.where(good, given.numbers[f"{name}_positive"], given.numbers[f"{name}_negative"])
        for name in ("k", "lambda")
    )
    with np.errstate(over="ignore"):
        kernel = np.exp(decay + k * total - decay * np.exp(np.minimum(total, 80)))
    name = f"Its {given.level}'s ratio, the product of all,"
    return [Measure(f"{name} is e^", total), Measure("The kernel weighs that", kernel)]


def _topr(given: _Given) -> list[Measure]:
    log = given.total() if given.form == "product" else given.mean(given.log_ratio)
    bound = np.where(given.advantage >= 0, np.inf, given.numbers["weight_cap"])
    ratio = np.exp(np.minimum(log, 80))
    return [Measure(f"Its {given.level}'s ratio is", ratio, high=bound)]


def _m2po(given: _Given) -> list[Measure]:
    bound = number(given.numbers["second_moment"])
    what = f"Of a batch whose mean square is held to {bound} its squared log ratio is"
    return [Measure(what, given.log_ratio**2)]


def _trm(given: _Given) -> list[Measure]:
    divergence = np.expm1(given.log_ratio) - given.log_ratio
    name = f"Its {given.level}'s mean divergence is"
    mean = Measure(name, given.mean(divergence), high=given.numbers["mean"], unit=" nats")
    largest = given.numbers["largest"]
    return [mean, Measure("Its own is", divergence, high=largest, unit=" nats")]


def _opsm(given: _Given) -> list[Measure]:
    bound = np.where(given.advantage < 0, given.numbers["delta"], np.inf)
    fallen = -given.mean(given.log_ratio)
    name = f"Its {given.level} has fallen by"
    return [*_ppo(given), Measure(name, fallen, high=bound, unit=" nats a token")]


def _tvpo(given: _Given) -> list[Measure]:
    on = given.advantage * given.log_ratio > 0
    bound = np.where(on, given.numbers["delta"], np.inf)
    moved = given.mean(np.where(given.layout.mask, np.abs(given.ratio - 1), 0))
    return [Measure(f"Its {given.level}'s mean |ratio − 1| is", moved, high=bound)]


def _cppo(given: _Given) -> list[Measure]:
    moved = np.abs(score.moved_probability(given.log_ratio, given.old_log_prob))
    on = given.advantage * given.log_ratio > 0
    bound = np.where(on, given.numbers["delta"], np.inf)
    name = "Its probability has moved by"
    return [Measure(name, np.asarray(moved), high=bound, unit=", less if its prefix moved")]


def _pnpo(given: _Given) -> list[Measure]:
    ratio = prefix.prefix_ratio(given.log_ratio, given.advantage, given.layout)
    return [given.clip("Its prefix's ratio, a geometric mean, is", ratio)]


def _minpro(given: _Given) -> list[Measure]:
    ratio = np.asarray(prefix.minimum_ratio(given.log_ratio, given.advantage, given.layout))
    cap = given.numbers["weight_cap"]
    return [Measure("Its ratio, by the smallest before it, is", ratio, high=cap)]


MEASURES: Mapping[Callable[..., Any], Callable[[_Given], list[Measure]]] = {
    tokenwise.clip: _clip,
    tokenwise.ppo: _ppo,
    sequence.gspo: _gspo,
    sequence.gspo_token: _gspo,
    sequence.gmpo: _gmpo,
    sequence.vespo: _vespo,
    sequence.topr: _topr,
    score.cispo: _clip,
    score.sapo: _sapo,
    score.dppo_tv: _dppo_tv,
    score.dppo_kl: _dppo_kl,
    masks.m2po: _m2po,
    masks.trm: _trm,
    masks.opsm: _opsm,
    masks.tvpo: _tvpo,
    prefix.cppo: _cppo,
    prefix.pnpo: _pnpo,
    prefix.minpro: _minpro,
    prefix.fipo: _ppo,
}
"""Measures by the gate's function."""


def number(value: float) -> str:
    """A number as it is read: three digits, five near 1, where bounds of ratios stand.

    >>> number(-0.00412345), number(4e-5), number(0.0), number(1.0004)
    ('−0.00412', '4e-5', '0', '1.0004')
    """
    text = f"{value:.5g}" if 0.9 <= abs(value) < 1.1 else f"{value:.3g}"
    text = text.replace("e-0", "e-").replace("e+0", "e+")
    return text.replace("-", "−", 1) if value < 0 else text


def signed(value: float) -> str:
    """A number with its sign.

    >>> signed(0.5), signed(-0.5), signed(0.0)
    ('+0.5', '−0.5', '0')
    """
    return number(value) if value <= 0 else f"+{number(value)}"
