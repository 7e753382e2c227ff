"""Budgets by successive halving: the same number of trials for every method, on seeds of their own.

Six budgets a method run half as long on one seed; the better two run whole on both. The best mean
of held-out mean@4 is chosen. A method whose share is of its own is tuned with it.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence

from experiments.study.records import Record, last
from experiments.study.settings import BASE, TUNING_SEEDS, Setting
from fiberjax.presets import preset

Find = Callable[[Setting], Record | None]
"""The run of a setting, None where it was not made."""

TRIALS = 6
"""Budgets a method."""

KEPT = 2
"""Of them go on to the second round."""

SHORT = int(BASE["iterations"]) // 2
"""Iterations of the first round."""


def candidates() -> dict[str, tuple[Setting, ...]]:
    """The budgets tried, by method; the shipped one is among them."""
    silent = {"training.step_share": "importance"}
    return {
        "GRPO": _grid("GRPO", "grpo", _clip(1), (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)),
        "GSPO": _grid("GSPO", "gspo", _clip(4 / 3), _NARROW),
        "GSPO, share": _grid("GSPO, share", "gspo", _clip(4 / 3), _NARROW, silent),
        "CPPO": _grid("CPPO", "cppo", _prefix, (0.005, 0.015, 0.05, 0.15, 0.3, 0.6)),
        "DPPO": _grid("DPPO", "dppo_tv", _divergence, (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)),
        "FiberPO-Domain": _grid(
            "FiberPO-Domain", "fiberpo_domain", _levels("fiberpo_domain"), _PARTS
        ),
        "silent sequence, share": _grid(
            "silent sequence, share",
            "silent_sequence",
            _same("trajectory", "group", "domain"),
            (1.3e-4, 4e-4, 1.2e-3, 4e-3, 1.2e-2, 4e-2),
            silent,
        ),
    }


def settings(find: Find) -> tuple[Setting, ...]:
    """The runs that there can be said to be, method by method: a second round follows its first."""
    wanted: list[Setting] = []
    for trials in candidates().values():
        wanted += [_short(trial) for trial in trials]
        wanted += [trial.at(seed) for seed in TUNING_SEEDS for trial in _kept(trials, find)]
    return tuple(wanted)


def chosen(find: Find) -> dict[str, Setting]:
    """The best budgets by method, at the first tuning seed; methods not done are left out."""
    best = {}
    for method, trials in candidates().items():
        scores = {
            index: [_score(find(trial.at(seed))) for seed in TUNING_SEEDS]
            for index, trial in enumerate(_kept(trials, find))
        }
        means = {
            index: statistics.fmean(found)
            for index, values in scores.items()
            if len(found := [value for value in values if value is not None]) == len(values)
        }
        if len(means) == KEPT:
            best[method] = _kept(trials, find)[max(means, key=means.__getitem__)]
    return best


def best(trials: Sequence[Setting], find: Find) -> Setting | None:
    """The best of some trials, each run once; None before all were."""
    scored = [(_score(find(trial)), trial) for trial in trials]
    found = [(score, trial) for score, trial in scored if score is not None]
    if len(found) < len(trials):
        return None
    return max(found, key=lambda pair: pair[0])[1]


def _short(trial: Setting) -> Setting:
    return trial.at(TUNING_SEEDS[0], iterations=SHORT)


def _kept(trials: Sequence[Setting], find: Find) -> tuple[Setting, ...]:
    """The better ones of the first round, best first; none before it is done."""
    scored = [(_score(find(_short(trial))), trial) for trial in trials]
    found = [(score, trial) for score, trial in scored if score is not None]
    if len(found) < len(trials):
        return ()
    return tuple(trial for _, trial in sorted(found, key=lambda pair: -pair[0])[:KEPT])


def _score(record: Record | None) -> float | None:
    """Held-out mean@4 at the end; 0 where an update was not finite, after which there is none."""
    if record is None:
        return None
    value = last(record)
    return 0.0 if value is None or record["collapsed"] is not None else value


_NARROW = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_PARTS = (1 / 1000, 1 / 300, 1 / 100, 1 / 30, 1 / 10, 1)

Options = Callable[[float], Mapping[str, object]]


def _grid(
    method: str,
    gate: str,
    options: Options,
    values: Sequence[float],
    also: Mapping[str, object] | None = None,
) -> tuple[Setting, ...]:
    return tuple(
        Setting(f"{method}: {value:g}", gate, {**(also or {}), **options(value)})
        for value in values
    )


def _clip(wider: float) -> Options:
    """Both bounds of a ratio, the upper one so much wider."""
    return lambda value: {"gate.clip_low": value, "gate.clip_high": wider * value}


def _prefix(value: float) -> Mapping[str, object]:
    """CPPO's two, in the proportion that they are shipped in."""
    shipped = 0.02 / 0.15
    return {"gate.delta": value, "gate.prefix_delta": shipped * value}


def _divergence(value: float) -> Mapping[str, object]:
    return {"gate.delta_low": value, "gate.delta_high": value}


def _levels(gate: str) -> Options:
    """All levels of a hierarchy, as parts of what is shipped."""
    levels = preset(gate)["levels"]
    return lambda value: {
        f"gate.levels.{name}.budget": [value * bound for bound in level["budget"]]
        for name, level in levels.items()
    }


def _same(*levels: str) -> Options:
    """One budget at every level."""
    return lambda value: {f"gate.levels.{name}.budget": value for name in levels}
