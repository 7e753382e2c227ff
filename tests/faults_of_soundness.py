"""Deliberate faults of what must never be fooled: numbers, options, files; see `mutants.py`."""

from faults_of_mathematics import Mutant

NONFINITE = "tests/run/test_nonfinite.py"
ONE = (f"{NONFINITE}::test_an_update_that_is_not_finite_is_as_if_it_were_not",)
LOST = (f"{NONFINITE}::test_a_state_that_is_lost_ends_the_run_and_is_not_saved",)
ROW = (f"{NONFINITE}::test_five_in_a_row_are_counted_over_iterations_and_kills",)
BOUNDS = "tests/test_bounds.py"
FOUND = "tests/fuzz/test_fuzz.py::test_what_was_found_stays_mended"

FAULTS = (
    Mutant(
        "an update that is not finite is made",
        "fiberjax/train/update.py",
        "new = choose(made, TrainState(params, opt_state, state.step + 1), state)",
        "new = TrainState(params, opt_state, state.step + 1)",
        ONE,
    ),
    Mutant(
        "a gradient that is not finite is not looked at",
        "fiberjax/train/update.py",
        'finite(metrics["actor/grad_norm"].value)',
        "finite(1.0)",
        ONE,
    ),
    Mutant(
        "a state that is lost is not looked at",
        "fiberjax/train/update.py",
        'flags["state"] = finite(new)',
        'flags["state"] = finite(new.step)',
        LOST,
    ),
    Mutant(
        "a run goes on with a state that is lost",
        "fiberjax/run/nonfinite.py",
        'if "state" in made.terms:',
        'if "states" in made.terms:',
        LOST,
    ),
    Mutant(
        "new moments stand beside the old ones until they are known to be finite",
        "fiberjax/train/update.py",
        "new = choose(made, TrainState(params, opt_state, state.step + 1), state)",
        "new = TrainState(params, opt_state, state.step + 1)\n"
        "        new = choose(made & finite(new), new, state)",
        ("tests/train/test_update.py::test_the_new_state_is_written_where_the_old_one_stands",),
    ),
    Mutant(
        "the infinite are finite",
        "fiberjax/finite.py",
        "jnp.isfinite(leaf).all()",
        "~jnp.isnan(leaf).any()",
        ("tests/test_finite.py",),
    ),
    Mutant(
        "updates that were left out are in the means",
        "fiberjax/run/trainer.py",
        "scalars = joined([step for step, of in zip(read, terms, strict=True) if not of])",
        "scalars = joined(read)",
        ONE,
    ),
    Mutant(
        "the prompts kept are those of another batch",
        "fiberjax/run/trainer.py",
        "collected.prompts[j],",
        "collected.prompts[0],",
        ONE,
    ),
    Mutant(
        "updates in a row are forgotten where the run goes on",
        "fiberjax/run/nonfinite.py",
        "self._in_a_row = found if found < MOST else 0",
        "self._in_a_row = 0",
        ROW,
    ),
    Mutant(
        "updates are counted, in a row or not",
        "fiberjax/run/nonfinite.py",
        "self._in_a_row = self._in_a_row + 1 if made.terms else 0",
        "self._in_a_row += bool(made.terms)",
        ROW,
    ),
    Mutant(
        "a checkpoint that is not finite is gone on from",
        "fiberjax/run/loop.py",
        "broken = not_finite(experiment.mesh, found.state)",
        "broken = []",
        (f"{NONFINITE}::test_a_checkpoint_that_is_not_finite_is_refused",),
    ),
    Mutant(
        "numbers are taken as they are written, not as they are computed with",
        "fiberjax/bounds.py",
        "number = as_float32(value) if isinstance(value, float) else value",
        "number = value",
        (f"{BOUNDS}::test_numbers_stay_in_their_bounds_after_the_cast",),
    ),
    Mutant(
        "what stands in a tuple may be anything",
        "fiberjax/bounds.py",
        "for index, each in enumerate(value):",
        "for index, each in enumerate(()):",
        (f"{BOUNDS}::test_what_stands_in_tuples_and_sections_is_finite_too",),
    ),
    Mutant(
        "a budget that vanishes in float32 is one",
        "fiberjax/gates/config.py",
        "if not 0 < as_float32(value) < math.inf:",
        "if not 0 < value < math.inf:",
        (f"{BOUNDS}::test_budgets_are_finite_and_above_0_once_they_are_cast[ppo]",),
    ),
    Mutant(
        "an expression that reaches no target is drawn for ever",
        "fiberjax/tasks/countdown.py",
        "for _ in range(_MOST_DRAWS):",
        "while True:",
        (f"{FOUND}[config]",),
    ),
    Mutant(
        "two names of a domain are one chart",
        "fiberjax/run/writers.py",
        "if self._tags.setdefault(tag, name) != name:",
        "if False:",
        ("tests/run/test_shown.py::test_a_report_over_domains_of_any_name",),
    ),
)
