"""Optax optimizers and schedules by name."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from fiberjax import segments
from fiberjax.objective import Mean

OPTIMIZERS = ("adamw", "muon", "sgd")
SCHEDULES = ("constant", "linear", "cosine")
MOMENT_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Where Optax's states keep a first moment.
_MOMENTS = {optax.ScaleByAdamState: "mu", optax.contrib.MuonState: "mu", optax.TraceState: "trace"}
# Root mean square of an entry of Adam's normalised update, as found in practice
# (arXiv 2502.16982, section 2.2).
_ADAM_RMS = 0.2


def make_schedule(
    name: str, *, learning_rate: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """A learning rate by step: linear warm-up, then constant, or down to 0 at `total_steps`.

    Args:
      name: one of `SCHEDULES`.
      learning_rate: the peak.
      warmup_steps: steps from 0 to the peak.
      total_steps: steps of the whole run, warm-up included.

    Raises:
      ValueError: an unknown name, or a warm-up longer than the run.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {name!r}")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warmup_steps must be between 0 and the {total_steps} steps of the run; "
            f"got {warmup_steps}"
        )
    decay_steps = max(total_steps - warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(learning_rate, decay_steps),
    }[name]
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    decay_all: bool,
    clip_norm: float,
    moment_dtype: str,
) -> optax.GradientTransformation:
    """An Optax chain: clip by global norm, then the named optimizer with decoupled weight decay.

        θ ← θ − η (direction + λ θ)

    where the direction is Adam's, Muon's, or the gradient with momentum, and λ is 0 for what does
    not decay. Only the matrices of the layers decay, those that Muon orthogonalises. Norm scales
    and biases are to keep their size, and decay would take from the embeddings and the head what
    they know of tokens that do not occur.

    Args:
      name: one of `OPTIMIZERS`. Muon orthogonalises the updates of matrices, scaled to the size of
        Adam's so that one learning rate serves both, and leaves embeddings, head, norms and biases
        to Adam.
      schedule: learning rate by step.
      b1: decay of the first moment (momentum of Muon; of SGD, 0 for none).
      b2: decay of the second moment.
      weight_decay: λ, per unit of learning rate.
      decay_all: AdamW and SGD decay every parameter, SGD through its momentum; Muon's Adam decays
        none all the same.
      clip_norm: largest global norm of the gradient; 0 leaves it alone.
      moment_dtype: "float32" or "bfloat16", of the first moment.

    Raises:
      ValueError: an unknown name, or a number out of range.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {name!r}")
    if moment_dtype not in MOMENT_DTYPES:
        raise ValueError(
            f"moment_dtype must be one of {', '.join(MOMENT_DTYPES)}; got {moment_dtype!r}"
        )
    for key, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"{key} must be in [0, 1); got {value}")
    for key, value in (("weight_decay", weight_decay), ("clip_norm", clip_norm)):
        if not value >= 0:
            raise ValueError(f"{key} must be at least 0; got {value}")
    dtype = MOMENT_DTYPES[moment_dtype]
    decayed = None if decay_all else _of_layer_matrices
    if name == "adamw":
        base = optax.adamw(
            schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed, mu_dtype=dtype
        )
    elif name == "muon":
        base = optax.contrib.muon(
            schedule,
            beta=b1,
            adam_b1=b1,
            adam_b2=b2,
            weight_decay=weight_decay,
            mu_dtype=dtype,
            consistent_rms=_ADAM_RMS,
            muon_weight_dimension_numbers=_muon_dimensions,
        )
    elif decay_all:
        # As the first runs had it, so that they go on: decay passes through the momentum.
        base = optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.sgd(schedule, momentum=b1 if b1 > 0 else None, accumulator_dtype=dtype),
        )
    else:
        base = optax.chain(
            optax.trace(b1, accumulator_dtype=dtype) if b1 > 0 else optax.identity(),
            optax.add_decayed_weights(weight_decay, decayed),
            optax.scale_by_learning_rate(schedule),
        )
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity()
    return optax.chain(clip, base)


def momentum(opt_state: Any, params: Any) -> Any | None:
    """The first moment that an optimizer keeps of its gradients; a tree like the parameters.

    Args:
      opt_state: of `make_optimizer`, alone or among other states; of any optimizer made of Optax's
        Adam, Muon and `trace`.
      params: tree of arrays, whose structure alone is read.

    Returns:
      For each parameter the decayed mean (Adam, Muon) or sum (SGD) of its gradients so far, after
      clipping; SGD that decays every parameter adds the decay. None where not every parameter has
      exactly one, as under SGD without momentum.
    """

    def keeps_one(node: object) -> bool:
        return isinstance(node, tuple(_MOMENTS))

    # Muon and its Adam share the parameters out: each one's tree lacks those of the other.
    found = [
        entry
        for node in jax.tree.leaves(opt_state, is_leaf=keeps_one)
        if keeps_one(node)
        for entry in jax.tree_util.tree_leaves_with_path(getattr(node, _MOMENTS[type(node)]))
    ]
    by_path = dict(found)
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    if len(by_path) != len(found) or by_path.keys() != {path for path, _ in paths}:
        return None
    return jax.tree.unflatten(structure, [by_path[path] for path, _ in paths])


def cosine(first: Any, second: Any) -> Mean:
    """The cosine of the angle between two trees of arrays; a `Mean` of one, or of none.

    Args:
      first: pytree of float arrays, such as a gradient.
      second: another of the same structure and shapes.

    Returns:
      `⟨a, b⟩ / (‖a‖ ‖b‖)` in float32, counted once; not counted where one of them is 0.

    >>> float(cosine([jnp.array([3.0, 0.0])], [jnp.array([1.0, 1.0])]).value).__round__(4)
    0.7071
    """
    wide = [jax.tree.map(lambda x: x.astype(jnp.float32), tree) for tree in (first, second)]
    norms = optax.tree.norm(wide[0]) * optax.tree.norm(wide[1])
    angle = segments.safe_divide(optax.tree.vdot(*wide), norms)
    return Mean(angle, (norms != 0).astype(jnp.float32))


def _of_layer_matrices(params: Any) -> Any:
    """Which parameters are matrices of the stacked layers, `[layer, (expert,) in, out]`: bools.

    The two matrices of an adapter are each one.
    """

    def is_one(path: tuple, leaf: object) -> bool:
        names = [entry.key for entry in path]
        return names[0] == "layers" and names[-1] in ("kernel", "lora_a", "lora_b")

    return jax.tree_util.tree_map_with_path(is_one, params)


def _muon_dimensions(params: Any) -> Any:
    """Where Muon finds the two sides of its matrices; None for what it leaves to Adam.

    They are the last two axes; each layer, and each expert of a layer, has a matrix of its own.
    """

    def sides(matrix: bool, leaf: Any) -> Any:
        if not matrix:
            return None
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree.map(sides, _of_layer_matrices(params), params)
