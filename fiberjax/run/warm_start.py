"""The supervised warm start: next-token training on solved examples, saved and reused.

Reinforcement learning needs a policy that is sometimes right. A warm start is kept under the digest
of everything it depends on, so that every run with the same data, policy and seed starts from the
same parameters, and runs that differ in the gate alone share one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from fiberjax import optimizers, seeds
from fiberjax.experiment import Experiment
from fiberjax.options import WarmStart
from fiberjax.parallel import mesh, shardings
from fiberjax.policy import TransformerConfig, init, token_outputs, weights
from fiberjax.run.checkpoints import Checkpoints
from fiberjax.run.progress import Progress
from fiberjax.tasks import Examples, SupervisedBatch
from fiberjax.tasks.builders import VERSION


def starting_params(experiment: Experiment) -> Any:
    """The parameters an experiment starts from, on its mesh; see `warm_start`."""
    tasks = dataclasses.asdict(experiment.tasks)
    file = tasks["file"]
    tasks |= {"data_dir": "", "test_file": ""}  # Neither changes what is trained on.
    return warm_start(
        experiment.warm_start,
        experiment.policy,
        experiment.mesh,
        experiment.supervised_stream,
        chunk=experiment.training.chunk,
        seed=experiment.seed,
        depends_on=[
            tasks,
            dataclasses.asdict(experiment.window),
            repr(Examples(experiment.train)),
            hashlib.blake2b(Path(file).read_bytes()).hexdigest() if file else VERSION,
        ],
    )


def random_params(config: TransformerConfig, device_mesh: Mesh, seed: int) -> Any:
    """Random parameters, made on the mesh in their shardings."""

    def make() -> Any:
        return init(config, jax.random.fold_in(jax.random.key(seed), seeds.INITIALISATION))

    placed = shardings.param_shardings(device_mesh, jax.eval_shape(make))
    return jax.jit(make, out_shardings=placed)()


def published_params(config: TransformerConfig, device_mesh: Mesh, directory: str) -> Any:
    """Parameters of a published checkpoint, each device's part read onto it.

    Raises:
      ValueError: it is missing or does not fit; see `weights.check`.
    """
    abstract = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return weights.load(directory, config, shardings.param_shardings(device_mesh, abstract))


def warm_start(
    options: WarmStart,
    config: TransformerConfig,
    device_mesh: Mesh,
    batches: Callable[[], Iterable[SupervisedBatch]],
    *,
    chunk: int,
    seed: int,
    depends_on: Any,
) -> Any:
    """The warm-started parameters: read from disk if they were made before, else trained.

    Args:
      options: the phase's options.
      config: shape of the policy.
      device_mesh: from `mesh.make_mesh`.
      batches: makes the endless stream of this process's rows.
      chunk: columns whose logits exist at a time.
      seed: of the initial parameters.
      depends_on: JSON-like; what else the result depends on (data, window, data seed).

    Returns:
      Parameters on the mesh.
    """
    if options.weights:
        params = published_params(config, device_mesh, options.weights)
    else:
        params = random_params(config, device_mesh, seed)
    if options.steps == 0:
        return params
    settings = {k: v for k, v in dataclasses.asdict(options).items() if k != "directory"}
    if options.weights:
        settings["weights"] = weights.fingerprint(options.weights)
    shape = dataclasses.asdict(config)
    digest = _digest([settings, shape, seed, depends_on])
    placed = shardings.param_shardings(device_mesh, params)
    with Checkpoints(Path(options.directory) / digest, keep=1) as saved:
        found = saved.restore(shardings.abstract(params, placed))
        if found is not None:
            return found.state
        params = _train(options, config, device_mesh, params, placed, batches(), chunk)
        saved.save(options.steps, params, {"settings": settings, "policy": shape})
    return params


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _train(
    options: WarmStart,
    config: TransformerConfig,
    device_mesh: Mesh,
    params: Any,
    param_shardings: Any,
    batches: Iterable[SupervisedBatch],
    chunk: int,
) -> Any:
    optimizer = optimizers.make_optimizer(
        options.optimizer,
        optimizers.make_schedule(
            "cosine",
            learning_rate=options.learning_rate,
            warmup_steps=options.steps // 10,
            total_steps=options.steps,
        ),
        b1=0.9,
        b2=0.95,
        weight_decay=options.weight_decay,
        clip_norm=1.0,
        moment_dtype="float32",
    )
    opt_shardings = shardings.state_shardings(device_mesh, jax.eval_shape(optimizer.init, params))
    opt_state = jax.jit(optimizer.init, out_shardings=opt_shardings)(params)

    def step(
        params: Any, opt_state: Any, tokens: Any, positions: Any, segment_ids: Any, loss_mask: Any
    ) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            outputs = token_outputs(
                config,
                params,
                tokens,
                positions,
                segment_ids,
                start=1,
                temperature=1.0,
                chunk=chunk,
                placement=shardings.placement(device_mesh, config),
            )
            return -jnp.sum(outputs.log_prob, where=loss_mask) / jnp.sum(loss_mask)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    replicated = NamedSharding(device_mesh, mesh.REPLICATED)
    compiled = jax.jit(
        step, donate_argnums=(0, 1), out_shardings=(param_shardings, opt_shardings, replicated)
    )
    iterator = iter(batches)
    pending: jax.Array | None = None
    with Progress(options.steps, "warm start", log_every=100) as progress:
        for index in range(options.steps):
            batch = next(iterator)
            arrays = (batch.tokens, batch.positions, batch.segment_ids, batch.loss_mask[:, 1:])
            placed = mesh.place(device_mesh, arrays, mesh.ROWS)
            previous = pending
            params, opt_state, pending = compiled(params, opt_state, *placed)
            # The loss of the step before is ready while this one runs.
            shown = {} if previous is None else {"loss": float(previous)}
            progress.update(index + 1, **shown)
    return params
