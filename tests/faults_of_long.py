"""Deliberate faults of rows whose columns lie on several devices; see `mutants`."""

from faults_of_mathematics import Mutant

APART = "fiberjax/policy/apart.py"
FORWARD = "fiberjax/train/forward.py"
SEQUENCE = "tests/parallel/test_columns.py"

FAULTS = (
    Mutant(
        "columns apart: the last device computes most",
        APART,
        "low, high = device, 2 * parts - 1 - device",
        "low, high = 2 * device, 2 * device + 1",
        (f"{SEQUENCE}::test_every_piece_has_a_device_and_devices_compute_alike",),
    ),
    Mutant(
        "columns apart: padding between them is seen",
        APART,
        "constant_values=-1",
        "constant_values=0",
        (f"{SEQUENCE}::test_kernel_of_columns_apart_is_dense",),
    ),
    Mutant(
        "columns apart: a window counts padding",
        APART,
        "if window is not None and padded(piece) != piece:",
        "if False:",
        (f"{SEQUENCE}::test_a_window_counts_no_padding",),
    ),
    Mutant(
        "columns apart: a token is scored by what follows it",
        FORWARD,
        "jnp.roll(tokens, -1, 1)",
        "tokens",
        (f"{SEQUENCE}::test_scores_are_those_of_one_device",),
    ),
    Mutant(
        "columns apart: every device samples the rows of all",
        "fiberjax/experiment.py",
        "mesh=mesh.folded(self.sampling_mesh)",
        "mesh=self.sampling_mesh",
        (f"{SEQUENCE}::test_sampling_splits_rows_instead",),
    ),
    Mutant(
        "columns apart: those that do not divide are taken",
        "fiberjax/train/checks.py",
        "if columns % (2 * parts):",
        "if False:",
        (f"{SEQUENCE}::test_what_does_not_divide_is_refused",),
    ),
    Mutant(
        "plans count all that hosts are sent as sent between slices",
        "fiberjax/plans/costs.py",
        ' and "xla_megascale_runtime" in instruction.attributes',
        "",
        ("tests/plans/test_costs.py::test_what_goes_from_slice_to_slice_is_what_hosts_send",),
    ),
    Mutant(
        "columns apart: plans count all blocks of keys for some queries",
        "fiberjax/plans/costs.py",
        "width = blocks if width * keys == blocks * columns else width",
        "pass",
        ("tests/plans/test_costs.py::test_kernels_of_some_queries_count_their_share",),
    ),
)
