"""Temporaries of log-probabilities over a large vocabulary, in chunks and at once; nothing runs.

    python benchmarks/logprobs.py

The value and gradient of the log-probabilities of 2,048 tokens, 896 wide, over the 151,936 tokens
of Qwen2.5 are compiled for this machine: by `policy.chunked_token_outputs` in chunks of several
sizes, and as they are usually written, `log_softmax` of all logits and a gather. What is read is
the compiler's account of its temporaries, which does not depend on who else is running. Prints a
table and saves `logprobs.json` in the folder `--output`.
"""

import argparse
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

ROWS, COLUMNS, WIDTH, VOCABULARY = 4, 512, 896, 151_936
CHUNKS = (512, 128, 32, 8)


def compiled(log_probs: Callable) -> dict[str, float]:
    """Bytes of temporaries of the value and both gradients."""
    import jax
    import jax.numpy as jnp

    def loss(hidden: Any, kernel: Any, targets: Any) -> Any:
        return log_probs(hidden, kernel, targets).sum()

    program = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        .lower(
            jax.ShapeDtypeStruct((ROWS, COLUMNS, WIDTH), jnp.float32),
            jax.ShapeDtypeStruct((VOCABULARY, WIDTH), jnp.float32),
            jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.int32),
        )
        .compile()
    )
    return {"temporary_bytes": program.memory_analysis().temp_size_in_bytes}


def naive(hidden: Any, kernel: Any, targets: Any) -> Any:
    """As it is usually written: all logits, their `log_softmax`, and a gather."""
    import jax
    import jax.numpy as jnp

    log_prob = jax.nn.log_softmax(hidden @ kernel.T, axis=-1)
    return jnp.take_along_axis(log_prob, targets[..., None], axis=-1)[..., 0]


def in_chunks(chunk: int) -> Callable:
    """Ours, with logits of `chunk` columns at a time."""
    from fiberjax.policy import chunked_token_outputs

    def log_probs(hidden: Any, kernel: Any, targets: Any) -> Any:
        outputs = chunked_token_outputs(
            hidden, kernel, targets, temperature=1.0, chunk=chunk, entropy_gradient=False
        )
        return outputs.log_prob

    return log_probs


def main() -> None:
    """Compiles, prints and saves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path)
    given = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    forms = {"log_softmax and gather": naive}
    forms |= {f"chunks of {chunk} columns": in_chunks(chunk) for chunk in CHUNKS}
    found = {name: compiled(form) for name, form in forms.items()}
    print("| form | temporaries, GB |\n|---|---|")
    for name, of in found.items():
        print(f"| {name} | {of['temporary_bytes'] / 1e9:.3f} |")
    if given.output:
        (given.output / "logprobs.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
