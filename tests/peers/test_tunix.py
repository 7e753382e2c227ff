"""The loss of docs/elsewhere.md within google-tunix's own GRPO training.

Needs google-tunix, in an environment of its own:

    uv venv tunix && uv pip install --python tunix/bin/python google-tunix==0.1.7 -e '.[dev]'
    tunix/bin/python -m pytest tests/peers/test_tunix.py -s
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from peers.guide import run_blocks

pytestmark = pytest.mark.peer
pytest.importorskip("tunix")

from flax import nnx
from tunix.models.qwen3.model import ModelConfig, Qwen3
from tunix.rl import common, rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

import fiberjax as fj
from fiberjax.parallel import mesh
from fiberjax.policy import TokenOutputs
from fiberjax.train.batch import Batch
from fiberjax.train.update import Knobs, StepOptions, objective_gradient

PAD, EOS, WORDS, SAMPLES, RATE = 0, 1, 16, 4, 0.5


class Numbers:
    """A tokenizer whose words are numbers."""

    def encode(self, text, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return " ".join(str(int(i)) for i in ids)

    def bos_id(self):
        return 2

    def eos_id(self):
        return EOS

    def pad_id(self):
        return PAD


def even_words(prompts, completions, **_):
    """The reward: the fraction of an answer's words that are even."""
    return [float(np.mean([int(w) % 2 == 0 for w in c.split()] or [0.0])) for c in completions]


@dataclasses.dataclass
class Update:
    """One of tunix's calls: the batch, and the parameters before and after it."""

    example: common.TrainExample
    before: nnx.State
    after: nnx.State


def train(scope, steps, temperature=1.0, micro_batch=None):
    """Trains with tunix and the loss of the page; its updates, and the model's graph."""
    model = Qwen3(
        ModelConfig(
            **{"vocab_size": WORDS, "embed_dim": 16, "num_layers": 1, "num_heads": 2},
            **{"num_kv_heads": 1, "head_dim": 8, "hidden_dim": 32, "rope_theta": 10_000},
            norm_eps=1e-6,
            use_tied_embedding=True,
        ),
        rngs=nnx.Rngs(0),
    )
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=model,
        tokenizer=Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role: one for role in roles},
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.sgd(RATE),
                eval_every_n_steps=10**6,
                max_steps=2 * steps,
                mini_batch_size=4,
                train_micro_batch_size=micro_batch,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=8,
                max_prompt_length=4,
                kv_cache_size=16,
                temperature=temperature,
            ),
        ),
    )
    # The name that the page registered its loss under.
    config = GRPOConfig(
        policy_loss_fn="fiberpo_domain", beta=0.0, num_iterations=2, num_generations=SAMPLES
    )
    learner = GRPOLearner(cluster, config, even_words)
    updates, update_actor = [], cluster.update_actor

    def params():
        return jax.tree.map(jnp.copy, nnx.state(cluster.actor_trainer.model, nnx.Param))

    def watched(examples, evaluation, skip_jit):
        before = params()
        update_actor(examples, evaluation, skip_jit)
        (example,) = examples
        updates.append(Update(example, before, params()))

    cluster.update_actor = watched
    prompts = np.array(["2 5 6", "2 9 4 7", "2 8", "2 10 11 13"])
    learner.train([{"prompts": prompts}] * steps)
    return updates, nnx.graphdef(cluster.actor_trainer.model), config


def ours(gate, example, params, graphdef, temperature=1.0):
    """J and its gradient by this project's compiled objective, and the log ratios."""
    mask = np.asarray(example.completion_mask, bool)
    group = np.arange(len(mask)) // SAMPLES
    domain = np.asarray(example.prompt_ids)[::SAMPLES, -1] % 2
    layout = fj.make_layout(mask, {"group": group, "domain": domain})

    def log_probs(params):
        return common.compute_per_token_logps(
            *(graphdef, params, example.prompt_ids, example.completion_ids),
            **{"pad_id": PAD, "eos_id": EOS, "stop_gradient": False, "temperature": temperature},
        )

    log_prob, pullback = jax.vjp(log_probs, params)
    tokens = jnp.zeros(mask.shape, jnp.int32)
    zeros, ones = jnp.zeros(mask.shape), jnp.ones(mask.shape)
    metrics, cotangents = objective_gradient(
        mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]),
        gate.structure,
        StepOptions(),
        TokenOutputs(log_prob, zeros),
        Batch(
            *(tokens, tokens, tokens, layout, ones * example.advantages[:, None]),
            *(example.old_per_token_logps, zeros, ones),
        ),
        Knobs(gate.budgets, 1.0, 0.0, 0.0),
    )
    (gradient,) = pullback(cotangents.log_prob)
    log_ratio = np.where(mask, log_prob - example.old_per_token_logps, 0)
    return float(-metrics["actor/pg_loss"]), gradient, np.abs(log_ratio)


def largest(tree):
    """The largest magnitude in a pytree."""
    return max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))


def moved(update):
    """What the optimizer, plain gradient descent on −J, was given: the gradient of J."""
    return jax.tree.map(lambda after, before: (after - before) / RATE, update.after, update.before)


def difference(first, second):
    return largest(jax.tree.map(jnp.subtract, first, second))


def test_two_steps_of_grpo_are_the_compiled_objective():
    scope = run_blocks("tunix")
    updates, graphdef, config = train(scope, steps=2)
    assert len(updates) == 4  # Two steps of two iterations.
    for number, update in enumerate(updates):
        value, gradient, log_ratio = ours(scope["gate"], update.example, update.before, graphdef)
        model = nnx.merge(graphdef, update.before)
        loss, metrics = scope["fiberpo_domain_loss"](model, update.example, config, PAD, EOS)
        error = difference(moved(update), gradient)
        print(
            f"update {number}: J {value:+.6f}, off by {abs(loss + value):.1e}; gradient up to "
            f"{largest(gradient):.3f}, off by {error:.1e}; log ratio up to {log_ratio.max():.3f}; "
            f"clipped {float(metrics['pg_clipfrac']):.2f}"
        )
        assert abs(loss + value) < 1e-6
        assert largest(gradient) > 1e-2 and error < 1e-5
    assert log_ratio.max() > 0.05 and metrics["pg_clipfrac"] > 0  # The gate had something to do.


def test_micro_batches_hold_whole_groups():
    scope = run_blocks("tunix")
    domains = scope["gate"]
    scope["gate"] = fj.gate("fiberpo_group_pessimistic", trajectory=0.1)
    updates, graphdef, _ = train(scope, steps=1, micro_batch=2)
    first, second = updates[2:]  # The second iteration, in two parts.
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), first.example, second.example)
    assert len(whole.completion_mask) == 4 * SAMPLES
    assert largest(moved(first)) == 0  # tunix waits for the second part.
    _, gradient, log_ratio = ours(scope["gate"], whole, first.before, graphdef)
    error = difference(moved(second), gradient)
    _, with_domains, _ = ours(domains, whole, first.before, graphdef)
    print(f"off by {error:.1e}; with the domain level by {difference(gradient, with_domains):.1e}")
    assert log_ratio.max() > 0.05 and error < 1e-5
    assert difference(gradient, with_domains) > 1e-3  # The level matters here.


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_log_ratios_of_an_unchanged_policy(temperature):
    scope = run_blocks("tunix")
    updates, graphdef, _ = train(scope, 1, temperature)
    first = updates[0]
    *_, log_ratio = ours(scope["gate"], first.example, first.before, graphdef, temperature)
    print(f"temperature {temperature}: up to {log_ratio.max():.1e}")
    assert (log_ratio.max() < 1e-5) == (temperature == 1)
