"""Deliberate faults of how a run starts; see `mutants.py`."""

from faults_of_mathematics import Mutant

KEPT = "fiberjax/parallel/compiled.py"
TESTS = "tests/parallel/test_compiled.py"

FAULTS = (
    Mutant(
        "a folder that jax was told is not obeyed",
        KEPT,
        'jax.config.values["jax_compilation_cache_dir"] is not None or ',
        "",
        (f"{TESTS}::test_who_tells_jax_a_folder_or_none_is_obeyed",),
    ),
    Mutant(
        "several processes keep programs where each is alone",
        KEPT,
        " or jax.process_count() > 1",
        "",
        (f"{TESTS}::test_several_processes_keep_nothing_by_themselves",),
    ),
    Mutant(
        "a cache that cannot be written ends the run",
        KEPT,
        "except (OSError, RuntimeError):",
        "except RuntimeError:",
        (
            f"{TESTS}::test_a_cache_that_cannot_be_written_is_passed_over",
            f"{TESTS}::test_a_full_disk_keeps_nothing",
        ),
    ),
    Mutant(
        "programs of another user are executed",
        KEPT,
        "folder.stat().st_uid != os.getuid()",
        "False",
        (f"{TESTS}::test_what_others_own_is_not_executed",),
    ),
    Mutant(
        "programs pile up",
        KEPT,
        "path.unlink()",
        "pass",
        (f"{TESTS}::test_what_was_not_read_for_long_is_removed",),
    ),
)
