"""The short form of `python -m tests.fuzz`, and the inputs that it found."""

import numpy as np
import pytest

from . import found
from .kinds import KINDS
from .outcomes import outcome

SHORT = {"config": 150, "gate": 150, "data file": 150, "model folder": 60, "saved config": 40}


@pytest.mark.parametrize("name", SHORT)
def test_mutated_input_is_built_or_refused_clearly(name):
    for number in range(SHORT[name]):
        rng = np.random.default_rng([2026, sorted(KINDS).index(name), number])
        case = KINDS[name].make(rng)
        assert outcome(KINDS[name], case) in ("built", "refused"), ascii(case)[:2000]


@pytest.mark.parametrize("name", found.FOUND)
def test_what_was_found_stays_mended(name):
    pytest.importorskip("transformers")
    for case in found.FOUND[name]:
        assert outcome(KINDS[name], case) == "refused", ascii(case)[:500]
