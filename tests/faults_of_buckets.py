"""Deliberate faults of what a run leaves in a bucket; see `mutants`."""

from faults_of_mathematics import Mutant

BUCKETS = "fiberjax/buckets.py"
STORAGE = "fiberjax/storage.py"
OBJECT = "fiberjax/run/lock_object.py"
BUILDERS = "fiberjax/tasks/builders.py"
CHECKPOINTS = "fiberjax/run/checkpoints.py"
OF_STORAGE = "tests/test_storage.py"
OF_LOCK = "tests/run/test_lock.py"
WHOLE = "tests/run/test_in_a_bucket.py"

FAULTS = (
    Mutant(
        "a bucket's object is put whatever it has become",
        BUCKETS,
        "if_generation_match=expected, retry",
        "retry",
        (f"{OF_STORAGE}::test_an_object_changes_as_it_was_last_seen_alone",),
    ),
    Mutant(
        "an answer from the bucket that was lost is a defeat",
        BUCKETS,
        "return found.generation if found and found.content == content else None",
        "return None",
        (f"{OF_STORAGE}::test_an_object_changes_as_it_was_last_seen_alone",),
    ),
    Mutant(
        "another scheme than a bucket's is a folder of that name",
        STORAGE,
        "if found and scheme.isalnum():",
        "if not found and scheme is None:",
        (f"{OF_STORAGE}::test_what_is_no_place_is_refused_and_no_folder_of_that_name_is_made",),
    ),
    Mutant(
        "what grows in a bucket is put at every flush",
        STORAGE,
        "        if self._whole:\n            return\n",
        "",
        (f"{OF_STORAGE}::test_what_grows_is_put_whole_and_only_now_and_then",),
    ),
    Mutant(
        "what grows in a bucket is put over another run's",
        STORAGE,
        "bytes(self._content), expected=self._generation)",
        "bytes(self._content))",
        (f"{OF_STORAGE}::test_what_grows_is_not_put_over_what_another_program_has_written",),
    ),
    Mutant(
        "a copy of a bucket's folder is one whatever has changed there",
        STORAGE,
        "of.size, of.crc32c) for path, of",
        "0, 0) for path, of",
        (f"{OF_STORAGE}::test_local_copies_are_made_once_and_anew_where_the_bucket_changed",),
    ),
    Mutant(
        "sizes alone are compared in a bucket",
        "fiberjax/digests.py",
        "(_CRC + there[name].crc32c if crc else of_file(folder / name)) != digest",
        "(digest if crc else of_file(folder / name)) != digest",
        (f"{OF_STORAGE}::test_digests_of_a_bucket_are_its_own_checksums",),
    ),
    Mutant(
        "a late heartbeat in a bucket takes a lock back",
        OBJECT,
        "buckets.put(self._path, content, expected=self._generation)",
        "buckets.put(self._path, content)",
        (f"{OF_LOCK}::test_in_a_bucket_a_still_heart_is_taken_over_and_its_owner_stops",),
    ),
    Mutant(
        "a lock in a bucket is made over another",
        OBJECT,
        "buckets.put(path, content, expected=buckets.ABSENT)",
        "buckets.put(path, content)",
        (f"{OF_LOCK}::test_in_a_bucket_one_holds_it_beats_and_leaves_nothing",),
    ),
    Mutant(
        "a data set that was damaged in a bucket stays so",
        BUILDERS,
        "        if not sound:\n            for name in found:",
        "        if not found:\n            for name in found:",
        (f"{WHOLE}::test_a_damaged_data_set_is_built_anew_in_its_bucket",),
    ),
    Mutant(
        "a second warm start in a bucket takes the first one's name",
        CHECKPOINTS,
        "folder.name.encode(), expected=buckets.ABSENT)",
        "folder.name.encode())",
        (f"{WHOLE}::test_of_two_that_save_the_same_one_is_kept_and_it_can_be_made_anew",),
    ),
    Mutant(
        "metrics begin anew at every start there",
        "fiberjax/run/writers.py",
        'before = path.read_bytes() if resume_step is not None and path.exists() else b""',
        'before = b""',
        (f"{WHOLE}::test_a_run_in_a_bucket_that_is_killed_ends_as_one_on_a_disk",),
    ),
    Mutant(
        "a lock waits by the time of day",
        "fiberjax/run/lock.py",
        "until = time.monotonic() + STALE_SECONDS\n    while time.monotonic() < until:",
        "until = time.time() + STALE_SECONDS\n    while time.time() < until:",
        (f"{OF_LOCK}::test_a_clock_that_jumps_by_a_day_neither_frees_nor_holds_a_folder",),
    ),
    Mutant(
        "the share of one device is looked at",
        "fiberjax/train/update.py",
        'flags["state"] = finite(new)',
        'flags["state"] = finite([x[:1] for x in jax.tree.leaves(new) if x.ndim])',
        ("tests/parallel/test_mesh.py::test_a_state_that_is_lost_on_one_device_is_told_of",),
    ),
)
