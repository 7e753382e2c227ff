"""Deliberate faults of what tries faults, and of what it found; see `mutants.py`."""

from faults_of_mathematics import Mutant

FUZZ = "tests/fuzz/test_fuzz.py"
CAMPAIGN = "tests/faults/test_faults.py"

SERVED = "tests/run/test_served.py::test_what_is_done_is_saved_where_the_server_stops_answering"
CHECKPOINTS = "fiberjax/run/checkpoints.py"

FAULTS = (
    Mutant(
        "what describes a checkpoint is read before its digests are compared",
        CHECKPOINTS,
        "preservation_policy=self._policy, lightweight_initialize=True",
        "preservation_policy=self._policy",
        (f"{FUZZ}::test_what_was_found_stays_mended[written checkpoint]",),
    ),
    Mutant(
        "what a library makes of damage that no digest shows is raised as it is",
        CHECKPOINTS,
        "except Exception as error:  # Of a file",
        "except FileNotFoundError as error:  # Of a file",
        (f"{FUZZ}::test_what_was_found_stays_mended[written checkpoint]",),
    ),
    Mutant(
        "an added token hides the id that the vocabulary gives it",
        "fiberjax/tasks/published.py",
        "    for token, number in found:",
        "    for token, number in dict(found).items():",
        (f"{FUZZ}::test_what_was_found_stays_mended[tokenizer]",),
    ),
    Mutant(
        "the fuzzer begins again where an input ended its process",
        "tests/fuzz/__main__.py",
        "for each in range(number, count):",
        "for each in range(count):",
        (f"{FUZZ}::test_what_ends_its_process_is_a_defect_and_the_rest_is_tried",),
    ),
    Mutant(
        "a run that a signal ends in the middle has ended well",
        "tests/faults/campaign.py",
        "(-signal.SIGTERM, -signal.SIGINT) and (over or not begun)",
        "(-signal.SIGTERM, -signal.SIGINT)",
        (f"{CAMPAIGN}::test_a_signal_that_ends_it_in_the_middle_is_no_end",),
    ),
    Mutant(
        "a process is done with before it has used its time",
        "tests/faults/campaign.py",
        "while process.poll() is None and found < seconds:",
        "while process.poll() is None and found < 0:",
        (f"{CAMPAIGN}::test_a_signal_that_ends_it_in_the_middle_is_no_end",),
    ),
    Mutant(
        "a server that stops answering takes the iterations since the last checkpoint along",
        "fiberjax/run/loop.py",
        "except ServerError as error:\n                    interrupts.rescue()",
        "except ServerError as error:",
        (f"{SERVED}[while drawing]",),
    ),
    Mutant(
        "one that stops during an evaluation takes the iteration before it along",
        "fiberjax/run/loop.py",
        "except ServerError as error:\n"
        "                    save(iteration + 1, begun.to_host(experiment), trainer.ahead)",
        "except ServerError as error:",
        (f"{SERVED}[while evaluating]",),
    ),
    Mutant(
        "a short run that nothing pays ends without a line",
        "fiberjax/run/loop.py",
        "if last and not wrong and (told := unpaid.at_end()):",
        "if last and wrong and (told := unpaid.at_end()):",
        (
            "tests/run/test_unpaid.py::test_a_run_that_is_over_before_it_would_stop_says_what_it_saw",
        ),
    ),
)
