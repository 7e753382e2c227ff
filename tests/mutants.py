"""Deliberate faults, and the tests that must catch them.

    python tests/mutants.py              all of them
    python tests/mutants.py --sample 9   so many, evenly from the table
    python tests/mutants.py trainer      those whose file or fault contains the word

Each fault is an edit of one place in a copy of the tree; the tests named beside it run there and
must fail. The command prints a table and ends with status 1 if a fault survived, if tests could not
be run at all, or if an edit no longer applies: then the code has moved, and the edit moves with it.
Before the first fault all tests named must pass on the tree as it is.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PARTS = ("fiberjax", "configs", "experiments", "tests", "pyproject.toml")
LIMIT = 900  # Seconds. Tests that do not end have caught something too.


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
UPDATE = "tests/train/test_update.py"
ROLLOUT = "tests/train/test_rollout.py"
PACKING = ("tests/train/test_packing.py",)
TRAINER = "tests/run/test_trainer.py"
RESUME = ("tests/run/test_loop.py::test_an_interrupted_run_resumes_bitwise",)
_WIRING = "tests/run/test_wiring.py::test_an_iteration_is_the_one_written_out"
GRPO = (f"{_WIRING}[grpo-trajectory-truncate-False-1]",)
MESH = (f"{_WIRING}[fiberpo_domain-token-truncate-True-4]",)

MUTANTS = (
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
    # The policy's numbers.
    Mutant(
        "the entropy is the normaliser",
        "fiberjax/policy/log_probs.py",
        "entropy=normaliser - mean",
        "entropy=normaliser",
        ("tests/policy/test_log_probs.py::test_chunks_equal_direct_in_value_and_gradient",),
    ),
    Mutant(
        "the mass kept by truncation is taken after it",
        "fiberjax/policy/sampler.py",
        "_log_kept(tempered, z)",
        "_log_kept(z, z)",
        (f"{TRAINER}::test_truncated_sampling_is_no_mismatch",),
    ),
    Mutant(
        "drawn tables that nobody wrote are whole on every device",
        "fiberjax/policy/sampler.py",
        'return Samples(*(placement.activation(of, "activation") for of in state.samples))',
        "return state.samples",
        (f"{ROLLOUT}::test_what_is_drawn_lies_where_its_rows_do",),
    ),
    # The step.
    Mutant(
        "the mismatch weight is left out",
        "fiberjax/train/update.py",
        "credit = advantage * sample_weight",
        "credit = advantage",
        GRPO,
    ),
    Mutant(
        "the log ratio is that of the old policy to the new",
        "fiberjax/train/update.py",
        "log_ratio = log_prob - old_log_prob",
        "log_ratio = old_log_prob - log_prob",
        GRPO,
    ),
    Mutant(
        "the entropy is penalised",
        "fiberjax/train/update.py",
        "total += knobs.entropy_coefficient",
        "total -= knobs.entropy_coefficient",
        GRPO,
    ),
    Mutant(
        "the KL is rewarded",
        "fiberjax/train/update.py",
        "total -= knobs.kl_coefficient",
        "total += knobs.kl_coefficient",
        GRPO,
    ),
    Mutant(
        "the entropy bonus weighs tokens equally",
        "fiberjax/train/update.py",
        "bonus = objective.mean(outputs.entropy, layout, **weighting)",
        'bonus = objective.mean(outputs.entropy, layout, weighting="token")',
        GRPO,
    ),
    Mutant(
        "the KL penalty weighs tokens equally",
        "fiberjax/train/update.py",
        "penalty = objective.mean(estimate, layout, **weighting)",
        'penalty = objective.mean(estimate, layout, weighting="token")',
        GRPO,
    ),
    Mutant(
        "the KL penalty takes old tokens for new ones",
        "fiberjax/train/update.py",
        "drift = log_ratio if options.kl_ratio_weight else None",
        "drift = None",
        GRPO,
    ),
    Mutant(
        "updates are made at temperature 1",
        "fiberjax/train/update.py",
        "            knobs.temperature,\n            options.chunk,",
        "            1.0,\n            options.chunk,",
        GRPO,
    ),
    Mutant(
        "the entropy is always differentiated",
        "fiberjax/train/update.py",
        "entropy_gradient=options.entropy_bonus",
        "entropy_gradient=True",
        (f"{UPDATE}::test_the_entropy_is_differentiated_for_a_bonus_only",),
    ),
    Mutant(
        "updates are not counted",
        "fiberjax/train/update.py",
        "return TrainState(params, opt_state, state.step + 1), metrics",
        "return TrainState(params, opt_state, state.step), metrics",
        (f"{TRAINER}::test_the_schedule_reuses_every_minibatch_in_every_epoch",),
    ),
    Mutant(
        "the loss is maximised",
        "fiberjax/train/forward.py",
        "return outputs, lambda cotangents: negate(pull(cotangents)[0])",
        "return outputs, lambda cotangents: pull(cotangents)[0]",
        (f"{UPDATE}::test_at_the_sampling_policy_every_gate_gives_the_reinforce_gradient",),
    ),
    Mutant(
        "only the last micro-batch has a gradient",
        "fiberjax/train/forward.py",
        "return jax.tree.map(jnp.add, total, pull(micro_cotangents)[0]), None",
        "return pull(micro_cotangents)[0], None",
        GRPO,
    ),
    Mutant(
        "rows of micro-batches are merged in another order",
        "fiberjax/train/forward.py",
        "return x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])",
        "return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])",
        GRPO,
    ),
    Mutant(
        "a token is scored by what was seen after it",
        "fiberjax/train/forward.py",
        "[:, start - 1 : -1]",
        "[:, start:]",
        (f"{ROLLOUT}::test_sampler_and_trainer_agree_on_log_probabilities",),
    ),
    # Rollouts, minibatches, packing.
    Mutant(
        "the last token is no part of the text",
        "fiberjax/train/rollout.py",
        "self.vocabulary.decode(row[:length])",
        "self.vocabulary.decode(row[: length - 1])",
        (f"{ROLLOUT}::test_texts_end_before_the_end_of_sequence",),
    ),
    Mutant(
        "devices share their rows' keys",
        "fiberjax/train/rollout.py",
        "place = per_shard * shards.start + np.arange(len(tokens))",
        "place = np.arange(len(tokens)) % per_shard",
        (f"{ROLLOUT}::test_draws_do_not_depend_on_the_parts_they_are_drawn_in",),
    ),
    Mutant(
        "rollouts forget what truncation kept",
        "fiberjax/train/rollout.py",
        "log_kept=drawn.log_kept",
        "log_kept=np.zeros_like(drawn.log_kept)",
        (f"{TRAINER}::test_truncated_sampling_is_no_mismatch",),
    ),
    Mutant(
        "positions count from 1",
        "fiberjax/train/rollout.py",
        "np.cumsum(real, axis=1, dtype=np.int32) - 1, 0)",
        "np.cumsum(real, axis=1, dtype=np.int32), 0)",
        (f"{ROLLOUT}::test_positions_count_the_real_tokens",),
    ),
    Mutant(
        "all phases of a run draw from one stream",
        "fiberjax/run/evaluation.py",
        "samples=wanted.samples, stream=seeds.EVALUATION",
        "samples=wanted.samples, stream=seeds.TRAINING",
        (f"{TRAINER}::test_every_phase_draws_from_a_stream_of_its_own",),
    ),
    Mutant(
        "a minibatch has the cells of another one",
        "fiberjax/train/minibatches.py",
        "% num_minibatches == j\n    mask = mesh",
        "% num_minibatches == (j + 1) % num_minibatches\n    mask = mesh",
        (f"{ROLLOUT}::test_every_group_is_whole_in_one_minibatch",),
    ),
    Mutant(
        "minibatches take the old policy for the reference",
        "fiberjax/train/minibatches.py",
        "reference_log_prob=reference_log_prob[chosen]",
        "reference_log_prob=old_log_prob[chosen]",
        GRPO,
    ),
    Mutant(
        "groups on several devices are summed on each",
        "fiberjax/train/minibatches.py",
        "axis_names={name: mesh.ROW_AXES for name in (*levels.names[:1], STATE)}",
        "axis_names={STATE: mesh.ROW_AXES}",
        MESH,
    ),
    Mutant(
        "packed sequences see each other",
        "fiberjax/train/packing.py",
        "order[row] += 1",
        "order[row] = 1",
        PACKING,
    ),
    Mutant(
        "packed tokens are all of one trajectory",
        "fiberjax/train/packing.py",
        "np.where(mask, move_completion(cell), local)",
        "np.where(mask, 0, local)",
        PACKING,
    ),
    Mutant(
        "packing takes the old policy for the reference",
        "fiberjax/train/packing.py",
        "reference_log_prob=move_completion(batch.reference_log_prob)",
        "reference_log_prob=move_completion(batch.old_log_prob)",
        PACKING,
    ),
    # The iteration.
    Mutant(
        "the mismatch weight is the wrong way up",
        "fiberjax/run/trainer.py",
        "correct(old, sampler, cap=",
        "correct(sampler, old, cap=",
        GRPO,
    ),
    Mutant(
        "truncation is taken for a mismatch",
        "fiberjax/run/trainer.py",
        "sampler = rollouts.sampler_log_prob + rollouts.log_kept",
        "sampler = rollouts.sampler_log_prob",
        (f"{TRAINER}::test_truncated_sampling_is_no_mismatch",),
    ),
    Mutant(
        "the current policy is its own reference",
        "fiberjax/run/trainer.py",
        "self._log_probs(self._reference, rows",
        "self._log_probs(params, rows",
        GRPO,
    ),
    Mutant(
        "old log-probabilities are at temperature 1",
        "fiberjax/run/trainer.py",
        "self._log_probs(params, rows, rollouts.mask, temperature)",
        "self._log_probs(params, rows, rollouts.mask, np.float32(1))",
        GRPO,
    ),
    Mutant(
        "there is one epoch",
        "fiberjax/run/trainer.py",
        "for _ in range(self.experiment.training.epochs):",
        "for _ in range(1):",
        GRPO,
    ),
    Mutant(
        "the curriculum sees shuffled rewards",
        "fiberjax/run/trainer.py",
        "rewards.reshape(-1, rollouts.group_size),\n        )",
        "shuffled(rewards, 0, 0).reshape(-1, rollouts.group_size),\n        )",
        (f"{TRAINER}::test_the_curriculum_learns_the_true_pass_rates",),
    ),
    Mutant(
        "metrics are means of minibatches' means",
        "fiberjax/run/trainer.py",
        "float(functools.reduce(objective.add, [step[name] for step in read]).value)",
        "float(np.mean([step[name].value for step in read]))",
        GRPO,
    ),
    Mutant(
        "every process takes the first one's advantages",
        "fiberjax/run/trainer.py",
        "advantage=advantage[index * size : (index + 1) * size]",
        "advantage=advantage[:size]",
        ("tests/parallel/test_distributed.py::test_four_processes_agree_with_one",),
    ),
    Mutant(
        "the learning rate logged is that of iterations",
        "fiberjax/run/trainer.py",
        "updates = iteration * len(pending)",
        "updates = iteration",
        (f"{TRAINER}::test_the_learning_rate_logged_is_that_of_the_updates",),
    ),
    # The experiment and its optimizer.
    Mutant(
        "the KL penalty is never asked for",
        "fiberjax/experiment.py",
        "kl_estimator=training.kl_estimator if training.kl_coefficient > 0 else None",
        "kl_estimator=None",
        (f"{TRAINER}::test_every_metric_is_written_and_described",),
    ),
    Mutant(
        "the sampler has a temperature of its own",
        "fiberjax/experiment.py",
        "temperature=float(self.knobs.temperature)",
        "temperature=self.rollout.temperature",
        (f"{TRAINER}::test_one_temperature_is_sampled_and_scored_with",),
    ),
    Mutant(
        "the schedule ends with the iterations, not the updates",
        "fiberjax/experiment.py",
        "total_steps=max(iterations * training.epochs * training.minibatches,",
        "total_steps=max(iterations,",
        GRPO,
    ),
    Mutant(
        "gradient descent has no momentum",
        "fiberjax/optimizers.py",
        "optax.trace(b1, accumulator_dtype=dtype) if b1 > 0 else optax.identity(),",
        "optax.identity(),",
        GRPO,
    ),
    Mutant(
        "embeddings and scales decay",
        "fiberjax/optimizers.py",
        "decayed = None if decay_all else _of_layer_matrices",
        "decayed = None",
        GRPO,
    ),
    # Meshes.
    Mutant(
        "numbers of devices are not added",
        "fiberjax/objective.py",
        "return Mean(lax.psum(reduction.total, axis_name), lax.psum(reduction.count, axis_name))",
        "return Mean(lax.pmean(reduction.total, axis_name), lax.psum(reduction.count, axis_name))",
        MESH,
    ),
    Mutant(
        "a gathered matrix's gradient is not added over replicas",
        "fiberjax/parallel/shardings.py",
        "(jax.lax.with_sharding_constraint(gradient, stored),)",
        "(jax.lax.with_sharding_constraint(gradient / 2, stored),)",
        MESH,
    ),
    Mutant(
        "every level's tables are split over the devices",
        "fiberjax/parallel/shardings.py",
        "sizes=tuple(everywhere if k else rows for k in range(len(layout.sizes)))",
        "sizes=tuple(rows for k in range(len(layout.sizes)))",
        MESH,
    ),
    # What a run remembers.
    Mutant(
        "a checkpoint is an iteration younger than it was",
        "fiberjax/run/checkpoints.py",
        'return Restored(iteration, items["state"], items["host"])',
        'return Restored(iteration - 1, items["state"], items["host"])',
        RESUME,
    ),
    Mutant(
        "a resumed run starts its prompts over",
        "fiberjax/run/loop.py",
        'stream.set_state(found.host["stream"])',
        "stream.get_state()",
        RESUME,
    ),
    Mutant(
        "pass rates are forgotten",
        "fiberjax/tasks/source.py",
        'self.pass_rate[np.array(state["profiled"], np.int64)] = state["pass_rate"]',
        "pass",
        ("tests/tasks/test_source.py::test_resume_is_exact_at_every_step",),
    ),
    Mutant(
        "a resumed run loses the metrics of its last step",
        "fiberjax/run/writers.py",
        "strict=False) if step <= last]",
        "strict=False) if step < last]",
        ("tests/run/test_writers.py",),
    ),
    Mutant(
        "a key does not depend on the step",
        "fiberjax/seeds.py",
        "jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)",
        "jax.random.fold_in(jax.random.key(seed), stream)",
        (f"{ROLLOUT}::test_no_two_rows_ever_share_a_key",),
    ),
)


def edited(mutant: Mutant, root: Path) -> str:
    """The text of the mutant's file with the fault in it.

    Raises:
      ValueError: the old text is not in the file exactly once.
    """
    text = (root / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1 or mutant.old == mutant.new:
        raise ValueError(
            f"{mutant.file}: the edit for {mutant.fault!r} applies {text.count(mutant.old)} times; "
            f"expected once: {mutant.old!r}"
        )
    return text.replace(mutant.old, mutant.new)


def copy_tree(folder: Path) -> Path:
    """A copy of what the tests need; returns where it is."""
    for part in PARTS:
        source, target = ROOT / part, folder / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def run_tests(root: Path, tests: tuple[str, ...]) -> tuple[str, str]:
    """Runs tests in a tree: "pass", "fail" or another status, and the end of what they said."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return "fail", f"no end within {LIMIT} s"
    status = {0: "pass", 1: "fail"}.get(done.returncode, f"status {done.returncode}")
    return status, done.stdout[-2000:]


