"""Deliberate faults of what keeps a run: digests, the lock, signals, inputs; see `mutants`."""

from faults_of_mathematics import Mutant

DIGESTS = "fiberjax/digests.py"
CHECKPOINTS = "fiberjax/run/checkpoints.py"
IDENTITY = "fiberjax/run/identity.py"
INPUTS = "fiberjax/run/inputs.py"
INTERRUPTS = "fiberjax/run/interrupts.py"
KEEPING = "fiberjax/run/keeping.py"
KEPT = "fiberjax/run/kept.py"
KEPT_FILES = "fiberjax/run/kept_files.py"
POLICIES = "fiberjax/run/policies.py"
FOREIGN = "fiberjax/analysis/foreign.py"
LOCK = "fiberjax/run/lock.py"
WRITERS = "fiberjax/run/writers.py"
SCRIPT = "experiments/tpu/setup.sh"
OF_CHECKPOINTS = "tests/run/test_checkpoints.py"
OF_KEEPING = "tests/run/test_keeping.py"
OF_KEPT = "tests/run/test_kept.py"
OF_FOREIGN = "tests/analysis/test_foreign.py"
OF_LOCK = "tests/run/test_lock.py"
OF_INTERRUPTS = "tests/run/test_interrupts.py"
OF_IDENTITY = "tests/run/test_identity.py"

