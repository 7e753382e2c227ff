"""Writes `docs/options.md` from the option classes, the table of gates and the shipped configs.

    python docs/make_options.py

A test holds the page to be what this makes of the code.
"""

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fiberjax import bounds, experiment, options
from fiberjax.gates import GATES, config
from fiberjax.presets import PRESETS
from fiberjax.tasks import FAMILIES

PAGE = Path(__file__).with_name("options.md")

# The options of the first stand in no section.
SECTIONS: Mapping[str, type] = {"": options.Run, **experiment.SECTIONS}
MODELS = ("qwen2_5_0_5b", "qwen2_5_1_5b", "qwen2_5_7b", "qwen3_1_7b")

HEAD = """# Options

Made by `python docs/make_options.py`; a test holds it to the code. Every option of a config, its
type, what `configs/quickstart.py` sets, what `configs/pods.py` sets where that differs, and its
meaning. Nothing has a default but what a config says: a key that is missing, unknown or of another
type is refused by its path before anything compiles. Each is overridden on the command line, as in
`--config.rollout.samples=8`, `--config.gate.levels.trajectory.budget="(0.1,0.08)"` or
`--config.plugins="('my_gate.py',)"`. Names of one's own in a mapping (those of
`tasks.domains`, `curriculum.domain_probability` and `model.overrides`) are added in a config file:
a command line overrides what is there.
"""

GATE_HEAD = """## config.gate

Chosen by `name`; `configs/quickstart.py:gspo` takes a preset of the last table. Budgets are traced,
so that sweeping them never recompiles; options are static. A key that a config leaves out has the
default given here. What every gate takes:

| key | type | default | meaning |
|---|---|---|---|
| `name` | str | none | the gate, a name of the next table or of a plugin |
| `pessimistic` | bool | `False` | a token counts by the smaller of its gated and ungated term |
| `dual_clip` | float above 1, ratio | `None` | caps the loss of tokens with a negative advantage |
| `recovery` | bool | `False` | good tokens that became unlikely are not gated |

A weight on the score takes none of the last three. A hierarchy (`fiberpo`, `fiberpo_domain`, `fgh`
and `silent`) takes `order`, its levels finest first, and `levels.<level>.budget` for each of them,
nats: a number, or a pair for upward and downward drift (`silent`: of good and of bad tokens).
"""


def page() -> str:
    """The page as the code has it."""
    parts = [HEAD]
    quickstart, pods = _config("quickstart"), _config("pods")
    for name, section in SECTIONS.items():
        parts.append(_section(name, section, quickstart, pods))
    parts += [_models(pods), _families(), GATE_HEAD, _gates(), _presets()]
    return "\n".join(parts)


def _config(name: str) -> Any:
    return importlib.import_module(f"configs.{name}").get_config()


def _section(name: str, section: type, quickstart: Any, pods: Any) -> str:
    """One section's options as a table."""
    given, larger = (config[name] if name else config for config in (quickstart, pods))
    told = meanings(section)
    rows = []
    for field in dataclasses.fields(section):
        here, there = given[field.name], larger[field.name]
        base = bounds.base_type(field.type)
        kinds = typing.get_args(base) or (base,)
        kind = "section" if base is Mapping else " or ".join(k.__name__ for k in kinds)
        taken = [of for of in typing.get_args(field.type)[1:] if isinstance(of, bounds.Range)]
        kind += "".join(f" in {of.interval}" for of in taken)
        differs = "" if _plain(here) == _plain(there) else _shown(there)
        rows.append((f"`{field.name}`", kind, _shown(here), differs, told[field.name]))
    first = str(inspect.getdoc(section)).splitlines()[0]
    title = f"config.{name}" if name else "config"
    head = ("option", "type", "quickstart", "pods", "meaning")
    return f"## {title}\n\n{first}\n\n{_table(head, rows)}"