def try_mutant(mutant: Mutant, root: Path) -> str:
    """Whether its tests catch a fault: "caught", "SURVIVED", or what went wrong."""
    path = root / mutant.file
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(edited(mutant, root), encoding="utf-8")
        outcome, told = run_tests(root, mutant.tests)
    except ValueError as error:
        return f"DOES NOT APPLY: {error}"
    finally:
        path.write_text(before, encoding="utf-8")
    return {"fail": "caught", "pass": "SURVIVED"}.get(outcome, f"DID NOT RUN: {outcome} {told}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("word", nargs="?", default="", help="in the file or the fault")
    parser.add_argument("--sample", type=int, default=len(MUTANTS), help="so many at most")
    given = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if given.word in m.file or given.word in m.fault]
    count = min(given.sample, len(chosen))
    chosen = [chosen[i * len(chosen) // count] for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        root = copy_tree(Path(folder))
        needed = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        outcome, told = run_tests(root, needed)
        if outcome != "pass":
            print(f"the tests do not pass as they are: {outcome}\n{told}")
            return 1
        print("| file | fault | tests | result | s |\n|---|---|---|---|---:|", flush=True)
        results = []
        for mutant in chosen:
            began = time.monotonic()
            results.append(try_mutant(mutant, root))
            seconds = time.monotonic() - began
            tests = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in mutant.tests)
            row = (f"`{mutant.file}`", mutant.fault, tests, results[-1], f"{seconds:.0f}")
            print("| " + " | ".join(row) + " |", flush=True)
    caught = results.count("caught")
    print(f"\n{caught} of {len(results)} caught")
    return int(caught < len(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
