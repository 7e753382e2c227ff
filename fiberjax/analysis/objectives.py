"""What is replayed: gates by the name of a preset with other budgets, and how tokens weigh.

An objective here is the surrogate of one gate and one weighting. A KL penalty to the reference and
an entropy bonus, which are the same whatever the gate, are no part of it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fiberjax import gates, objective
from fiberjax.bounds import shown
from fiberjax.gates.configured import ConfiguredGate, gate
from fiberjax.layout import STATE, Layout

UNGATED = "ungated"
"""The label of plain importance ratios, which every other objective is compared with."""

RUN = "run"
"""The name that stands for the gate of the run that the rollouts are of."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Objective:
    """A surrogate: its gate, and how tokens weigh. A pytree of the gate's budgets.

    Attributes:
      gate: of `fiberjax.gate`.
      weighting: one of `objective.WEIGHTINGS`. Static.
      constant_length: tokens, the denominator of "constant". Static.
    """

    gate: ConfiguredGate
    weighting: str = dataclasses.field(default="trajectory", metadata={"static": True})
    constant_length: int | None = dataclasses.field(default=None, metadata={"static": True})


Asked = str | tuple[str, Mapping[str, Any]] | ConfiguredGate | Objective
"""An objective as it is asked for: a preset's name, one with overrides, or a gate."""


def objectives_of(
    asked: Sequence[Asked] | Mapping[str, Asked],
    *,
    layout: Layout,
    config: Mapping[str, Any] | None = None,
    weighting: str | None = None,
    factor: float = 1.0,
) -> dict[str, Objective]:
    """The objectives asked for, by label, checked against the layout; `UNGATED` first.

    Args:
      asked: presets by name, pairs of a name and overrides as `fiberjax.gate` takes them, gates, or
        a mapping from labels to any of these. `RUN` is the run's own gate. An override `weighting`
        is that of the objective, where it is another one.
      layout: of the rollouts; it has the levels that the gates name.
      config: the run's, as JSON; None where the rollouts are of no run.
      weighting: of all objectives; None for the run's, or "trajectory".
      factor: of the run's own budgets at that iteration; see `run.control`.

    Raises:
      ValueError: there is none, an override or a weighting does not exist, two have one label, or a
        gate names a level that the rollouts lack.
    """
    training = {} if config is None else config["training"]
    chosen = training.get("weighting", "trajectory") if weighting is None else weighting
    columns = int(layout.mask.shape[-1]) if config is None else int(config["window"]["completion"])
    named = asked if isinstance(asked, Mapping) else _labelled(asked)
    if not named:
        raise ValueError("objectives = []: expected at least one, such as 'gspo'")
    found = {UNGATED: _checked(gate("importance"), chosen, columns, UNGATED)}
    for label, each in named.items():
        if label == UNGATED:
            raise ValueError(f"the label {UNGATED!r} is that of plain importance ratios")
        if isinstance(each, Objective):
            made = each
        else:
            structure, own = _gate(each, layout, config, factor)
            made = _checked(structure, own or chosen, columns, label)
        _check_levels(made.gate, layout, label)
        found[label] = made
    return found


def parse(text: str) -> list[Asked]:
    """Objectives as a command line has them: `gspo,fiberpo:trajectory=0.1:epsilon=0.2`.

    Objectives are parted by commas, and overrides from the name and each other by colons; a pair of
    budgets, plus and minus, by a slash.

    Raises:
      ValueError: an override without a value.

    >>> parse("gspo,fiberpo:trajectory=.1/.08:pessimistic=True")
    ['gspo', ('fiberpo', {'trajectory': (0.1, 0.08), 'pessimistic': True})]
    """
    found: list[Asked] = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        name, *overrides = each.split(":")
        pairs = {}
        for override in overrides:
            key, equal, value = override.partition("=")
            if not equal or not value:
                raise ValueError(f"objective {each!r}: expected name=value after a colon")
            pairs[key] = value_of(value)
        found.append((name, pairs) if pairs else name)
    return found


