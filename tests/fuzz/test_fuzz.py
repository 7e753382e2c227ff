"""The short form of `python -m tests.fuzz`, and the inputs that it found."""

import os

import numpy as np
import pytest

from . import __main__ as fuzzer
from . import found
from .kinds import KINDS, Kind
from .outcomes import outcome

SHORT = {"config": 150, "gate": 150, "data file": 150, "model folder": 60, "saved config": 40}


@pytest.mark.parametrize("name", SHORT)
def test_mutated_input_is_built_or_refused_clearly(name):
    for number in range(SHORT[name]):
        rng = np.random.default_rng([2026, sorted(KINDS).index(name), number])
        case = KINDS[name].make(rng)
        assert outcome(KINDS[name], case) in ("built", "refused"), ascii(case)[:2000]


@pytest.mark.filterwarnings("ignore:os.fork")
@pytest.mark.parametrize("name", found.FOUND)
def test_what_was_found_stays_mended(name):
    pytest.importorskip("transformers")
    kind, cases = KINDS[name], found.FOUND[name]
    if name == "tokenizer":  # In a process of its own, which some of them would end.
        outcomes = list(fuzzer.tried(kind, cases.__getitem__, len(cases)))
    else:
        outcomes = [outcome(kind, case) for case in cases]
    for case, told in zip(cases, outcomes, strict=True):
        assert told == "refused", ascii(case)[:500]


@pytest.mark.filterwarnings("ignore:os.fork")
def test_what_ends_its_process_is_a_defect_and_the_rest_is_tried():
    def run(case, folder):
        if case == 1:
            os.abort()

    kind = Kind(lambda rng: None, run, lambda folder: ())
    found = list(fuzzer.tried(kind, lambda number: number, 3))
    assert found == ["built", "the interpreter ends, with status -6", "built"]
