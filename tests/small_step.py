"""A compiled step and its batch, small, with every level: tests of packing and meshes share it."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import gates as presets
from fiberjax import gates, optimizers
from fiberjax.layout import make_layout
from fiberjax.parallel import mesh
from fiberjax.parallel.shardings import param_shardings, state_shardings
from fiberjax.policy import TransformerConfig, init, lora
from fiberjax.train.batch import Batch, batch_specs
from fiberjax.train.update import Knobs, StepOptions, TrainState, make_step

CONFIG = TransformerConfig(
    vocab_size=16,
    embed_dim=16,
    num_layers=1,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    mlp_dim=32,
    qk_norm=True,
    qkv_bias=True,
    tie_embeddings=False,
)
ROWS, PROMPT, COMPLETION = 16, 3, 6
# Group 0 has one trajectory; group 1 spans five rows; the rest lie anyhow over shards. Domain 1
# has one group, domain 2 none at all, and most shards hold nothing of domain 1.
GROUP = np.array([0, 1, 1, 1, 1, 1, 2, 3, 2, 3, 2, 3, 4, 4, 4, 4])
DOMAIN = np.array([1, 0, 3, 0, 3])


def make_batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    length = rng.integers(1, COMPLETION + 1, ROWS)
    length[[3, 9]] = 1
    mask = np.arange(COMPLETION) < length[:, None]
    real = np.concatenate([np.ones((ROWS, PROMPT), bool), mask], axis=1)
    layout = make_layout(
        mask,
        {"group": GROUP, "domain": DOMAIN},
        num_cells={"domain": 4},
        axis_names={"group": mesh.ROW_AXES},
    )
    shape = mask.shape
    return Batch(
        tokens=rng.integers(3, CONFIG.vocab_size, real.shape).astype(np.int32),
        positions=np.maximum(np.cumsum(real, 1) - 1, 0).astype(np.int32),
        segment_ids=real.astype(np.int32),
        layout=layout,
        advantage=np.repeat(rng.normal(size=(ROWS, 1)), COMPLETION, 1).astype(np.float32),
        old_log_prob=rng.normal(-3.0, 0.5, shape).astype(np.float32),
        reference_log_prob=rng.normal(-3.0, 0.5, shape).astype(np.float32),
        sample_weight=rng.uniform(0.5, 1.0, shape).astype(np.float32),
    )


OPTIMIZER = optimizers.make_optimizer(
    "adamw",
    optimizers.make_schedule("constant", learning_rate=1e-2, warmup_steps=0, total_steps=10),
    b1=0.9,
    b2=0.95,
    weight_decay=0.1,
    decay_all=False,
    clip_norm=1.0,
    moment_dtype="float32",
)
LEVELS = ("trajectory", "group", "domain")
GATE, BUDGETS = gates.from_config(presets.get_gate("fiberpo_domain"), LEVELS)
KNOBS = Knobs(BUDGETS, np.float32(1.0), np.float32(0.01), np.float32(0.1))
OPTIONS = StepOptions(kl_estimator="k3", entropy_bonus=True, chunk=4)


def mesh_of(shape):
    """A mesh of sizes (data, fsdp, tensor), and sequence if there is a fourth."""
    sizes = dict(zip(("data", "fsdp", "tensor", "sequence"), shape, strict=False))
    return mesh.make_mesh(sizes, jax.devices()[: int(np.prod(shape))])


def build(shape, options=OPTIONS, config=CONFIG, batch=None, gate=GATE):
    """The step, its state and its batch on a mesh of this shape.

    With adapters the state is of these, and the step is of all parameters as its base.
    """
    device_mesh = mesh_of(shape)

    def fresh() -> TrainState:
        params = init(config, jax.random.key(0))
        if options.lora is not None:
            params = lora.init(options.lora, params, jax.random.key(1))
        return TrainState(params, OPTIMIZER.init(params), jnp.zeros((), jnp.int32))

    shardings = state_shardings(device_mesh, jax.eval_shape(fresh))
    state = jax.jit(fresh, out_shardings=shardings)()
    batch = make_batch() if batch is None else batch
    placed = mesh.place(device_mesh, batch, batch_specs(batch))
    step = make_step(config, device_mesh, gate, OPTIMIZER, options, shardings)
    if options.lora is not None:
        base = init(config, jax.random.key(0))
        base = jax.device_put(base, param_shardings(device_mesh, base))
        return lambda *given: step(*given, base), state, placed
    return step, state, placed
