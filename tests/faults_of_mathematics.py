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
PREFIX = "tests/gates/test_prefix.py"
MISMATCH = "tests/test_mismatch.py"
THEOREMS = "tests/gates/test_theorems.py"
LIFTS = "tests/gates/test_lifts.py"
VARIANTS = "tests/gates/test_variants.py"
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
        "return -jnp.sign(log_ratio)",
        "return jnp.sign(log_ratio)",
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
        "a re-signed cell hands up its drift in the wrong channel",
        "fiberjax/gates/bundle.py",
        "return jnp.stack([jnp.where(net >= 0, net, 0), jnp.where(net >= 0, 0, -net)], axis=-1)",
        "return jnp.stack([jnp.where(net >= 0, 0, -net), jnp.where(net >= 0, net, 0)], axis=-1)",
        (f"{VARIANTS}::test_residuals_of_siblings_sum_to_zero_with_their_sign_and_not_by_channel",),
    ),
    Mutant(
        "the upper token budget holds drift downwards",
        "fiberjax/gates/hierarchy.py",
        "both = [jnp.where(upwards, pair[1], pair[0]) for pair in bounds]",
        "both = [jnp.where(upwards, pair[0], pair[1]) for pair in bounds]",
        (f"{VARIANTS}::test_agrees_with_the_loop_written_reference",),
    ),
    Mutant(
        "a level's advantage meets its whole drift, not its own part",
        "fiberjax/gates/levelwise.py",
        "own, total = own - levels.lift(gated[k + 1], k), levels.lift(total, k)",
        "total = levels.lift(total, k)",
        (f"{VARIANTS}::test_each_level_meets_its_own_advantage",),
    ),
    Mutant(
        "by levels, only the last of them shortens the step",
        "fiberjax/step_share.py",
        "share *= segments.safe_divide(norm(",
        "share = segments.safe_divide(norm(",
        ("tests/test_step_share.py::test_by_levels_each_shortens_the_step_by_what_it_leaves_open",),
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
        "drifts.append(jnp.stack([moved, -moved], axis=-1))",
        "drifts.append(jnp.stack([-moved, moved], axis=-1))",
        AGREES,
    ),
    Mutant(
        "a trajectory's budget follows its advantage",
        "fiberjax/gates/scales.py",
        "above = layout.index(TRAJECTORY) + 1",
        "above = layout.index(TRAJECTORY)",
        (f"{SILENT}::test_dispersion_scales_the_levels_above_trajectories_alone",),
    ),
    Mutant(
        "a budget is divided by the number of children, not by its root",
        "fiberjax/gates/scales.py",
        "level: 1 / jnp.sqrt(n)",
        "level: 1 / n",
        (f"{SILENT}::test_budgets_follow_the_noise_of_a_mean",),
    ),
    Mutant(
        "an open level is closed where the factor of a cell is 0",
        "fiberjax/gates/scales.py",
        "pair = jnp.where(jnp.isinf(pair), pair, pair * factor[level][:, None])",
        "pair = pair * factor[level][:, None]",
        ("tests/analysis/test_tokens.py",),
    ),
    Mutant(
        "good and bad advantages of a cell cancel in its dispersion",
        "fiberjax/gates/scales.py",
        "means = layout.means(jnp.abs(jax.lax.stop_gradient(advantage)))",
        "means = layout.means(jax.lax.stop_gradient(advantage))",
        (
            f"{SILENT}::test_budgets_follow_the_dispersion_of_rewards",
            f"{VARIANTS}::test_agrees_with_the_loop_written_reference",
        ),
    ),
    # Layout and segments.
    Mutant(
        "an id of nothing reads the last cell",
        "fiberjax/segment_forms.py",
        '.get(mode="fill", fill_value=0)',
        '.get(mode="clip")',
        ("tests/test_layout.py::test_padding_ids_never_wrap_or_clamp",),
    ),
    Mutant(
        "segments are summed on one device only",
        "fiberjax/segments.py",
        "ids.ravel(), num_segments=num_segments)\n"
        "    return lax.psum(table, axis_name) if axis_name else table",
        "ids.ravel(), num_segments=num_segments)\n    return table",
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
    # Prefixes, masks, and whole trajectories.
    Mutant(
        "running sums run on into the next trajectory",
        "fiberjax/segments.py",
        "kept = (jnp.where(right[0], y, x) for x, y in zip(joined, right[1:], strict=True))",
        "kept = joined",
        (f"{PREFIX}::test_running_sums_are_those_of_a_loop[packed]",),
    ),
    Mutant(
        "padding discounts what comes after it",
        "fiberjax/gates/prefix.py",
        "passed = jnp.where(layout.mask, jnp.asarray(decay, values.dtype), 1)",
        "passed = jnp.full(values.shape, decay, values.dtype)",
        (f"{PREFIX}::test_running_sums_are_those_of_a_loop[rows]",),
    ),
    Mutant(
        "CPPO counts a token against its own prefix",
        "fiberjax/gates/prefix.py",
        "saved = running_sum(weight * prefix_delta - spent, layout, before=True)",
        "saved = running_sum(weight * prefix_delta - spent, layout)",
        (f"{AGREES[0]}[False-0-cppo]",),
    ),
    Mutant(
        "CPPO drops tokens that move back",
        "fiberjax/gates/prefix.py",
        "return (advantage * log_ratio > 0) & (spent > allowed) & mask",
        "return (spent > allowed) & mask",
        (f"{AGREES[0]}[False-0-cppo]",),
    ),
    Mutant(
        "the smallest ratio before a token may be its own",
        "fiberjax/gates/prefix.py",
        "_cells(layout), (jnp.inf,), before=True)",
        "_cells(layout), (jnp.inf,))",
        (f"{AGREES[0]}[False-0-minpro]",),
    ),
    Mutant(
        "FIPO looks back instead of ahead",
        "fiberjax/gates/prefix.py",
        "decay=decay, reverse=True)",
        "decay=decay)",
        (f"{AGREES[0]}[False-0-fipo]",),
    ),
    Mutant(
        "PNPO's gradient runs through the prefix",
        "fiberjax/gates/prefix.py",
        "drift, count = jax.lax.stop_gradient(log_ratio), layout.mask.astype(log_ratio.dtype)",
        "drift, count = log_ratio, layout.mask.astype(log_ratio.dtype)",
        (f"{PREFIX}::test_a_token_is_moved_by_its_own_score_alone",),
    ),
    Mutant(
        "M2PO bounds the second moment of each device alone",
        "fiberjax/gates/masks.py",
        "within = (lax.psum(excess, axes) if axes else excess) <= 0",
        "within = excess <= 0",
        (f"{CONTRACT}::test_sharded_equals_one_device[m2po-False]",),
    ),
    Mutant(
        "TRM forgets the largest divergence",
        "fiberjax/gates/masks.py",
        "return (beyond | (trajectory_mean",
        "return ((trajectory_mean",
        (f"{AGREES[0]}[False-0-trm]",),
    ),
    Mutant(
        "OPSM drops good trajectories too",
        "fiberjax/gates/masks.py",
        "return (advantage < 0) & (fallen > delta)",
        "return fallen > delta",
        (f"{AGREES[0]}[False-0-opsm]",),
    ),
    Mutant(
        "TVPO drops what moves back",
        "fiberjax/gates/masks.py",
        "> delta) & (advantage * log_ratio > 0)",
        "> delta) & (advantage != 0)",
        (f"{AGREES[0]}[False-0-tvpo]",),
    ),
    Mutant(
        "VESPO's kernel is differentiated",
        "fiberjax/gates/sequence.py",
        "drift = trajectory_sum(jax.lax.stop_gradient(log_ratio), layout, level)",
        "drift = trajectory_sum(log_ratio, layout, level)",
        (f"{CONTRACT}::test_first_order_agreement_on_policy[vespo-False]",),
    ),
    Mutant(
        "TOPR leaves bad trajectories their whole ratio",
        "fiberjax/gates/sequence.py",
        "jnp.minimum(ratio, weight_cap)).astype",
        "ratio).astype",
        (f"{AGREES[0]}[False-0-topr]",),
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
        "fiberjax/mismatch.py",
        "return jnp.minimum(ratio, cap)",
        "return jnp.maximum(ratio, cap)",
        (f"{MISMATCH}::test_weights_of_tokens_and_of_trajectories",),
    ),
    Mutant(
        "tokens that the sampler likes far better are kept",
        "fiberjax/mismatch.py",
        "(ratio <= cap) & (ratio * cap >= 1)",
        "(ratio <= cap)",
        (f"{MISMATCH}::test_weights_of_tokens_and_of_trajectories",),
    ),
    Mutant(
        "IcePop's band is open below",
        "fiberjax/mismatch.py",
        "jnp.where((ratio >= floor) & (ratio <= cap), ratio, 0)",
        "jnp.where(ratio <= cap, ratio, 0)",
        (f"{MISMATCH}::test_weights_of_tokens_and_of_trajectories",),
    ),
    Mutant(
        "long trajectories are rejected for their length",
        "fiberjax/mismatch.py",
        "mean = safe_exp(safe_divide(jnp.sum(gap, axis=-1, keepdims=True), tokens))",
        "mean = safe_exp(jnp.sum(gap, axis=-1, keepdims=True))",
        (f"{MISMATCH}::test_a_band_has_two_bounds",),
    ),
)
