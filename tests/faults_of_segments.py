"""Deliberate faults of how sums and tables move over many tokens; see `mutants.py`."""

from faults_of_mathematics import Mutant

SEGMENTS = "tests/test_segments.py"
_ROWS = (f"{SEGMENTS}::test_rows_are_summed_as_one_by_one",)
_LAYOUTS = (f"{SEGMENTS}::test_a_batch_of_many_tokens_has_one_gradient_in_every_layout",)

FAULTS = (
    Mutant(
        "what is left of a row beside its lanes is not summed",
        "fiberjax/segments.py",
        "    if whole < length:",
        "    if whole > length:",
        _ROWS,
    ),
    Mutant(
        "the tangents of rows are their values",
        "fiberjax/segments.py",
        "return _row_sums(*primals), _row_sums_alone(*tangents)",
        "return _row_sums(*primals), _row_sums_alone(*primals)",
        _ROWS,
    ),
    Mutant(
        "a compared sum lets a NaN reach every segment",
        "fiberjax/segments.py",
        "jnp.sum(jnp.where(mine, values, 0), axis=1, dtype=values.dtype)",
        "jnp.sum(jnp.where(mine, values, values - values), axis=1, dtype=values.dtype)",
        (f"{SEGMENTS}::test_what_is_not_finite_stays_in_its_segment",),
    ),
    Mutant(
        "a block's tokens read the class of its first",
        "fiberjax/segments.py",
        "widen(ids, classes.shape) * num_classes + classes)",
        "widen(ids, classes.shape) * num_classes + 0 * classes)",
        _LAYOUTS,
    ),
)
