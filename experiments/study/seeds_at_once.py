r"""Whether many seeds in one program are faster than one after the other.

    python -m experiments.study.seeds_at_once

Prints, for an optimizer batch of the study, the time of one update of each of k policies by one
program (`vmap`) over k times that of one, trajectories unpacked. The study takes seeds one after
the other all the same: packed, an update takes about half as long, and packing needs of every batch
its own number of rows, where `vmap` needs one for all.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from configs import quickstart
from experiments.study.settings import BASE
from fiberjax import experiment
from fiberjax.layout import make_layout
from fiberjax.parallel import distributed, mesh
from fiberjax.run.warm_start import random_params
from fiberjax.tasks import loading
from fiberjax.train.batch import Batch
from fiberjax.train.update import make_step

REPEATS = flags.DEFINE_integer("repeats", 5, "Timed updates; the quickest counts.")
AT_ONCE = (2, 4, 8)


def make_batch(rng: np.random.Generator, built: experiment.Experiment) -> Batch:
    """Random answers of the length that the quickstart's have, on one device."""
    rows = BASE["rollout.prompts"] * BASE["rollout.samples"] // BASE["training.minibatches"]
    prompt, completion = built.window.prompt, built.window.completion
    length = rng.integers(2, completion + 1, rows)
    mask = np.arange(completion) < length[:, None]
    real = np.concatenate([np.ones((rows, prompt), bool), mask], axis=1)
    group = np.arange(rows) // BASE["rollout.samples"]
    return Batch(
        tokens=jnp.asarray(rng.integers(0, built.policy.vocab_size, real.shape, np.int32)),
        positions=np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32),
        segment_ids=jnp.asarray(real, jnp.int32),
        layout=make_layout(
            mask,
            {"group": group, "domain": np.arange(group.max() + 1) % 5},
            axis_names={"group": mesh.ROW_AXES},
        ),
        advantage=rng.normal(size=mask.shape).astype(np.float32),
        old_log_prob=rng.normal(-3, 0.5, mask.shape).astype(np.float32),
        reference_log_prob=jnp.zeros(mask.shape),
        sample_weight=jnp.ones(mask.shape),
    )


def seconds(update: Callable, state, batch, knobs) -> float:
    """The quickest of several calls, compilation aside."""
    jax.block_until_ready(update(jax.tree.map(jnp.copy, state), batch, knobs))
    found = []
    for _ in range(REPEATS.value):
        fresh = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        began = time.perf_counter()
        jax.block_until_ready(update(fresh, batch, knobs))
        found.append(time.perf_counter() - began)
    return min(found)


def main(argv: list[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    distributed.leave_out_absent_tpus()
    config = quickstart.get_config("silent_domain")
    config.rollout.prompts = BASE["rollout.prompts"]
    config.training.minibatches = BASE["training.minibatches"]
    built = experiment.from_config(config, jax.devices()[:1], loading.named_domains)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, built.abstract_state())
    step = make_step(built.policy, built.mesh, built.gate, built.optimizer, built.step, shardings)
    rng = np.random.default_rng(0)

    def many(k: int) -> tuple:
        states = [
            built.fresh_state(random_params(built.policy, built.mesh, seed)) for seed in range(k)
        ]
        batches = [make_batch(rng, built) for _ in range(k)]
        return tuple(jax.tree.map(lambda *x: jnp.stack(x), *trees) for trees in (states, batches))

    state, batch = (jax.tree.map(lambda x: x[0], tree) for tree in many(1))
    one = seconds(step, state, batch, built.knobs)
    print(f"one update: {one:.3f} s")
    together = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))
    for k in AT_ONCE:
        states, batches = many(k)
        ratio = seconds(together, states, batches, built.knobs) / (k * one)
        print(f"{k} at once, over one after the other: {ratio:.2f}", flush=True)


if __name__ == "__main__":
    app.run(main)
