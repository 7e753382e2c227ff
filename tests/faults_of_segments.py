"""Deliberate faults of how sums and tables move over many tokens; see `mutants.py`."""

from faults_of_mathematics import Mutant

SEGMENTS = "tests/test_segments.py"
_MODES = (f"{SEGMENTS}::test_sums_and_entries_are_transposes_in_every_mode",)
_DIGITS = (f"{SEGMENTS}::test_digits_are_scatters_and_gathers",)
_ROWS = (f"{SEGMENTS}::test_rows_are_summed_as_one_by_one",)
_LAYOUTS = (f"{SEGMENTS}::test_a_batch_of_many_tokens_has_one_gradient_in_every_layout",)

FAULTS = (
    Mutant(
        "what is left of a row beside its lanes is not summed",
        "fiberjax/segment_forms.py",
        "    if whole < length:",
        "    if whole > length:",
        _ROWS,
    ),
    Mutant(
        "a block's tokens read the class of its first",
        "fiberjax/segments.py",
        "table, classes = spread(table, ids), classes.reshape(*ids.shape, -1)",
        "table, classes = spread(table, ids), 0 * classes.reshape(*ids.shape, -1)",
        _LAYOUTS,
    ),
    Mutant(
        "the last segments have no digits where their number is no square",
        "fiberjax/segment_forms.py",
        "jnp.arange(-(-num_segments // base), dtype=ids.dtype)",
        "jnp.arange(max(1, num_segments // base), dtype=ids.dtype)",
        _DIGITS,
    ),
    Mutant(
        "padding beyond all digits is the last segment",
        "fiberjax/segment_forms.py",
        "first = ids[:, None] // base ==",
        "first = jnp.minimum(ids[:, None], num_segments - 1) // base ==",
        _DIGITS,
    ),
    Mutant(
        "an infinite number meets the zeros of a one-hot matrix",
        "fiberjax/segment_forms.py",
        "    columns = jnp.clip(columns, -LARGEST_NUMBER, LARGEST_NUMBER)\n",
        "",
        (f"{SEGMENTS}::test_digits_hold_what_a_product_would_make_nan",),
    ),
    Mutant(
        "the tangent of a linear map is its value",
        "fiberjax/transposes.py",
        "return value, primitive.bind(tangent, *operands[1:], **static)",
        "return value, primitive.bind(*operands, **static)",
        _MODES,
    ),
    Mutant(
        "of two maps over a batch the inner is taken for the outer",
        "fiberjax/transposes.py",
        "maps=(*maps, (0, *others))",
        "maps=((0, *others), *maps)",
        (f"{SEGMENTS}::test_ids_and_values_go_through_vmap_together_and_apart",),
    ),
    Mutant(
        "a table that all devices have gets the gradient of one",
        "fiberjax/transposes.py",
        "    if not jax.sharding.get_abstract_mesh().manual_axes:\n",
        "    if True:\n",
        (f"{SEGMENTS}::test_a_map_over_shards_keeps_what_varies_apart",),
    ),
    Mutant(
        "a product rounds large integers",
        "fiberjax/segment_forms.py",
        "    if table.dtype == jnp.int32:",
        "    if False:",
        (f"{SEGMENTS}::test_digits_of_integers",),
    ),
    Mutant(
        "rows that fill no lanes are joined",
        "fiberjax/segment_forms.py",
        "    if TPU_LANES % length or size % TPU_LANES:\n        return None\n",
        "",
        (f"{SEGMENTS}::test_rows_that_fill_no_lanes_are_not_joined",),
    ),
    Mutant(
        "a joined row reads the lanes of another",
        "fiberjax/segment_forms.py",
        "jnp.repeat(jnp.eye(TPU_LANES // length, dtype=jnp.float32), length, axis=0)",
        "jnp.tile(jnp.eye(TPU_LANES // length, dtype=jnp.float32), (length, 1))",
        (f"{SEGMENTS}::test_joined_rows_are_rows",),
    ),
    Mutant(
        "an infinite number meets the zeros of joined rows",
        "fiberjax/segment_forms.py",
        "    values = jnp.clip(values, -LARGEST_NUMBER, LARGEST_NUMBER)\n",
        "",
        (f"{SEGMENTS}::test_joined_rows_hold_what_a_product_would_make_nan",),
    ),
    Mutant(
        "a digit has more values than a compiler fuses",
        "fiberjax/segment_forms.py",
        "larger = max(min(bits - 3, 6), (bits + 1) // 2)",
        "larger = max(bits - 3, (bits + 1) // 2)",
        (f"{SEGMENTS}::test_digits_hold_every_id",),
    ),
)