FAULTS = (
    Mutant(
        "sizes alone are compared",
        DIGESTS,
        "if digest != expected[name][1]:",
        "if digest is None:",
        (f"{OF_CHECKPOINTS}::test_a_flipped_bit_in_any_file_gives_the_checkpoint_before",),
    ),
    Mutant(
        "a list of digests is believed as it is",
        DIGESTS,
        "hexdigest().encode() != own:",
        'hexdigest().encode() == b"":',
        (f"{OF_CHECKPOINTS}::test_a_flipped_bit_in_any_file_gives_the_checkpoint_before",),
    ),
    Mutant(
        "a damaged checkpoint stays in the way of the next",
        CHECKPOINTS,
        "                aside(self._directory / str(iteration), beside)",
        "                beside.mkdir(parents=True, exist_ok=True)",
        (f"{OF_CHECKPOINTS}::test_damage_gives_the_checkpoint_before_and_the_run_goes_on",),
    ),
    Mutant(
        "a numbered folder is a process",
        CHECKPOINTS,
        r'r"(?:ocdbt\.)?process_(\d+)"',
        r'r"(?:ocdbt\.)?(?:process_)?(\d+)"',
        (f"{OF_CHECKPOINTS}::test_every_process_answers_for_what_it_wrote",),
    ),
    Mutant(
        "a lock is a process number, whoever has it now",
        LOCK,
        "return _started(owner.pid) == owner.started",
        "return _started(owner.pid) is not None",
        (f"{OF_LOCK}::test_a_process_of_the_same_number_is_another",),
    ),
    Mutant(
        "a lock is removed whosever it is",
        LOCK,
        "if _identity(stale.read_bytes()) != _identity(content):",
        "if not stale.exists():",
        (f"{OF_LOCK}::test_a_lock_that_was_judged_dead_is_not_confused_with_the_one_after",),
    ),
    Mutant(
        "nobody notices that the lock was taken over",
        LOCK,
        "if lock is not None and lock.lost:",
        "if lock is not None and lock is None:",
        (f"{OF_LOCK}::test_who_was_taken_over_stops_before_it_writes",),
    ),
    Mutant(
        "a signal cuts an update short",
        INTERRUPTS,
        "        if not self._holding:\n            raise Interrupted(name)",
        "        if name:\n            raise Interrupted(name)",
        (f"{OF_INTERRUPTS}::test_what_is_held_is_finished",),
    ),
    Mutant(
        "what was there is saved twice",
        INTERRUPTS,
        "rescue, self._rescue = self._rescue, None",
        "rescue = self._rescue",
        (f"{OF_INTERRUPTS}::test_rollouts_are_abandoned_and_what_was_there_is_saved_once",),
    ),
    Mutant(
        "what a callback ignored is lost",
        INTERRUPTS,
        "signal.setitimer(signal.ITIMER_REAL, 0.01)",
        "signal.setitimer(signal.ITIMER_REAL, 0)",
        (f"{OF_INTERRUPTS}::test_one_that_comes_within_a_callback_is_raised_after_it",),
    ),
    Mutant(
        "rows are compared by their size",
        INPUTS,
        'elif there[name]["sha256"] != here[name]["sha256"]:',
        'elif there[name]["bytes"] != here[name]["bytes"]:',
        (f"{OF_IDENTITY}::test_a_large_file_is_read_again_where_size_or_time_is_another",),
    ),
    Mutant(
        "a run is begun anew over the rest of another",
        IDENTITY,
        "if done == 0 and (newest > 0 or gone):",
        "if done == 0 and newest > 0 and gone:",
        (f"{OF_IDENTITY}::test_a_folder_that_lost_something_is_not_begun_anew",),
    ),
    Mutant(
        "starts within a second share an event file",
        WRITERS,
        'f"events.part{number:06d}"',
        '"events.part"',
        ("tests/run/test_writers.py::test_a_killed_writer_has_left_all_up_to_the_flush",),
    ),
    Mutant(
        "hosts that have agreed to end do not wait for each other",
        "fiberjax/parallel/distributed.py",
        "jax.distributed.shutdown()",
        "pass",
        (
            "tests/parallel/test_distributed.py"
            "::test_hosts_that_have_agreed_to_end_wait_for_each_other",
        ),
    ),
    Mutant(
        "a full disk is told as the library tells it",
        "fiberjax/disk.py",
        "_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)",
        "_CODES = (errno.ENOSPC,)",
        ("tests/run/test_disk.py",),
    ),
    Mutant(
        "a value of the launch scripts is a command",
        SCRIPT,
        "$(printf '%q ' \"$(cat",
        "$(printf '%s ' \"$(cat",
        ("tests/test_tpu_scripts.py::test_no_value_is_read_as_a_command",),
    ),
    Mutant(
        "what was left out of the loss is kept as if it counted",
        KEEPING,
        "gathered(drawn.mask) & trained.present[:, None]",
        "gathered(drawn.mask)",
        (f"{OF_KEEPING}::test_a_file_holds_the_batches_that_were_trained_on",),
    ),
    Mutant(
        "kept rows are of the minibatch of their place, not of their group's",
        KEEPING,
        "rows // size % experiment",
        "rows % experiment",
        (f"{OF_KEEPING}::test_a_file_holds_the_batches_that_were_trained_on",),
    ),
    Mutant(
        "a file that is wanted for itself makes way with the last ones",
        KEEPING,
        "0 < old < iteration and not self._wanted.chosen(old, iteration)",
        "0 < old < iteration",
        (f"{OF_KEEPING}::test_a_folder_keeps_what_is_wanted_and_goes_on_from_an_iteration",),
    ),
    Mutant(
        "pages of kept rollouts are believed as they are",
        KEPT_FILES,
        "page_checksum_verification=True",
        "page_checksum_verification=False",
        (f"{OF_KEPT}::test_damage_is_seen_wherever_it_is",),
    ),
    Mutant(
        "what a file of kept rollouts says of itself is believed as it is",
        KEPT_FILES,
        "if found.get(DIGEST) != _digest(found[KEY]):",
        "if DIGEST not in found:",
        (f"{OF_KEPT}::test_damage_is_seen_wherever_it_is",),
    ),
    Mutant(
        "cells need not nest",
        KEPT,
        "wrong = np.flatnonzero(parent[cells] != above)",
        "wrong = np.flatnonzero(above < 0)",
        (
            f"{OF_KEPT}::test_arrays_that_do_not_fit_are_refused_by_their_name",
            f"{OF_KEPT}::test_rows_that_are_none_of_a_run_are_refused_by_the_file",
        ),
    ),
    Mutant(
        "a policy reads kept rows at the places of the file, not of the batch",
        POLICIES,
        "for row, place in enumerate(kept.row):",
        "for place, row in enumerate(range(len(kept.row))):",
        (f"{OF_KEEPING}::test_the_policy_that_drew_them_gives_the_old_log_probs_bitwise",),
    ),
    Mutant(
        "what a tool said counts in a dump",
        FOREIGN,
        'if dump.has("tool_mask"):',
        'if dump.has("tool"):',
        (f"{OF_FOREIGN}::test_a_dump_is_kept_rollouts",),
    ),
)
