"""Options: a config is read whole or refused by the path of what is wrong."""

import dataclasses
from collections.abc import Mapping

import pytest
from ml_collections import ConfigDict

from fiberjax import options


@dataclasses.dataclass(frozen=True)
class Section:
    count: int
    rate: float
    on: bool
    name: str
    table: Mapping

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"count must be positive; got {self.count}")


GOOD = {"count": 2, "rate": 0.5, "on": True, "name": "a", "table": {"x": 1}}


@pytest.mark.parametrize("make", [dict, ConfigDict])
def test_a_section_is_read_whole(make):
    assert options.parse(Section, make(GOOD), "config.section") == Section(**GOOD)


def test_a_whole_number_stands_for_a_float():
    rate = options.parse(Section, GOOD | {"rate": 1}, "config.section").rate
    assert rate == 1.0 and type(rate) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuont": 1}, r"config\.section\.cuont does not exist; did you mean 'count'\?"),
        ({"zzz": 1}, r"config\.section\.zzz does not exist; expected count, rate"),
        ({"count": 1.0}, r"config\.section\.count must be int; got 1\.0"),
        ({"count": True}, r"config\.section\.count must be int; got True"),
        ({"count": "1"}, r"config\.section\.count must be int; got '1'"),
        ({"rate": "1"}, r"config\.section\.rate must be float; got '1'"),
        ({"rate": None}, r"config\.section\.rate must be float; got None"),
        ({"on": 1}, r"config\.section\.on must be bool; got 1"),
        ({"name": 1}, r"config\.section\.name must be str; got 1"),
        ({"table": 1}, r"config\.section\.table must be a section; got 1"),
        ({"count": 0}, r"config\.section: count must be positive; got 0"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(change, message):
    with pytest.raises(ValueError, match=message):
        options.parse(Section, GOOD | change, "config.section")


def test_a_missing_key_is_named():
    without = {key: value for key, value in GOOD.items() if key != "rate"}
    with pytest.raises(ValueError, match=r"config\.section\.rate is missing"):
        options.parse(Section, without, "config.section")


def test_a_number_is_no_section():
    with pytest.raises(ValueError, match=r"config\.section must be a section with count"):
        options.parse(Section, 3, "config.section")


def test_given_fields_are_not_read():
    without = {key: value for key, value in GOOD.items() if key != "count"}
    assert options.parse(Section, without, "p", {"count": 5}).count == 5
    with pytest.raises(ValueError, match=r"p\.count does not exist"):
        options.parse(Section, GOOD, "p", {"count": 5})
