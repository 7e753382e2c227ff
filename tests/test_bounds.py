"""Every option of every section, against what none can be: refused by its path, or harmless."""

import dataclasses
import math
import typing

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import quickstart
from fiberjax import bounds, gates, options
from fiberjax.bounds import Length, Range
from fiberjax.experiment import SECTIONS
from fiberjax.gates import GATES
from fiberjax.tasks import FAMILIES
from fiberjax.tasks.families import make_family

CONFIG = quickstart.get_config()
NO_FLOAT = (math.nan, math.inf, -math.inf, 1e39, -1e300, True, "", None, (), {}, "0.1", 10**400)
NO_INT = (math.nan, 1.0, True, "", None, (), {}, 2**31, -(2**31) - 1, 10**400)
NO_TEXT = (math.nan, 1, True, None, {}, "\ud800", "a\0b")
NO_BOOL = (math.nan, 0, 1, "", "True", None)
NESTED = (math.nan, math.inf, 1e39, 2**31, "\ud800", ((math.nan,),), {"a": {"b": math.inf}})


def section(name):
    found = CONFIG[name].to_dict()
    if name == "policy":
        found["vocab_size"] = 8
    return found


def fields():
    """Name of a section, field, and its type without bounds; all there are."""
    for name, kind in SECTIONS.items():
        for field in dataclasses.fields(kind):
            yield name, field, bounds.base_type(field.type)


def parsed(name, field, value):
    given = section(name) | {field: value}
    return getattr(options.parse(SECTIONS[name], ConfigDict(given), f"config.{name}"), field)


def test_the_sections_are_all_there_are():
    assert set(SECTIONS) == {name for name, of in CONFIG.items() if hasattr(of, "items")} - {"gate"}


@pytest.mark.parametrize("kind", [float, int, str, bool])
def test_what_no_option_of_a_type_can_be_is_refused_by_its_path(kind):
    bad = {float: NO_FLOAT, int: NO_INT, str: NO_TEXT, bool: NO_BOOL}[kind]
    tried = [(name, field) for name, field, of in fields() if of is kind]
    assert len(tried) >= 8
    for name, field in tried:
        for value in bad:
            with pytest.raises(ValueError, match=rf"config\.{name}[.: ]+{field.name}\b") as error:
                parsed(name, field.name, value)
            assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_numbers_stay_in_their_bounds_after_the_cast():
    """On either side of each end of each interval, and just beside it as float32."""
    tried = 0
    for name, field, kind in fields():
        for bound in typing.get_args(field.type)[1:]:
            if not isinstance(bound, Range):
                continue
            low, high = (float(end) for end in bound.interval[1:-1].split(", "))
            for end in (low, high):
                if not math.isfinite(end):
                    continue
                near = [end, end - 1, end + 1]
                near += [end + 1e-46, end - 1e-46, end * (1 - 1e-12)] if kind is float else []
                for value in near:
                    value = kind(value)
                    tried += 1
                    within = bound.refusal("x", value) is None
                    as_cast = float(np.float32(value)) if kind is float else value
                    assert within == (
                        (low < as_cast or (low == as_cast and bound.interval[0] == "["))
                        and (as_cast < high or (as_cast == high and bound.interval[-1] == "]"))
                    )
                    if not within:
                        with pytest.raises(ValueError, match=rf"config\.{name}: {field.name} must"):
                            parsed(name, field.name, value)
    assert tried > 100


def test_what_stands_in_tuples_and_sections_is_finite_too():
    for name, field, kind in fields():
        if kind is typing.Mapping or kind is options.Mapping:
            for value in NESTED:
                with pytest.raises(ValueError, match=rf"config\.{name}.*{field.name}"):
                    parsed(name, field.name, {"a": value})
        if kind is tuple:
            for value in NESTED:
                with pytest.raises(ValueError, match=rf"config\.{name}.*{field.name}"):
                    parsed(name, field.name, (value,))


@pytest.mark.parametrize("name", sorted(GATES))
def test_budgets_are_finite_and_above_0_once_they_are_cast(name):
    spec = GATES[name]
    for key, budget in spec.budgets.items():
        for value in (1e-50, 1e39, 0.0, -1.0, math.nan, math.inf, True, "1", 10**400, [0.1]):
            config = {"name": name, key: value}
            if key == "budgets":
                level = {"budget": value if value != [0.1] else (0.1, math.nan)}
                config = {"name": name, "order": ("group",), "levels": {"group": level}}
            with pytest.raises(ValueError, match=r"config\.gate\.") as error:
                gates.from_config(config, ("trajectory", "group"))
            assert (key if key != "budgets" else "group") in str(error.value)
        assert budget.unit


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_knobs_of_families_have_bounds(name):
    for field in dataclasses.fields(FAMILIES[name]):
        kind = bounds.base_type(field.type)
        bad = {int: (0, -1, 2**31, True, 1.0), float: (math.nan, 1.1, -0.1, 1), str: ("", 1, None)}
        for value in bad.get(kind, ((), (-3,), (True,), (3, math.nan), 3)):
            with pytest.raises(ValueError, match=rf"{field.name}"):
                make_family(name, {field.name: value})


def test_what_is_refused_is_shown_in_short_and_on_one_line():
    assert bounds.shown(10**400) == "a number of 1329 bits"
    assert bounds.shown("a\nb" * 90).count("\n") == 0 and len(bounds.shown("a" * 5000)) == 80
    with pytest.raises(ValueError, match=r"^config\.x: a b$"), bounds.named("config.x"):
        raise ValueError("a\nb")
    with pytest.raises(ValueError) as error, bounds.named("config.x"):
        raise ValueError("config.y " + "a" * 9000)
    assert len(str(error.value)) < 2100 and str(error.value).startswith("config.y ")
    assert Length(1, 2).refusal("name", "") == "name must be not empty; got ''"
    assert "1 to 2 characters" in Length(1, 2).refusal("name", "abc")


def test_sections_within_each_other_end_somewhere():
    deep: dict = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="at most 32 sections deep"):
        bounds.check_sound(deep, "config.x")
