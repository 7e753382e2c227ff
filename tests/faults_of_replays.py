"""Deliberate faults of replays; see `mutants.py`."""

from faults_of_mathematics import Mutant

ARRAYS = "tests/analysis/test_replay.py"
RUNS = "tests/analysis/test_replay_of_runs.py"

FAULTS = (
    Mutant(
        "coefficients forget the weights of samples",
        "fiberjax/analysis/batch.py",
        "credit = kept.advantage if weight is None else kept.advantage * weight",
        "credit = kept.advantage",
        (f"{ARRAYS}::test_each_row_is_what_the_library_makes_of_the_same_data",),
    ),
    Mutant(
        "an open share is of ratios that are weighed otherwise",
        "fiberjax/analysis/replay.py",
        "plain[key] = jax.device_get(look(ungated(of), log_prob, batch)).coefficients",
        'plain[key] = looks["ungated"].coefficients',
        (f"{ARRAYS}::test_each_row_is_what_the_library_makes_of_the_same_data",),
    ),
    Mutant(
        "weights of trajectories are of their mean",
        "fiberjax/analysis/batch.py",
        "total = log_ratio.sum(axis=1)[held]",
        "total = log_ratio.mean(axis=1)[held]",
        (f"{ARRAYS}::test_what_was_drawn_says_of_another_policy",),
    ),
    Mutant(
        "a minibatch is the whole batch",
        "fiberjax/analysis/batch.py",
        "mask = mask & (kept.minibatch == minibatch)[:, None]",
        "mask = mask & (kept.minibatch >= 0)[:, None]",
        (f"{ARRAYS}::test_a_minibatch_is_as_if_it_were_alone",),
    ),
    Mutant(
        "a residual below 0 is within its budget",
        "fiberjax/gates/hierarchy.py",
        "scales.Held(self.layout, tuple(map(jnp.abs, self.tower.residual)), self.budgets)",
        "scales.Held(self.layout, self.tower.residual, self.budgets)",
        (f"{ARRAYS}::test_a_drift_is_beyond_its_budget_where_the_gate_clips",),
    ),
    Mutant(
        "a table of logits has the slope of a table of log-probabilities",
        "fiberjax/analysis/unfold.py",
        "return jnp.asarray(coefficients) * jax.nn.sigmoid(-logits)",
        "return jnp.asarray(coefficients)",
        (f"{ARRAYS}::test_steps_in_a_table_of_logits_are_those_written_out",),
    ),
    Mutant(
        "a silent gate takes whole steps",
        "fiberjax/analysis/unfold.py",
        'step_share = objective.gate.structure.name == "silent"',
        "step_share = False",
        (f"{ARRAYS}::test_a_silent_gate_stops_where_its_budgets_are_and_a_whole_step_does_not",),
    ),
    Mutant(
        "a step goes down the gradient",
        "fiberjax/analysis/replay.py",
        "lambda p, g: p + (scale * g).astype(p.dtype)",
        "lambda p, g: p - (scale * g).astype(p.dtype)",
        (f"{RUNS}::test_gradients_and_steps_through_a_policy_are_those_of_the_objective",),
    ),
    Mutant(
        "updates are made again in the order of the batches",
        "fiberjax/analysis/reproduce.py",
        'minibatch = int(update["minibatch"])',
        "minibatch = number % len(batches)",
        (f"{RUNS}::test_the_updates_of_a_run_are_made_again_bit_for_bit",),
    ),
    Mutant(
        "what is made again by default has a checkpoint after it, not before",
        "fiberjax/analysis/reproduce.py",
        "of - 1 in there",
        "of in there",
        (f"{RUNS}::test_by_default_the_newest_that_can_be_made_again_is",),
    ),
    Mutant(
        "updates are made again with the budgets of the config",
        "fiberjax/analysis/reproduce.py",
        'built.knobs_at(float(kept.meta["budget_factor" if of_budgets else "step_factor"]))',
        "built.knobs",
        (f"{RUNS}::test_the_updates_of_a_run_are_made_again_bit_for_bit",),
    ),
    Mutant(
        "adapters are told without their scale",
        "fiberjax/analysis/through.py",
        'of / adapters.scale if name == "lora_b" else of',
        "of",
        (f"{RUNS}::test_adapters_are_told_from_what_they_adapt",),
    ),
)
