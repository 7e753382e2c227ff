"""The supervised warm start: next-token training on solved examples, saved and reused.

Reinforcement learning needs a policy that is sometimes right. A warm start is kept under the digest
of everything it depends on, by content: the tokens that are taught, the bytes of published weights.
So every run that is taught the same starts from the same parameters, and runs that differ in the
gate alone share one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from fiberjax import optimizers, seeds, storage
from fiberjax.experiment import Experiment
from fiberjax.finite import NotFinite, finite
from fiberjax.options import WarmStart
from fiberjax.parallel import mesh, shardings
from fiberjax.policy import TransformerConfig, init, token_outputs, weights
from fiberjax.run import checkpoints, refused
from fiberjax.run.progress import Progress
from fiberjax.tasks import SupervisedBatch
from fiberjax.train.update import TERMS


def starting_params(experiment: Experiment) -> Any:
    """The parameters an experiment starts from, on its mesh; see `warm_start`."""
    options, folder = experiment.warm_start, experiment.model.folder
    if options.steps == 0:
        return initial_params(folder, experiment.policy, experiment.mesh, seed=experiment.seed)
    return warm_start(
        options,
        experiment.policy,
        experiment.mesh,
        experiment.supervised_stream,
        folder=folder,
        chunk=experiment.training.chunk,
        seed=experiment.seed,
        depends_on=[dataclasses.asdict(experiment.window), experiment.examples.digest()],
    )


def initial_params(
    directory: str, config: TransformerConfig, device_mesh: Mesh, *, seed: int
) -> Any:
    """Parameters before any training: of a published checkpoint, or random where it is ""."""
    if directory:
        return published_params(config, device_mesh, directory)
    return random_params(config, device_mesh, seed)


def random_params(config: TransformerConfig, device_mesh: Mesh, seed: int) -> Any:
    """Random parameters, made on the mesh in their shardings."""

    def make() -> Any:
        return init(config, jax.random.fold_in(jax.random.key(seed), seeds.INITIALISATION))

    placed = shardings.param_shardings(device_mesh, jax.eval_shape(make))
    return jax.jit(make, out_shardings=placed)()


def published_params(config: TransformerConfig, device_mesh: Mesh, directory: str) -> Any:
    """Parameters of a published checkpoint, each device's part read onto it.

    Raises:
      Unreadable: it is missing or does not fit, see `weights.check`; or it holds a number that is
        not finite.
    """
    abstract = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    placed = shardings.param_shardings(device_mesh, abstract)
    with refused.reading():
        params = weights.load(directory, config, placed)
    broken = not_finite(device_mesh, params)
    if broken:
        raise refused.Unreadable(
            f"config.model.folder = {directory!r}: a tensor is not finite: "
            f"{weights.where_not_finite(directory, config, broken)}"
        )
    return params


def not_finite(device_mesh: Mesh, params: Any) -> list[str]:
    """The paths of the parameters, or of a state, that hold a NaN or an infinity."""

    def flags_of(params: Any) -> Any:
        return jax.tree.map(finite, params)

    replicated = NamedSharding(device_mesh, mesh.REPLICATED)
    flags = jax.device_get(jax.jit(flags_of, out_shardings=replicated)(params))
    return [
        shardings.path_name(path)
        for path, fine in jax.tree_util.tree_flatten_with_path(flags)[0]
        if not fine
    ]


def warm_start(
    options: WarmStart,
    config: TransformerConfig,
    device_mesh: Mesh,
    batches: Callable[[], Iterable[SupervisedBatch]],
    *,
    folder: str,
    chunk: int,
    seed: int,
    depends_on: Any,
) -> Any:
    """The warm-started parameters: read from disk if they were made before, else trained.

    Runs that start at the same time may each train them; the first to finish is kept, and all start
    from what was kept. What is damaged since is made anew, and that is said.

    Args:
      options: the phase's options.
      config: shape of the policy.
      device_mesh: from `mesh.make_mesh`.
      batches: makes the endless stream of this process's rows.
      folder: of the published checkpoint to begin with; "" begins with random parameters.
      chunk: as many logits exist at a time as so many columns have; 0: as 64 MiB hold.
      seed: of the initial parameters and of the stream.
      depends_on: JSON-like; what else the result depends on: what is taught, and the windows.

    Returns:
      Parameters on the mesh, all finite.

    Raises:
      NotFinite: training diverged; names the step, what of it was not finite, and the
        loss. Nothing is kept.
    """
    settings = {k: v for k, v in dataclasses.asdict(options).items() if k != "directory"}
    with refused.reading():
        settings["weights"] = weights.fingerprint(folder) if folder else ""
    shape = dataclasses.asdict(config)
    directory = storage.place(options.directory) / _digest([settings, shape, seed, depends_on])
    abstract = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    abstract = shardings.abstract(abstract, shardings.param_shardings(device_mesh, abstract))
    if checkpoints.exists(directory):
        try:
            return checkpoints.read(directory, abstract).state
        except checkpoints.Damaged as error:
            if jax.process_index() == 0:
                print(f"the warm start is made anew: {error}")
            checkpoints.discard(directory)
    params = initial_params(folder, config, device_mesh, seed=seed)
    params = _train(options, config, device_mesh, params, batches(), chunk)
    host = {"settings": settings, "policy": shape}
    if checkpoints.save_first(directory, options.steps, params, host):
        return params
    del params
    return checkpoints.read(directory, abstract).state


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _train(
    options: WarmStart,
    config: TransformerConfig,
    device_mesh: Mesh,
    params: Any,
    batches: Iterable[SupervisedBatch],
    chunk: int,
) -> Any:
    """Trains the parameters, which are donated; raises at a step that is not finite."""
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
        decay_all=False,
        clip_norm=1.0,
        moment_dtype="float32",
    )
    param_shardings = shardings.param_shardings(device_mesh, params)
    opt_shardings = shardings.state_shardings(device_mesh, jax.eval_shape(optimizer.init, params))
    opt_state = jax.jit(optimizer.init, out_shardings=opt_shardings)(params)

    def step(
        params: Any, opt_state: Any, tokens: Any, positions: Any, segment_ids: Any, loss_mask: Any
    ) -> tuple[Any, Any, jax.Array, dict[str, jax.Array]]:
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
        params = optax.apply_updates(params, updates)
        flags = {
            "loss": finite(value),
            "gradient": finite(gradient),
            "state": finite((params, opt_state)),
        }
        return params, opt_state, value, flags

    replicated = NamedSharding(device_mesh, mesh.REPLICATED)
    compiled = jax.jit(
        step,
        donate_argnums=(0, 1),
        out_shardings=(param_shardings, opt_shardings, replicated, replicated),
    )
    iterator = iter(batches)
    before: tuple[jax.Array, dict[str, jax.Array]] | None = None
    with Progress(options.steps, "warm start", log_every=100) as progress:
        for index in range(options.steps):
            batch = next(iterator)
            arrays = (batch.tokens, batch.positions, batch.segment_ids, batch.loss_mask[:, 1:])
            placed = mesh.place(device_mesh, arrays, mesh.ROWS)
            params, opt_state, *made = compiled(params, opt_state, *placed)
            # What the step before made is ready while this one runs.
            shown = {} if before is None else {"loss": _sound(index, *before)}
            before = (made[0], made[1])
            progress.update(index + 1, **shown)
    assert before is not None  # There is a step: a warm start of none is none.
    _sound(options.steps, *before)
    return params


def _sound(step: int, loss: jax.Array, flags: dict[str, jax.Array]) -> float:
    """The loss of a step, counted from 1, as a number; raises where anything is not finite."""
    loss, flags = jax.device_get((loss, flags))
    broken = [term for term in TERMS if not flags.get(term, True)]
    if broken:
        raise NotFinite(
            f"the warm start is not finite at step {step} in {', '.join(broken)}, at a loss of "
            f"{float(loss)}; nothing is kept"
        )
    return float(loss)
