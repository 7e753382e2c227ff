"""Log-probabilities over a large vocabulary, in blocks and at once; nothing runs.

    python benchmarks/logprobs.py
    python benchmarks/logprobs.py --tpu

The first compiles for this machine the value and gradient of the log-probabilities of 2,048
tokens, 896 wide, over the 151,936 tokens of Qwen2.5: by `policy.chunked_token_outputs`, as many
logits at a time as some columns have, and as they are usually written, `log_softmax` of all logits
and a gather. What is read is the compiler's account of its temporaries, which does not depend on
who else is running. The second compiles the same for TPUs, in bfloat16, over several shapes of a
micro-batch, and reads the traffic with HBM and the compiler's estimate of its cycles. Both print a
table and save it as `logprobs.json` or `logprobs_tpu.json` in the folder `--output`.
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
    return {"temporary_bytes": temporary_bytes(program)}


def temporary_bytes(program: Any) -> int:
    """The compiler's account of a program's temporaries."""
    return program.memory_analysis().temp_size_in_bytes


def naive(hidden: Any, kernel: Any, targets: Any) -> Any:
    """As it is usually written: all logits, their `log_softmax`, and a gather."""
    import jax
    import jax.numpy as jnp

    log_prob = jax.nn.log_softmax(hidden @ kernel.T, axis=-1)
    return jnp.take_along_axis(log_prob, targets[..., None], axis=-1)[..., 0]


def in_chunks(chunk: int) -> Callable:
    """Ours, as many logits at a time as `chunk` columns have."""
    from fiberjax.policy import chunked_token_outputs

    def log_probs(hidden: Any, kernel: Any, targets: Any) -> Any:
        outputs = chunked_token_outputs(
            hidden, kernel, targets, temperature=1.0, chunk=chunk, entropy_gradient=False
        )
        return outputs.log_prob

    return log_probs


def by_columns(chunk: int) -> Callable:
    """The other way to have few logits: those of `chunk` columns, of all the vocabulary."""
    import jax

    def log_probs(hidden: Any, kernel: Any, targets: Any) -> Any:
        table = kernel.astype(hidden.dtype)

        def parts(x: Any) -> Any:
            return x.reshape(len(x), -1, chunk, *x.shape[2:]).swapaxes(0, 1)

        def of_part(part: Any) -> Any:
            return jax.checkpoint(naive)(part[0], table, part[1])

        return jax.lax.map(of_part, (parts(hidden), parts(targets)))

    return log_probs


FORMS = {
    "at once": naive,
    "512 columns at a time": by_columns(512),
    "128 columns at a time": by_columns(128),
    "64 MiB at a time (ours)": in_chunks(0),
}


def on_chips(shapes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """What the forms cost on a chip of each kind, for micro-batches of these rows and columns."""
    from fiberjax.plans import topologies

    topologies.compile_environment()
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from fiberjax.plans import costs, hlo

    found: list[dict[str, Any]] = []
    for kind in ("v5e", "v6e"):
        topology = topologies.parse_topology(f"{kind}:2x2")
        sharding = SingleDeviceSharding(topologies.describe_devices(topology)[0])
        peak = topology.chip.peak_flops / topology.chip.devices

        def abstract(shape: tuple[int, ...], dtype: Any, sharding: Any = sharding) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        for rows, columns in shapes:
            for name, form in FORMS.items():

                def loss(hidden: Any, kernel: Any, targets: Any, form: Callable = form) -> Any:
                    return form(hidden, kernel, targets).astype(jnp.float32).sum()

                lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(
                    abstract((rows, columns, WIDTH), jnp.bfloat16),
                    abstract((VOCABULARY, WIDTH), jnp.float32),
                    abstract((rows, columns), jnp.int32),
                )
                about: dict[str, Any] = {
                    "chip": kind,
                    "rows": rows,
                    "columns": columns,
                    "form": name,
                }
                found.append(about)
                try:
                    program = lowered.compile()
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    continue
                module = hlo.parse(str(program.as_text()))
                about |= {
                    "hbm_bytes": costs.hbm_bytes(module),
                    "temporary_bytes": temporary_bytes(program),
                    "estimated_cycles": costs.estimated_cycles(module),
                    "arithmetic_seconds": costs.flops(module) / peak,
                }
    return found


def main() -> None:
    """Compiles, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tpu", action="store_true", help="Compile for TPUs in place of this CPU.")
    parser.add_argument("--output", type=pathlib.Path)
    given = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if given.tpu:
        found: Any = on_chips([(1, 4096), (4, 3072), (8, 3072)])
        print("| chip | rows × columns | logits | HBM, GB | temporaries, GB | cycles, 10⁶ |")
        print("|---|---|---|---|---|---|")
        for of in found:
            shown = ["does not fit", "", ""]
            if "hbm_bytes" in of:
                shown = [f"{of[f'{key}_bytes'] / 1e9:.1f}" for key in ("hbm", "temporary")]
                shown.append(f"{of['estimated_cycles'] / 1e6:.0f}")
            cells = of["chip"], f"{of['rows']} × {of['columns']:,}", of["form"], *shown
            print(f"| {' | '.join(cells)} |")
    else:
        forms = {"log_softmax and gather": naive}
        forms |= {f"{chunk} columns at a time": in_chunks(chunk) for chunk in CHUNKS}
        found = {name: compiled(form) for name, form in forms.items()}
        print("| form | temporaries, GB |\n|---|---|")
        for name, of in found.items():
            print(f"| {name} | {of['temporary_bytes'] / 1e9:.3f} |")
    if given.output:
        name = "logprobs_tpu.json" if given.tpu else "logprobs.json"
        (given.output / name).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