def meanings(section: type) -> dict[str, str]:
    """What the `Attributes:` of a class say of each of its fields.

    Raises:
      ValueError: a field is not among them.
    """
    text = str(inspect.getdoc(section)).partition("\nAttributes:\n")[2]
    text = re.split(r"\n(?=\S)", text)[0]  # Up to the next heading.
    found = {
        name: " ".join(line.split())
        for name, line in re.findall(r"^  (\w+): (.*(?:\n    .*)*)", text, re.MULTILINE)
    }
    for field in dataclasses.fields(section):
        if field.name not in found:
            raise ValueError(f"{section.__name__}.{field.name} has no line under Attributes")
    return found


def _models(pods: Any) -> str:
    """What the configs of models set beside what they share."""
    models = {name: _flat(_config(name)) for name in MODELS}
    shared = _flat(pods)
    keys = [key for key in shared if any(model[key] != shared[key] for model in models.values())]
    rows = [(f"`{key}`", *(_shown(model[key]) for model in models.values())) for key in keys]
    head = ("option", *(f"`{name}`" for name in MODELS))
    return f"## Models\n\nWhat they set beside `configs/pods.py`.\n\n{_table(head, rows)}"


def _families() -> str:
    """The procedural families and their knobs."""
    rows = []
    for name, family in FAMILIES.items():
        made = family()
        knobs = [f"`{f.name}` = {_shown(getattr(made, f.name))}" for f in dataclasses.fields(made)]
        rows.append((f"`{name}`", ", ".join(knobs)))
    told = (
        "Names for `config.tasks.domains`, each with its knobs and their defaults; `difficulty` is "
        "one more knob of each."
    )
    return f"## Families\n\n{told}\n\n{_table(('family', 'knobs'), rows)}"


def _gates() -> str:
    """The gates and their own keys."""
    rows = []
    for name, spec in GATES.items():
        here = f"`{name}`" + (", a weight on the score" if spec.score_weight else "")
        keys = []
        for key, budget in spec.budgets.items():
            if budget is config.BY_LEVEL:
                levels = "any" if spec.depth is None else str(spec.depth)
                keys.append(("`order`, `levels`", "budget", "none", f"nats; levels: {levels}"))
            else:
                keys.append((f"`{key}`", "budget", _shown(budget.default), budget.unit))
        for key, option in spec.options.items():
            choices = ", ".join(map(_shown, option.choices))
            if option is config.LEVEL or option is config.UNIT:
                choices = 'a level, or "state"' if option is config.UNIT else "a level"
            keys.append((f"`{key}`", "option", _shown(option.default), choices))
        for index, row in enumerate(keys if keys else [("", "", "", "")]):
            rows.append((here if index == 0 else "", *row))
    return _table(("gate", "key", "kind", "default", "unit or choices"), rows)


def _presets() -> str:
    """The presets and their values, less those that the tables of gates have as defaults."""
    rows = []
    for name, values in PRESETS.items():
        spec = GATES[values["name"]]
        defaults: dict[str, Any] = {"pessimistic": False, "dual_clip": None, "recovery": False}
        defaults |= {key: budget.default for key, budget in spec.budgets.items()}
        defaults |= {key: option.default for key, option in spec.options.items()}
        chosen = {k: v for k, v in _flat(values).items() if k not in defaults or v != defaults[k]}
        shown = [f"`{key}` = {_shown(value)}" for key, value in chosen.items() if key != "name"]
        rows.append((f"`{name}`", f"`{values['name']}`", ", ".join(shown)))
    told = "Of `config.gate`, by name; what is not said is as in the tables above."
    return f"## Presets\n\n{told}\n\n{_table(('preset', 'gate', 'values'), rows)}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _flat(values: Any, above: str = "") -> dict[str, Any]:
    """Options by their dotted paths."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "domains" or not hasattr(value, "items") or not value:
            found[above + name] = _plain(value)
        else:
            found |= _flat(value, f"{above}{name}.")
    return found


def _plain(value: Any) -> Any:
    """A value without the config's own types."""
    return value.to_dict() if hasattr(value, "to_dict") else value


def _shown(value: Any) -> str:
    """A value as Python writes it, strings in double quotes."""
    value = _plain(value)
    if isinstance(value, Mapping):
        return ", ".join(f"`{name}`" for name in value) if value else "`{}`"
    return "`" + repr(value).replace("'", '"') + "`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
