"""Deliberate faults of rewards, their workers and what becomes of them; see `mutants.py`."""

from faults_of_mathematics import Mutant

WORKER = "fiberjax/tasks/rewards/worker.py"
WORKERS = "fiberjax/tasks/rewards/workers.py"
SYMBOLIC = "fiberjax/tasks/rewards/symbolic.py"
OF_WORKERS = "tests/tasks/test_workers.py"
OF_REWARDS = "tests/tasks/test_rewards.py"
OF_GOLDS = "tests/tasks/test_golds.py"
OF_CREDIT = "tests/run/test_credit.py"
REFUSED = "test_a_domain_of_answers_in_another_form_is_refused_with_counts_and_the_first_row"
WRONG = f"{OF_WORKERS}::test_what_a_reward_does_wrong_is_one_failure"

FAULTS = (
    Mutant(
        "a worker's memory has no limit",
        WORKER,
        "    limit_memory(order.megabytes)\n",
        "",
        (WRONG,),
    ),
    Mutant(
        "a worker outlives the run",
        WORKER,
        "    end_with(order.parent)\n",
        "",
        (f"{OF_WORKERS}::test_no_worker_outlives_a_run_that_is_killed",),
    ),
    Mutant(
        "a function that leaves ends its worker",
        WORKER,
        "    except BaseException as error:  # SystemExit too: it is the function's.",
        "    except Exception as error:",
        (WRONG,),
    ),
    Mutant(
        "one that sleeps is waited for",
        WORKERS,
        "elif not worker.idle and time.monotonic() >= worker.deadline:",
        "elif False:",
        (f"{OF_WORKERS}::test_one_that_sleeps_is_killed",),
    ),
    Mutant(
        "workers that were ended are kept",
        WORKERS,
        "            self._workers.remove(worker)\n",
        "",
        (WRONG,),
    ),
    Mutant(
        "answers of workers are taken in the order that they come",
        WORKERS,
        "for index, value in zip(jobs[job], found, strict=True):",
        "for index, value in zip([values.index(None)], found, strict=True):",
        (
            f"{OF_WORKERS}::test_rows_and_lists_reach_a_function_that_takes_them",
            f"{OF_WORKERS}::test_work_is_shared_and_stays_in_order",
        ),
    ),
    Mutant(
        "rows do not reach a worker",
        WORKERS,
        'row=dict(case.row) if self._form["row"] else {}',
        "row={}",
        (f"{OF_WORKERS}::test_rows_and_lists_reach_a_function_that_takes_them",),
    ),
    Mutant(
        "a term that failed leaves the rest of a sum",
        "fiberjax/tasks/rewards/combined.py",
        "if isinstance(value, Failed | str) or value is None:\n            return value",
        "if isinstance(value, Failed | str) or value is None:\n            return 0.5",
        (f"{OF_WORKERS}::test_failures_are_counted_and_pay_nothing",),
    ),
    Mutant(
        "arithmetic that is not done is an answer",
        SYMBOLIC,
        "if number_of(answer) is not None:",
        "if False:",
        (f"{OF_REWARDS}::test_where_the_answer_is_a_number_math_is_number",),
    ),
    Mutant(
        "the prompt's own expression is an answer",
        SYMBOLIC,
        " or repeats(prompt, found)",
        "",
        (f"{OF_REWARDS}::test_a_prompt_said_again_is_no_answer",),
    ),
    Mutant(
        "an answer that is left open is one",
        SYMBOLIC,
        "if hedges(found) - hedges(expected) or",
        "if",
        (f"{OF_REWARDS}::test_near_misses_of_expressions_are_not_paid",),
    ),
    Mutant(
        "letters are factors",
        SYMBOLIC,
        "if is_text(expected):",
        "if False:",
        (f"{OF_REWARDS}::test_near_misses_of_expressions_are_not_paid",),
    ),
    Mutant(
        "a pair is a set",
        SYMBOLIC,
        "if len(kinds) == 2:",
        "if False:",
        (f"{OF_REWARDS}::test_near_misses_of_expressions_are_not_paid",),
    ),
    Mutant(
        "an inequality to be solved is an interval",
        SYMBOLIC,
        "all(map(_solved, of.atoms(sympy.Rel)))",
        "True",
        (f"{OF_REWARDS}::test_near_misses_of_expressions_are_not_paid",),
    ),
    Mutant(
        "what comes out endless is compared",
        SYMBOLIC,
        "_constant(part) and part.evalf().has(*limits)",
        "False",
        (f"{OF_REWARDS}::test_near_misses_of_expressions_are_not_paid",),
    ),
    Mutant(
        "a part of a completion matches a pattern",
        "fiberjax/tasks/rewards/patterns.py",
        r'rf"\A(?s:{pattern})\z"',
        'rf"(?s:{pattern})"',
        (f"{OF_REWARDS}::test_a_pattern_is_of_the_whole_completion",),
    ),
    Mutant(
        "golds in another form go by",
        "fiberjax/tasks/golds.py",
        "if refuse and 2 * len(unpaid) > len(rows):",
        "if False:",
        (f"{OF_GOLDS}::{REFUSED}",),
    ),
    Mutant(
        "every gold is asked of a verifier in workers",
        "fiberjax/tasks/golds.py",
        "if apart and size > SAMPLE:",
        "if False:",
        (f"{OF_GOLDS}::test_of_a_verifier_in_workers_a_sample_is_looked_at",),
    ),
    Mutant(
        "cut answers that are left out are in the loss",
        "fiberjax/run/trainer.py",
        'if self.experiment.rewards.truncated == "mask":',
        "if False:",
        (f"{OF_CREDIT}::test_cut_completions_count_in_the_updates_as_asked",),
    ),
    Mutant(
        "advantages are of the verifiers' rewards",
        "fiberjax/run/trainer.py",
        "rollouts, credited, present = drawn[0], paid.credit, paid.counted",
        "rollouts, credited, present = drawn[0], paid.reward, paid.counted",
        (f"{OF_CREDIT}::test_long_completions_cost_in_advantages_alone",),
    ),
    Mutant(
        "answers that are left out make a group's spread",
        "fiberjax/train/resample.py",
        "np.where(counted, rewards, of)",
        "np.where(True, rewards, of)",
        (f"{OF_CREDIT}::test_groups_differ_by_the_completions_that_count",),
    ),
    Mutant(
        "a first completion is markup",
        "fiberjax/run/shown.py",
        "cells = (Text(_encodable(visible(text), console)) for text in texts)",
        "cells = iter(texts)",
        (f"{OF_CREDIT}::test_first_answers_are_shown_a_line_each_and_nothing_is_obeyed",),
    ),
)
