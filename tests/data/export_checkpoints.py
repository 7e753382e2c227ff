"""Reads every checkpoint of `tests/data/checkpoints` and writes it again, for others to read.

    python tests/data/export_checkpoints.py exported

`make_checkpoints.py exported` then has transformers compare.
"""

import sys
from pathlib import Path

import jax

from fiberjax import policy
from fiberjax.parallel import mesh, shardings
from fiberjax.policy import weights


def main() -> None:
    device_mesh = mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    for folder in sorted((Path(__file__).parent / "checkpoints").iterdir()):
        config = policy.TransformerConfig(**weights.read_shape(folder))
        abstract = jax.eval_shape(lambda config=config: policy.init(config, jax.random.key(0)))
        placed = shardings.param_shardings(device_mesh, abstract)
        params = weights.load(folder, config, placed)
        weights.save(Path(sys.argv[1]) / folder.name, config, params, dtype="float32")


if __name__ == "__main__":
    main()