def value_of(text: str) -> Any:
    """A number, a pair of numbers parted by a slash, True, False, None, or the text itself.

    >>> value_of("1e-3"), value_of("0.1/0.2"), value_of("None"), value_of("hold")
    (0.001, (0.1, 0.2), None, 'hold')
    """
    known = {"True": True, "False": False, "None": None}
    if text in known:
        return known[text]
    try:
        numbers = tuple(float(part) for part in text.split("/"))
    except ValueError:
        return text
    return numbers[0] if len(numbers) == 1 else numbers


def ungated(of: Objective) -> Objective:
    """Plain importance ratios under the weighting of an objective."""
    return dataclasses.replace(of, gate=gate("importance"))


def with_states(layout: Layout, objectives: Mapping[str, Objective], state_id: Any) -> Layout:
    """The layout, with the states of its tokens where an objective couples these.

    Args:
      layout: of the rollouts.
      objectives: of `objectives_of`.
      state_id: makes them, int of the mask's shape; called only where they are needed.

    Raises:
      ValueError: they are needed and cannot be made.
    """
    needing = [label for label, of in objectives.items() if _couples_states(of.gate)]
    if not needing or layout.state_id is not None:
        return layout
    mask = np.asarray(layout.mask)
    found = state_id()
    if found is None:
        raise ValueError(
            f"objective {needing[0]!r} couples the tokens of a state, those of one prompt and "
            "prefix: expected rollouts with tokens and prompt_tokens"
        )
    states: Any = np.where(mask, found, mask.size).astype(np.int32)
    return dataclasses.replace(layout, state_id=states, num_states=mask.size)


def _labelled(asked: Sequence[Asked]) -> dict[str, Asked]:
    """Labels of objectives that came without."""
    if isinstance(asked, str) or not isinstance(asked, Sequence):
        raise ValueError(f"objectives = {shown(asked)}: expected a list, or a dict by label")
    found: dict[str, Asked] = {}
    for each in asked:
        if isinstance(each, str):
            label = each
        elif isinstance(each, ConfiguredGate):
            label = each.structure.name
        elif isinstance(each, tuple) and len(each) == 2 and isinstance(each[1], Mapping):
            label = " ".join([str(each[0]), *(f"{k}={_short(v)}" for k, v in each[1].items())])
        else:
            raise ValueError(
                f"objectives: got {shown(each)}; expected the name of a preset, or a pair "
                "(name, overrides), or a gate; other objectives stand in a dict by label"
            )
        if label in found:
            raise ValueError(f"objectives: {label!r} stands there twice")
        found[label] = each
    return found


def _short(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "/".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _gate(
    asked: Any, layout: Layout, config: Mapping[str, Any] | None, factor: float
) -> tuple[ConfiguredGate, str | None]:
    """The gate asked for, and the weighting where an override names one."""
    if isinstance(asked, ConfiguredGate):
        return asked, None
    name, overrides = asked if isinstance(asked, tuple) else (asked, {})
    overrides = dict(overrides)
    own = overrides.pop("weighting", None)
    if name != RUN:
        return gate(name, **overrides), own
    if config is None:
        raise ValueError(f"objective {RUN!r} is the gate of a run, and the rollouts are of none")
    structure, budgets = gates.from_config(config["gate"], layout.levels)
    if factor != 1:
        budgets = structure.widened(budgets, factor)
    made = ConfiguredGate(structure, budgets)
    return (made.replace(**overrides) if overrides else made), own


def _checked(gate: ConfiguredGate, weighting: str, columns: int, label: str) -> Objective:
    if weighting not in objective.WEIGHTINGS:
        raise ValueError(
            f"objective {label!r}: weighting {shown(weighting)} does not exist; choose from "
            f"{objective.WEIGHTINGS}"
        )
    return Objective(gate, weighting, columns if weighting == "constant" else None)


def _check_levels(gate: ConfiguredGate, layout: Layout, label: str) -> None:
    level = dict(gate.structure.options).get("level")
    wanted = [*gate.budgets.get("budgets", {}), *([level] if level not in (None, STATE) else [])]
    for level in wanted:
        if level not in layout.levels:
            raise ValueError(
                f"objective {label!r} has a level {level!r}, which the rollouts lack; they have "
                f"{layout.levels}"
            )


def _couples_states(gate: ConfiguredGate) -> bool:
    return dict(gate.structure.options).get("level") == STATE
