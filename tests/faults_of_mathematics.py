"""Deliberate faults of gates, layouts, objective, advantages and KL; see `mutants.py`."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault: what is wrong, where, and the tests that must fail."""

    fault: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


CONTRACT = "tests/gates/test_contract.py"
AGREES = (f"{CONTRACT}::test_agrees_with_the_loop_written_reference",)
THEOREMS = "tests/gates/test_theorems.py"
LIFTS = "tests/gates/test_lifts.py"
SILENT = "tests/gates/test_silent.py"
TRAINER = "tests/run/test_trainer.py"
_WIRING = "tests/run/test_wiring.py::test_an_iteration_is_the_one_written_out"
GRPO = (f"{_WIRING}[grpo-trajectory-truncate-False-1]",)

FAULTS = (
    # Gates.
    Mutant(
        "the rollback forgets the size of its cell",
        "fiberjax/gates/aggregate.py",
        "left = budget + size * (budget - jnp.abs(drift))",
        "left = budget + (budget - jnp.abs(drift))",
        AGREES,
    ),
    Mutant(
        "the rollback is even instead of odd",
        "fiberjax/gates/aggregate.py",
        "fallen = jnp.where(left > 0, jnp.sign(drift) * left, 0)",
        "fallen = jnp.where(left > 0, left, 0)",
        (f"{THEOREMS}::test_the_aggregate_gate_is_an_apc_clip",),
    ),
    Mutant(
        "a log ratio of zero is in no plus channel",
        "fiberjax/gates/channels.py",
        "return jnp.where(log_ratio < 0, MINUS, PLUS)",
        "return jnp.where(log_ratio <= 0, MINUS, PLUS)",
        AGREES,
    ),
    Mutant(
        "the parent's drift stays in the residual",
        "fiberjax/gates/bundle.py",
        "jnp.where(size > 0, fine - layout.lift(coarse, k), 0)",
        "jnp.where(size > 0, fine, 0)",
        AGREES,
    ),
    Mutant(
        "a coarse cell counts as many children as it has tokens",
        "fiberjax/gates/bundle.py",
        "size = layout.sizes[k + 1].astype(drift.dtype)[:, None]",
        "size = layout.tokens_of(layout.levels[k + 1]).astype(drift.dtype)[:, None]",
        AGREES,
    ),
    Mutant(
        "the fiber takes its own channel for the opposite one",
        "fiberjax/gates/hierarchy.py",
        "opposite = [clip(drift[:, ::-1], b) * signs for b in bound]",
        "opposite = [clip(drift, b) * signs for b in bound]",
        AGREES,
    ),
    Mutant(
        "the token budget of bad tokens holds the good ones",
        "fiberjax/gates/hierarchy.py",
        "kind = jnp.where(advantage < 0, len(bounds) - 1, 0)",
        "kind = jnp.where(advantage > 0, len(bounds) - 1, 0)",
        AGREES,
    ),
    Mutant(
        "a clip holds at the bound of the other sign",
        "fiberjax/gates/tokenwise.py",
        "bound = jnp.where(advantage >= 0, high, low)",
        "bound = jnp.where(advantage >= 0, low, high)",
        AGREES,
    ),
    Mutant(
        "a trajectory's log ratio is a sum, not a mean",
        "fiberjax/gates/sequence.py",
        "return layout.lift_tokens(safe_divide(total, layout.sizes[0].astype(values.dtype)))",
        "return layout.lift_tokens(total)",
        AGREES,
    ),
    Mutant(
        "GMPO clips the side that the advantage does not reward",
        "fiberjax/gates/sequence.py",
        "high = (advantage > 0) & (log_ratio > clip_high)",
        "high = (advantage < 0) & (log_ratio > clip_high)",
        AGREES,
    ),
    Mutant(
        "a sample of APC pays for itself twice",
        "fiberjax/gates/apc.py",
        "left = segments.spread(count * delta - used, ids) + magnitude",
        "left = segments.spread(count * delta - used, ids)",
        AGREES,
    ),
    Mutant(
        "states are counted on one device only",
        "fiberjax/gates/apc.py",
        "count = segments.segment_sum(ones, ids, layout.num_states, axis_name=axes)",
        "count = segments.segment_sum(ones, ids, layout.num_states)",
        (f"{CONTRACT}::test_sharded_equals_one_device",),
    ),
    Mutant(
        "the clipped weight of CISPO is differentiated",
        "fiberjax/gates/score.py",
        "return jax.lax.stop_gradient(weight) * unit_score(masked)",
        "return weight * unit_score(masked)",
        (f"{CONTRACT}::test_first_order_agreement_on_policy",),
    ),
    Mutant(
        "DPPO measures the move the wrong way round",
        "fiberjax/gates/score.py",
        "moved = -jnp.sign(log_ratio)",
        "moved = jnp.sign(log_ratio)",
        AGREES,
    ),
    Mutant(
        "DPPO's weight has no cap",
        "fiberjax/gates/score.py",
        "weight = jnp.where(keep, jnp.minimum(safe_exp(log_ratio), weight_cap), 0)",
        "weight = jnp.where(keep, safe_exp(log_ratio), 0)",
        AGREES,
    ),
    Mutant(
        "the pessimistic form is the optimistic one",
        "fiberjax/gates/compose.py",
        "return limit * advantage < gated * advantage",
        "return limit * advantage > gated * advantage",
        (f"{CONTRACT}::test_pessimistic_is_the_minimum_with_the_limit",),
    ),
    Mutant(
        "the dual clip holds the good tokens",
        "fiberjax/gates/compose.py",
        "return (advantage < 0) & (gated > bound)",
        "return (advantage > 0) & (gated > bound)",
        (f"{CONTRACT}::test_the_dual_clip_of_ppo_is_the_published_one",),
    ),
    Mutant(
        "a cell is moved by its siblings, where both bounds meet",
        "fiberjax/gates/bundle.py",
        "whole = (taken <= 0) | (drift == 0)",
        "whole = taken <= 0",
        (f"{LIFTS}::test_a_trajectory_at_zero_has_the_identity_whatever_its_siblings_do",),
    ),
    Mutant(
        "a closed token of the silent hierarchy pushes",
        "fiberjax/gates/silent.py",
        "return jnp.where(excess > 0, weight, weight * unit_score(log_ratio))",
        "return weight * unit_score(log_ratio)",
        (f"{SILENT}::test_the_jacobian_is_diagonal_and_zero_where_the_definition_closes",),
    ),
    Mutant(
        "the silent hierarchy closes what moves back",
        "fiberjax/gates/silent.py",
        "both = jnp.stack([moved, -moved], axis=-1)",
        "both = jnp.stack([-moved, moved], axis=-1)",
        AGREES,
    ),
    # Layout and segments.
    Mutant(
        "an id of nothing reads the last cell",
        "fiberjax/segments.py",
        '.get(mode="fill", fill_value=0)',
        '.get(mode="clip")',
        ("tests/test_layout.py::test_padding_ids_never_wrap_or_clamp",),
    ),
    Mutant(
        "segments are summed on one device only",
        "fiberjax/segments.py",
        "table = jax.ops.segment_sum(values, ids.ravel(), num_segments)\n"
        "    return lax.psum(table, axis_name) if axis_name else table",
        "table = jax.ops.segment_sum(values, ids.ravel(), num_segments)\n    return table",
        (f"{CONTRACT}::test_sharded_equals_one_device",),
    ),
    Mutant(
        "a coarse cell's tokens are its children",
        "fiberjax/layout.py",
        "            count = self.pushforward(count, k)\n        return count",
        "            count = self.sizes[k + 1]\n        return count",
        ("tests/test_layout.py::test_sums_and_counts",),
    ),
    Mutant(
        "a state is a token's position, whatever came before",
        "fiberjax/layout.py",
        "step = (state, token)",
        "step = (state, 0)",
        ("tests/test_layout.py::test_states_are_prompts_and_prefixes",),
    ),
    # Objective.
    Mutant(
        "trajectories weigh by their length",
        "fiberjax/objective.py",
        "return per_trajectory, per_trajectory",
        "return mask, mask",
        ("tests/test_objective.py::test_weightings",),
    ),
    Mutant(
        "a constant length is divided by tokens, not trajectories",
        "fiberjax/objective.py",
        "return mask / constant_length, per_trajectory",
        "return mask / constant_length, mask",
        ("tests/test_objective.py::test_weightings",),
    ),
    Mutant(
        "the counts of two parts are not added",
        "fiberjax/objective.py",
        "return Mean(first.total + second.total, first.count + second.count)",
        "return Mean(first.total + second.total, first.count)",
        ("tests/test_objective.py::test_metrics_join_over_micro_batches_and_devices",),
    ),
    Mutant(
        "the largest of two parts is the smaller",
        "fiberjax/objective.py",
        "return Max(jnp.maximum(first.value, second.value))",
        "return Max(jnp.minimum(first.value, second.value))",
        (f"{TRAINER}::test_metrics_of_updates_are_over_all_their_tokens",),
    ),
    # Advantages.
    Mutant(
        "the deviation of a group is that of a population",
        "fiberjax/advantages.py",
        "std = jnp.sqrt(squares / jnp.maximum(size - 1, 1))",
        "std = jnp.sqrt(squares / jnp.maximum(size, 1))",
        GRPO,
    ),
    Mutant(
        "RLOO leaves nobody out",
        "fiberjax/advantages.py",
        "return deviation * size / jnp.maximum(size - 1, 1)",
        "return deviation",
        ("tests/test_advantages.py::test_against_numpy",),
    ),
    Mutant(
        "the mean of a group is left in",
        "fiberjax/advantages.py",
        "jnp.where(present, below - segments.safe_divide(total, size), 0)",
        "jnp.where(present, below, 0)",
        ("tests/test_advantages.py::test_against_numpy",),
    ),
    Mutant(
        "GAE takes the value of another trajectory for its own next one",
        "fiberjax/advantages.py",
        "discount * jnp.where(same, next_value, 0) - value",
        "discount * next_value - value",
        ("tests/test_advantages.py::test_gae_against_a_loop_with_gaps_and_packed_trajectories",),
    ),
    # KL and mismatch.
    Mutant(
        "k3 has the wrong sign of its linear part",
        "fiberjax/kl.py",
        "return jnp.expm1(q) - q",
        "return jnp.expm1(q) + q",
        ("tests/test_kl.py::test_values_and_losses",),
    ),
    Mutant(
        "a KL loss has the gradient of its value",
        "fiberjax/kl.py",
        "value = jax.lax.stop_gradient(value - right) + right",
        "value = value + 0 * right",
        ("tests/test_kl.py::test_values_and_losses",),
    ),
    Mutant(
        "the weight of a KL loss is differentiated",
        "fiberjax/kl.py",
        "return jax.lax.stop_gradient(safe_exp(_wide(log_ratio))) * value",
        "return safe_exp(_wide(log_ratio)) * value",
        ("tests/test_kl.py::test_losses_on_tokens_of_the_old_policy",),
    ),
    Mutant(
        "truncated weights are at least the cap",
        "fiberjax/kl.py",
        "return jnp.minimum(ratio, cap)",
        "return jnp.maximum(ratio, cap)",
        ("tests/test_kl.py::test_mismatch_weights",),
    ),
    Mutant(
        "tokens that the sampler likes far better are kept",
        "fiberjax/kl.py",
        "(ratio <= cap) & (ratio * cap >= 1)",
        "(ratio <= cap)",
        ("tests/test_kl.py::test_mismatch_weights",),
    ),
)
