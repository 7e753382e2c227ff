"""A whole iteration against one that is written out plainly: from rollouts to parameters.

Each function has tests of its own; here is what lies between them. The plain iteration takes the
tokens, the sampler's numbers and the rewards as given, and goes on by itself in float64: the policy
row by row and head by head, advantages, old and reference log-probabilities, mismatch weights, the
gates of `reference.py`, the objective token by token and its derivatives by differences, and
gradient descent. Nothing in it is masked, packed or split.

The temperature is not 1, the reference differs from the start, the sampler disagrees with the
trainer, and four updates are made, so that no two numbers coincide that ought to be told apart.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from fiberjax import experiment
from fiberjax.run.trainer import Trainer
from fiberjax.run.warm_start import random_params

pytestmark = pytest.mark.looked

TEMPERATURE, CAP, ENTROPY, KL = 0.8, 1.3, 0.05, 0.1
RATE, MOMENTUM, DECAY = 2.0, 0.5, 0.01
WINDOW, MINIBATCHES, EPOCHS = 24, 2, 2

# Budgets within which some tokens stay and others do not.
BUDGETS = ((0.02, 0.015), (0.015, 0.01), (0.01, 0.008))
GATES = {
    "grpo": (
        {"gate.clip_low": 0.05, "gate.clip_high": 0.08},
        functools.partial(reference.ppo, clip_low=0.05, clip_high=0.08),
    ),
    "gspo": (
        {"gate.clip_low": 0.02, "gate.clip_high": 0.03},
        functools.partial(reference.gspo, clip_low=0.02, clip_high=0.03),
    ),
    "fiberpo_domain": (
        {
            "gate.epsilon": 0.05,
            **{
                f"gate.levels.{level}.budget": budget
                for level, budget in zip(("trajectory", "group", "domain"), BUDGETS, strict=True)
            },
        },
        functools.partial(reference.fgh, budgets=BUDGETS, epsilon=0.05),
    ),
    "dppo_tv": (
        {"gate.delta_low": 0.01, "gate.delta_high": 0.015},
        functools.partial(reference.dppo_tv, delta_low=0.01, delta_high=0.015, weight_cap=20.0),
    ),
}


def plain_row(config, params, tokens):
    """Log-probability of each token but the first of a row, and the entropy before it."""

    def norm(x, scale):
        return scale * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon)

    half = config.head_dim // 2
    angle = np.outer(np.arange(len(tokens)), config.rope_theta ** (-np.arange(half) / half))

    def turn(x):
        a, b = x[:, :half], x[:, half:]
        cos, sin = np.cos(angle), np.sin(angle)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=1)

    table = params["embed"]["kernel"]
    x = table[tokens]
    for layer in range(config.num_layers):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        h, heads = norm(x, p["attention_norm"]["scale"]), []
        q, k, v = (h @ p["attention"][name]["kernel"] for name in "qkv")
        for head in range(config.num_heads):
            shared = head * config.num_kv_heads // config.num_heads
            mine, theirs = (slice(i * 2 * half, (i + 1) * 2 * half) for i in (head, shared))
            query = turn(norm(q[:, mine], p["attention"]["q_norm"]["scale"]))
            key = turn(norm(k[:, theirs], p["attention"]["k_norm"]["scale"]))
            score = query @ key.T / math.sqrt(config.head_dim)
            score = jnp.where(np.tri(len(tokens), dtype=bool), score, -jnp.inf)
            heads.append(jax.nn.softmax(score) @ v[:, theirs])
        x = x + jnp.concatenate(heads, axis=1) @ p["attention"]["o"]["kernel"]
        h = norm(x, p["mlp_norm"]["scale"])
        gate, up = (h @ p["mlp"][name]["kernel"] for name in ("gate", "up"))
        x = x + (gate / (1 + jnp.exp(-gate)) * up) @ p["mlp"]["down"]["kernel"]
    z = norm(x, params["final_norm"]["scale"]) @ table.T / TEMPERATURE
    log_prob = z - jax.nn.logsumexp(z, axis=1, keepdims=True)
    entropy = -(jnp.exp(log_prob) * log_prob).sum(1)
    return log_prob[np.arange(len(tokens) - 1), tokens[1:]], entropy[:-1]


@functools.partial(jax.jit, static_argnums=0)
def plain_rows(config, params, tokens):
    return jax.vmap(functools.partial(plain_row, config, params))(tokens)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.grad, argnums=1)
def plain_gradient(config, params, tokens, by_log_prob, by_entropy):
    log_prob, entropy = plain_rows(config, params, tokens)
    return (by_log_prob * log_prob).sum() + (by_entropy * entropy).sum()


class Policy:
    """The plain policy on the completions of given rows, flat: one number a token."""

    def __init__(self, config, rows):
        # Nothing after a token matters to it: rows end in any tokens.
        self._tokens = np.array([[*row, *[0] * (WINDOW - len(row))] for row, _ in rows])
        self.places = [
            (r, t - 1) for r, (row, start) in enumerate(rows) for t in range(start, len(row))
        ]
        self._config = config

    def outputs(self, params):
        """Log-probabilities and entropies of all tokens, two float64[N]."""
        where = tuple(np.array(self.places).T)
        outputs = plain_rows(self._config, params, self._tokens)
        return [np.asarray(of)[where] for of in outputs]

    def gradient(self, params, chosen, by_log_prob, by_entropy):
        """The gradient of `Σ by_log_prob · log π + by_entropy · H` over the chosen tokens."""
        tables = np.zeros((2, len(self._tokens), WINDOW - 1))
        for i, a, b in zip(chosen, by_log_prob, by_entropy, strict=True):
            tables[0][self.places[i]], tables[1][self.places[i]] = a, b
        gradient = plain_gradient(self._config, params, self._tokens, *tables)
        return jax.tree.map(np.asarray, gradient)


@dataclasses.dataclass
class Tokens:
    """What an iteration knows of each token, in order; of its trajectory and group."""

    trajectory: list
    weight: np.ndarray
    advantage: np.ndarray
    old: np.ndarray
    anchor: np.ndarray
    group: list
    domain_of_group: list


def plain_advantages(reward, size):
    out = []
    for g in range(0, len(reward), size):
        of = [float(r) for r in reward[g : g + size]]
        mean = sum(of) / size
        std = math.sqrt(sum((r - mean) ** 2 for r in of) / (size - 1))
        out += [(r - mean) / (std + 1e-6) for r in of]
    return out


def plain_weight(log_prob, sampler, mismatch):
    ratio = math.exp(log_prob - sampler)
    if mismatch == "truncate":
        return min(ratio, CAP)
    return ratio if 1 / CAP <= ratio <= CAP else 0.0


def minibatch_derivatives(tokens, chosen, log_prob, entropy, gate, weighting):
    """One minibatch: what a log-probability and an entropy add to J, and totals of metrics."""
    mine = [tokens.trajectory[i] for i in chosen]
    names = sorted(set(mine))
    local = [names.index(name) for name in mine]
    groups = sorted({tokens.group[name] for name in names})
    group_of = [groups.index(tokens.group[name]) for name in names]
    parents = [group_of, [tokens.domain_of_group[g] for g in groups]]
    length = [local.count(t) for t in local]
    mu = np.array([1.0 / n if weighting == "trajectory" else 1.0 for n in length])
    count = len(names) if weighting == "trajectory" else len(chosen)
    advantage, weight = tokens.advantage[chosen], tokens.weight[chosen]
    old, q = tokens.old[chosen], (log_prob - tokens.anchor)[chosen]
    ratio = np.exp(log_prob[chosen] - old)
    extra = {"old_log_prob": old} if gate.func is reference.dppo_tv else {}

    def gated(l):
        return np.array(gate(l, advantage, local, parents, **extra))

    def surrogate(l):
        terms = zip(mu, weight, gated(l), advantage, strict=True)
        return sum(m * w * g * a for m, w, g, a in terms)

    l = log_prob[chosen] - old
    if gate.func is reference.dppo_tv:  # A weight on the score: the derivative is the value.
        slope = mu * weight * advantage * gated(l)
    else:
        slope = np.zeros(len(l))
        for i in range(len(l)):
            step = np.zeros(len(l))
            step[i] = 1e-6
            slope[i] = (surrogate(l + step) - surrogate(l - step)) / 2e-6
    # Of KL(π_θ ‖ π_ref), by tokens of the old policy.
    slope = slope - KL * mu * ratio * q
    k3 = np.exp(-q) - 1 + q
    totals = {
        "actor/pg_loss": (-surrogate(l), count),
        "actor/kl_reference": ((mu * ratio * k3).sum(), count),
        "actor/entropy": (entropy[chosen].sum(), len(chosen)),
        "actor/ppo_kl": (-l.sum(), len(chosen)),
        "is_ratio/mean": (ratio.sum(), len(chosen)),
    }
    return slope / count, ENTROPY * mu / count, totals


def plain_iteration(built, start, anchor, rollouts, *, gate, weighting, mismatch):
    """The parameters after an iteration, and its metrics."""
    rows = []
    for r, mask in enumerate(rollouts.mask):
        row = rollouts.tokens[r][rollouts.segment_ids[r] > 0].tolist()
        rows.append((row, len(row) - int(mask.sum())))
    policy = Policy(built.policy, rows)
    size, trajectory = rollouts.group_size, [r for r, _ in policy.places]
    sampler = (rollouts.sampler_log_prob.astype(np.float64) + rollouts.log_kept)[rollouts.mask]
    old, _ = policy.outputs(start)
    tokens = Tokens(
        trajectory=trajectory,
        weight=np.array([plain_weight(*of, mismatch) for of in zip(old, sampler, strict=True)]),
        advantage=np.array(plain_advantages(rollouts.reward, size))[trajectory],
        old=old,
        anchor=policy.outputs(anchor)[0],
        group=[r // size for r in range(len(rows))],
        domain_of_group=list(rollouts.prompts.domain),
    )
    params, momentum = start, jax.tree.map(np.zeros_like, start)
    updates = built.iterations * EPOCHS * MINIBATCHES
    totals, ratios, norms = {}, [], {"actor/grad_norm": [], "actor/update_norm": []}
    cosines = []
    order = np.random.default_rng((built.seed, 0))  # The draw of the order is the trainer's.
    for j in [j for _ in range(EPOCHS) for j in order.permutation(MINIBATCHES)]:
        chosen = [i for i, r in enumerate(trajectory) if r // size % MINIBATCHES == j]
        log_prob, entropy = policy.outputs(params)
        slopes = minibatch_derivatives(tokens, chosen, log_prob, entropy, gate, weighting)
        for name, (total, count) in slopes[2].items():
            before = totals.get(name, (0, 0))
            totals[name] = (before[0] + total, before[1] + count)
        ratios += list(np.exp(log_prob[chosen] - old[chosen]))
        descent = jax.tree.map(np.negative, policy.gradient(params, chosen, *slopes[:2]))
        rate = RATE * (1 - len(norms["actor/grad_norm"]) / updates)
        norms["actor/grad_norm"].append(norm_of(descent))
        if norm_of(momentum) > 0:
            inner = sum(map(np.vdot, *map(jax.tree.leaves, (momentum, descent))))
            cosines.append(inner / norm_of(momentum) / norm_of(descent))
        momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, momentum, descent)
        change = jax.tree_util.tree_map_with_path(
            lambda path, m, p, rate=rate: -rate * (m + decay_of(path) * p), momentum, params
        )
        params = jax.tree.map(np.add, params, change)
        norms["actor/update_norm"].append(norm_of(change))
    gap = np.abs(old - sampler)
    metrics = {name: total / count for name, (total, count) in totals.items()}
    metrics |= {name: np.mean(of) for name, of in norms.items()}
    metrics |= {"is_ratio/min": min(ratios), "is_ratio/max": max(ratios)}
    effective = sum(ratios) ** 2 / sum(r**2 for r in ratios) / len(ratios)
    metrics |= {"is_ratio/effective_sample_size/token": effective}
    metrics |= {"actor/grad_momentum_cosine": np.mean(cosines)}
    metrics |= {"mismatch/log_prob_abs_max": gap.max(), "mismatch/log_prob_abs_mean": gap.mean()}
    metrics |= {"reward/mean": rollouts.reward.mean(), "response_length/mean": len(old) / len(rows)}
    kept = np.exp(rollouts.log_kept.astype(np.float64)[rollouts.mask])
    metrics |= {"rollout/kept_mass/mean": kept.mean(), "rollout/kept_mass/min": kept.min()}
    return params, metrics


def decay_of(path):
    """Matrices of the layers decay, whatever the gradient; embeddings and scales do not."""
    return DECAY if path[0].key == "layers" and path[-1].key == "kernel" else 0.0


def norm_of(tree):
    return math.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize(
    ("gate", "weighting", "mismatch", "packing", "devices"),
    [
        ("grpo", "trajectory", "truncate", False, 1),
        pytest.param("grpo", "token", "mask", True, 1, marks=pytest.mark.long),
        pytest.param("gspo", "trajectory", "mask", True, 1, marks=pytest.mark.long),
        pytest.param("fiberpo_domain", "trajectory", "mask", False, 1, marks=pytest.mark.long),
        ("fiberpo_domain", "token", "truncate", True, 4),
        pytest.param("dppo_tv", "trajectory", "truncate", True, 1, marks=pytest.mark.long),
    ],
)
def test_an_iteration_is_the_one_written_out(
    make_config, gate, weighting, mismatch, packing, devices
):
    options, plain_gate = GATES[gate]
    config = make_config(gate)
    config.update_from_flattened_dict(
        {
            **options,
            "warm_start.steps": 0,
            "rollout.temperature": TEMPERATURE,
            "rollout.top_p": 0.9,
            "training.weighting": weighting,
            "training.mismatch": mismatch,
            "training.mismatch_cap": CAP,
            "training.packing": packing,
            "training.micro_batches": 2,
            "training.entropy_coefficient": ENTROPY,
            "training.kl_coefficient": KL,
            "optimizer.name": "sgd",
            "optimizer.schedule": "linear",
            "optimizer.learning_rate": RATE,
            "optimizer.b1": MOMENTUM,
            "optimizer.weight_decay": DECAY,
            "optimizer.clip_norm": 0.0,
            "mesh.fsdp": min(devices, 2),
            "mesh.data": max(devices // 2, 1),
        }
    )
    built = experiment.from_config(config, jax.devices()[:devices])
    start, anchor = (random_params(built.policy, built.mesh, seed=seed) for seed in (0, 1))
    trainer, given = Trainer(built, anchor), []
    sampler, rng = trainer._sampler, np.random.default_rng(0)

    class Disagreeing:
        """The sampler, with rewards to learn from and numbers that are not the trainer's."""

        read, begin = staticmethod(sampler.read), staticmethod(sampler.begin)

        def pay(self, drawn):
            rollouts = sampler.pay(drawn)
            noise = rng.normal(scale=0.2, size=rollouts.mask.shape)
            given.append(
                dataclasses.replace(
                    rollouts,
                    sampler_log_prob=(rollouts.sampler_log_prob + noise).astype(np.float32),
                    reward=rng.random(len(rollouts.reward)).astype(np.float32),
                )
            )
            return given[-1]

    trainer._sampler = Disagreeing()
    state = built.fresh_state(jax.tree.map(lambda leaf: leaf.copy(), start))
    state, scalars = trainer.iterate(state, built.prompt_stream(), 0)
    with jax.enable_x64(True):
        wide = [jax.tree.map(lambda x: np.asarray(x, np.float64), of) for of in (start, anchor)]
        expected, metrics = plain_iteration(
            built, *wide, *given, gate=plain_gate, weighting=weighting, mismatch=mismatch
        )
    # Everything takes part.
    assert 0.05 < scalars["actor/pg_clipfrac"] < 0.95
    assert len(set(given[0].mask.sum(axis=1))) > 2
    assert metrics["actor/kl_reference"] > 0.1 and metrics["is_ratio/max"] > 1.3
    for name, value in metrics.items():
        np.testing.assert_allclose(scalars[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    moved = max(
        map(np.max, jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b), expected, wide[0])))
    )
    for a, b in zip(*map(jax.tree.leaves, (state.params, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * moved)
