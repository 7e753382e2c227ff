"""Every deliberate fault still applies, and a few of them are caught; the rest by command."""

import mutants
import pytest

# Quick ones, of the mathematics, the layout and the wiring.
SAMPLE = ("k3 has the wrong sign of its linear part",)


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.fault)
def test_every_edit_applies_once(mutant):
    assert mutants.edited(mutant, mutants.ROOT)
    for test in mutant.tests:
        file, _, name = test.partition("::")
        text = (mutants.ROOT / file).read_text(encoding="utf-8")
        assert not name or f"def {name.partition('[')[0]}(" in text


def test_faults_have_names_of_their_own():
    names = [mutant.fault for mutant in mutants.MUTANTS]
    assert len(set(names)) == len(names) and set(SAMPLE) <= set(names)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return mutants.copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", SAMPLE)
def test_a_sample_is_caught(tree, fault):
    (mutant,) = (mutant for mutant in mutants.MUTANTS if mutant.fault == fault)
    assert mutants.try_mutant(mutant, tree) == "caught"


@pytest.mark.long
@pytest.mark.slow
def test_a_fault_that_no_test_sees_survives(tree):
    harmless = mutants.MUTANTS[0]._replace(
        old='"""The aggregate gate:', new='"""An aggregate gate:', tests=("tests/test_kl.py",)
    )
    assert mutants.try_mutant(harmless, tree) == "SURVIVED"


def test_an_edit_that_does_not_apply_is_told(tmp_path):
    (tmp_path / "a.py").write_text("one\none\n")
    for old in ("one", "two"):
        with pytest.raises(ValueError, match="expected once"):
            mutants.edited(mutants.Mutant("any", "a.py", old, "three", ()), tmp_path)
