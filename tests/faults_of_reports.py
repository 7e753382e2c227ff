"""Deliberate faults of reports, and of looking at what a gate did; see `mutants.py`."""

from faults_of_mathematics import Mutant

REPORT = "tests/analysis/test_report.py"
WARNINGS = "tests/analysis/test_warnings.py"
TRAINER = "tests/run/test_trainer.py"

FAULTS = (
    Mutant(
        "what a model wrote is markup of the page",
        "fiberjax/analysis/markup.py",
        "html.escape(visible(str(part)))",
        "str(part)",
        (f"{REPORT}::test_a_page_stands_for_itself_and_obeys_nothing",),
    ),
    Mutant(
        "runs of two seeds are two lines",
        "fiberjax/analysis/runs.py",
        'SAME = ("seed", ',
        "SAME = (",
        (f"{REPORT}::test_runs_that_differ_in_their_seed_alone_are_one_line",),
    ),
    Mutant(
        "a run without an evaluation has no page",
        "fiberjax/analysis/runs.py",
        'missing.append(f"no {file.name}: held-out prompts are evaluated when a run ends")\n'
        "        return None",
        'raise ValueError(f"no {file.name}")',
        (f"{REPORT}::test_what_is_missing_is_said_and_the_rest_shown",),
    ),
    Mutant(
        "budgets that were widened are held against drift as they were set",
        "fiberjax/analysis/warnings.py",
        "limits = limit * _factor(columns, step)",
        "limits = limit * np.ones(len(step))",
        (f"{WARNINGS}::test_a_warning_is_given_where_it_is_deserved_and_nowhere_else",),
    ),
    Mutant(
        "downward drift is held against the upward budget",
        "fiberjax/analysis/warnings.py",
        "(float(pair[0]), float(pair[-1]))",
        "(float(pair[0]), float(pair[0]))",
        (f"{WARNINGS}::test_downward_drift_has_a_budget_of_its_own",),
    ),
    Mutant(
        "a drift that no budget bounds is warned about",
        "fiberjax/analysis/warnings.py",
        'f"gate/held/{level}/{sign}"',
        'f"gate/channel/{level}/{sign}"',
        (f"{WARNINGS}::test_a_warning_is_given_where_it_is_deserved_and_nowhere_else",),
    ),
    Mutant(
        "every iteration is looked at",
        "fiberjax/run/trainer.py",
        "due = looking.due(iteration + 1) or (keeping and looking.every > 0)",
        "due = looking.every > 0",
        (f"{TRAINER}::test_the_cadence_of_diagnostics_changes_nothing_of_the_training",),
    ),
    Mutant(
        "padding is looked at",
        "fiberjax/train/diagnose.py",
        "jnp.where(layout.mask, x, 0) for x in (log_prob,",
        "x for x in (log_prob,",
        ("tests/train/test_diagnose.py::test_an_update_is_told_as_diagnostics_tell_its_tokens",),
    ),
)
