"""The checkpoints of `tests/data/checkpoints`, and what transformers said of them."""

from pathlib import Path

import jax
import numpy as np

from fiberjax import policy
from fiberjax.parallel import mesh, shardings
from fiberjax.policy import weights

FOLDER = Path(__file__).parents[1] / "data" / "checkpoints"
KINDS = tuple(sorted(folder.name for folder in FOLDER.iterdir()))


def config(kind: str, **changes) -> policy.TransformerConfig:
    return policy.TransformerConfig(**weights.read_shape(FOLDER / kind), **changes)


def make_mesh(shape=(1, 1, 1)):
    devices = jax.devices()[: int(np.prod(shape))]
    return mesh.make_mesh(dict(zip(("data", "fsdp", "tensor"), shape, strict=True)), devices)


def placed(config, shape=(1, 1, 1)):
    abstract = jax.eval_shape(lambda: policy.init(config, jax.random.key(0)))
    return shardings.param_shardings(make_mesh(shape), abstract)


def load(directory, config, shape=(1, 1, 1)):
    return weights.load(directory, config, placed(config, shape))


def expected(kind: str):
    return np.load(FOLDER / kind / "expected.npz")
