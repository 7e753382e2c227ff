"""Deliberate faults of kept rollouts that make way for newer ones; see `mutants`."""

from faults_of_mathematics import Mutant

KEEPING = "fiberjax/run/keeping.py"
KILLED = (
    "tests/run/test_keeping.py"
    "::test_a_killed_run_ends_with_the_files_of_one_that_nothing_happened_to",
)

FAULTS = (
    Mutant(
        "what makes way is gone before a checkpoint can do without it",
        KEEPING,
        "if old > self._checkpoints[-1]:",
        "if old > 0:",
        KILLED,
    ),
    Mutant(
        "a damaged checkpoint's files are not thought of",
        KEEPING,
        "if not self._wanted.chosen(old, self._checkpoints[0]):",
        "if not self._wanted.chosen(old, self._checkpoints[1]):",
        KILLED,
    ),
    Mutant(
        "a folder that was full once is full",
        KEEPING,
        "for of in there if of not in gone) < self._limit",
        "for of in there if of not in gone) < self._limit and not self.full",
        KILLED,
    ),
)
