"""Deliberate faults of how tokens are drawn, and of what the sampler keeps; see `mutants.py`."""

from faults_of_mathematics import Mutant

DRAWING = "fiberjax/policy/drawing.py"
CACHE = "fiberjax/policy/cache.py"
PLACEMENT = "fiberjax/policy/placement.py"
COSTS = "fiberjax/plans/costs.py"
TRAFFIC = ("tests/plans/test_costs.py::test_traffic_is_of_what_a_fusion_asks_for",)
NUCLEUS = ("tests/policy/test_drawing.py::test_nucleus_without_a_sort_is_that_of_a_sort",)
EDGE = (
    "tests/policy/test_sampler.py::test_the_last_token_that_is_kept_stays_however_a_program_rounds"
)
ROUNDED = "tests/policy/test_cache.py::test_log_probabilities_are_off_by_what_the_cache_rounds"

FAULTS = (
    Mutant(
        "the token that completes a nucleus is left out",
        DRAWING,
        "(order <= furthest) | (z >= edge)",
        "order < furthest",
        NUCLEUS,
    ),
    Mutant(
        "the last token of the likeliest falls where a program rounds twice",
        DRAWING,
        "z >= _below(threshold, sorted_z[:, :1])",
        "z >= threshold",
        (f"{EDGE}[6]",),
    ),
    Mutant(
        "a greedy draw is one of the distribution",
        DRAWING,
        "self.greedy, self._likeliest",
        "False, self._likeliest",
        ("tests/policy/test_sampler.py::test_greedy_takes_the_likeliest",),
    ),
    Mutant(
        "the last bits of a nucleus are not searched",
        DRAWING,
        "lax.fori_loop(0, 31, settle",
        "lax.fori_loop(0, 16, settle",
        NUCLEUS,
    ),
    Mutant(
        "short answers are sampled in one stage",
        DRAWING,
        "_SHORTEST, _LONGEST = 32, 512",
        "_SHORTEST, _LONGEST = 512, 512",
        ("tests/policy/test_sampler.py::test_stages_are_short_enough_and_complete",),
    ),
    Mutant(
        "a column is written with the scales of its layer's first",
        CACHE,
        "start: list[Any] = [layer, 0, 0, column, *[0] * (part.ndim - 4)]",
        "start: list[Any] = [layer, 0, 0, column * (part.ndim > 4), *[0] * (part.ndim - 4)]",
        (f"{ROUNDED}[int8-0.05]",),
    ),
    Mutant(
        "whole numbers are cut, not rounded",
        CACHE,
        "jnp.round(x * per_unit[..., None]).astype",
        "(x * per_unit[..., None]).astype",
        ("tests/policy/test_cache.py::test_a_number_is_off_by_half_a_scale",),
    ),
    Mutant(
        "who reads a layer reads it as it was",
        PLACEMENT,
        "(layer, *[0] * (table.ndim - 1))), merged[0]",
        "(layer, *[0] * (table.ndim - 1))), _first(table, layer, columns)[0]",
        ("tests/policy/test_slots.py::test_a_column_is_written_by_scatter_as_by_selection",),
    ),
    Mutant(
        "a copy inside a fusion reads all of a cache",
        COSTS,
        'elif user.opcode in ("bitcast", "copy"):',
        'elif user.opcode == "bitcast":',
        TRAFFIC,
    ),
    Mutant(
        "a result that another fusion reads counts as never read",
        COSTS,
        "total += _read_bytes(module, inside, parameter, passed)",
        "total += _read_bytes(module, inside, parameter, 0)",
        TRAFFIC,
    ),
    Mutant(
        "a column that is on the chip counts as read from memory",
        COSTS,
        "operands[1].num_bytes + reads[1]",
        "2 * operands[1].num_bytes",
        TRAFFIC,
    ),
    Mutant(
        "a rounded cache needs no correction",
        "fiberjax/train/checks.py",
        'exact = rollout.cache_dtype in ("", policy.compute_dtype)',
        "exact = True",
        (
            "tests/test_experiment.py::test_bad_options_are_refused_before_anything_compiles"
            "[rollout.cache_dtype=int8]",
        ),
    ),
)
