"""Deliberate faults of the schedules of passes, and of packed rows; see `mutants.py`."""

from faults_of_mathematics import Mutant

PASSES = "tests/train/test_passes.py"
PACKING = "tests/train/test_packing.py"
SAME = (f"{PASSES}::test_every_schedule_gives_the_same_gradient",)
CELLS = (
    "tests/gates/test_contract.py::"
    "test_tokens_outside_the_cells_that_a_gate_names_change_nothing_within"
)

FAULTS = (
    Mutant(
        "a domain gate is taken for a group gate",
        "fiberjax/train/passes.py",
        "if whole and cell in (groups.level, STATE) and cell is not None:",
        "if whole and cell is not None:",
        SAME,
    ),
    Mutant(
        "groups are parted for a group gate",
        "fiberjax/train/passes.py",
        "return Split(parts, groups.rows, True)",
        "return Split(parts, 1, True)",
        SAME,
    ),
    Mutant(
        "groups are whole on all devices together",
        "fiberjax/train/passes.py",
        "rows % (shards * parts * groups.rows) == 0",
        "rows % (parts * groups.rows) == 0",
        (f"{PASSES}::test_a_group_gate_needs_whole_groups_on_every_device",),
    ),
    Mutant(
        "the finest level that a gate names is what it couples",
        "fiberjax/gates/config.py",
        'return max((*budgets["budgets"], *weighed), key=layout.index)',
        'return min((*budgets["budgets"], *weighed), key=layout.index)',
        (CELLS, *SAME),
    ),
    Mutant(
        "a micro-batch takes another one's gradient",
        "fiberjax/train/passes.py",
        "return jax.tree.map(lambda x: x[index], known)",
        "return jax.tree.map(lambda x: x[-1 - index], known)",
        SAME,
    ),
    Mutant(
        "every update is at zero drift",
        "fiberjax/train/passes.py",
        "first = jax.lax.cond(fresh, lambda: old, first_pass)",
        "first = old",
        SAME,
    ),
    Mutant(
        "an earlier policy's rollouts are fresh",
        "fiberjax/run/trainer.py",
        "fresh = fresh and self.experiment.training.scored",
        "fresh = self.experiment.training.scored",
        (
            "tests/run/test_trainer.py::"
            "test_the_first_update_alone_is_at_the_policy_that_was_scored",
        ),
    ),
    Mutant(
        "the sampler's log-probabilities are the trainer's",
        "fiberjax/run/trainer.py",
        "fresh = fresh and self.experiment.training.scored",
        "fresh = bool(fresh)",
        (
            "tests/run/test_trainer.py::"
            "test_the_first_update_alone_is_at_the_policy_that_was_scored",
        ),
    ),
    Mutant(
        "a packed completion is predicted from itself",
        "fiberjax/train/forward.py",
        "jnp.take_along_axis(hidden, columns[..., None] - 1, axis=1)",
        "jnp.take_along_axis(hidden, columns[..., None], axis=1)",
        (f"{PACKING}::test_packed_equals_unpacked",),
    ),
    Mutant(
        "a packed row takes as many completions as tokens",
        "fiberjax/train/packing.py",
        "taken + length <= width and said + completion <= window",
        "taken + length <= width",
        (f"{PACKING}::test_completions_are_named_where_that_takes_no_more_rows",),
    ),
    Mutant(
        "packed scores come back in another order",
        "fiberjax/train/packing.py",
        "values[self.source[said], completion] = packed[self.row[said], targets]",
        "values[self.source[said], completion] = np.sort(packed[self.row[said], targets])",
        (f"{PACKING}::test_packed_rows_are_scored_alike",),
    ),
)
