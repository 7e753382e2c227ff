"""Speed of one train step and of the sampler, beside google-tunix on the same shapes.

    python benchmarks/train_step.py               # both sides
    python benchmarks/train_step.py --no-tunix    # ours alone

Ours: the compiled step of `fiberjax.train.update` with the FiberPO-Domain gate, all its levels and
its metrics, and `fiberjax.policy.sample`. Theirs: the jitted GRPO step of tunix's trainer and its
sampler, over its Qwen3. The policies have the same shape and number of parameters, the batches the
same numbers; float32, AdamW, no reference policy, old log-probabilities given, on both sides.

tunix is no dependency of fiberjax: `uv` makes an environment of its own for it, and it runs in a
process of its own. Beside them stands a limit of steps: the matrix products that the policy's
parameters need for these tokens, forward and back, and nothing else. All take turns, one
measurement each, so that other load on the machine meets all. Prints a table and saves
`train_step.json` in the folder `--output`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.sides import Ask, Timing, other_side, python_with, summary, timed
from configs.gates import get_gate
from fiberjax import gates
from fiberjax.layout import make_layout
from fiberjax.parallel import distributed, mesh
from fiberjax.parallel.shardings import state_shardings
from fiberjax.policy import TransformerConfig, init, num_params, sample, token_outputs
from fiberjax.train import packing
from fiberjax.train.batch import Batch, batch_specs
from fiberjax.train.update import Knobs, StepOptions, TrainState, make_step

TUNIX = "google-tunix==0.1.7"
POLICY = TransformerConfig(
    vocab_size=2048,
    embed_dim=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    mlp_dim=768,
    rope_theta=1e6,
    norm_epsilon=1e-6,
    qk_norm=True,
)
PROMPTS, SAMPLES, PROMPT, COMPLETION, DOMAINS = 8, 4, 32, 128, 4
ROWS = PROMPTS * SAMPLES
PAD, EOS = 0, 1
LEARNING_RATE, WEIGHT_DECAY = 1e-5, 0.01


def problem(params: Any) -> dict[str, np.ndarray]:
    """The numbers both sides train on; `ragged` masks completions of 1 to 128 tokens, bool[B, T].

    Old log-probabilities are near our policy's own, so that the gates act on real drifts.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, POLICY.vocab_size, (ROWS, PROMPT + COMPLETION), dtype=np.int32)
    positions = np.tile(np.arange(PROMPT + COMPLETION, dtype=np.int32), (ROWS, 1))
    rows = (jnp.asarray(x) for x in (tokens, positions, np.ones_like(tokens)))
    outputs = token_outputs(POLICY, params, *rows, start=PROMPT, temperature=1.0, chunk=COMPLETION)
    drift = rng.normal(0, 0.08, (ROWS, COMPLETION))
    return {
        "prompts": tokens[:, :PROMPT],
        "completions": tokens[:, PROMPT:],
        "ragged": np.arange(COMPLETION) < rng.integers(1, COMPLETION + 1, ROWS)[:, None],
        "advantage": rng.normal(size=ROWS).astype(np.float32),
        "old_log_prob": (np.asarray(outputs.log_prob) + drift).astype(np.float32),
    }


def make_batch(data: dict[str, np.ndarray], mask: np.ndarray) -> Batch:
    """Our batch of these completion tokens, host arrays, one trajectory a row."""
    real = np.concatenate([np.ones((ROWS, PROMPT), bool), mask], axis=1)
    tokens = np.concatenate([data["prompts"], data["completions"]], axis=1)
    by_token: Any = np.repeat(data["advantage"][:, None], COMPLETION, axis=1)
    host: Any = {
        "tokens": np.where(real, tokens, PAD),
        "positions": np.maximum(np.cumsum(real, axis=1, dtype=np.int32) - 1, 0),
        "segment_ids": real.astype(np.int32),
        "old_log_prob": data["old_log_prob"],
        "reference_log_prob": np.zeros(mask.shape, np.float32),
        "sample_weight": np.ones(mask.shape, np.float32),
    }
    layout = make_layout(
        mask,
        {"group": np.arange(ROWS) // SAMPLES, "domain": np.arange(PROMPTS) % DOMAINS},
        num_cells={"domain": DOMAINS},
        axis_names={"group": mesh.ROW_AXES},
    )
    return Batch(layout=layout, advantage=by_token, **host)


def limit(params: Any, data: dict[str, np.ndarray]) -> dict[str, Callable[[], Timing]]:
    """What a step needs at least, by name: its products with matrices, at what jax takes for them.

    A matrix takes three products of one size, for its output and for both gradients; those of the
    layers for every real token, the table of the vocabulary for completion tokens alone. Attention
    is left out, some 4 % of the arithmetic, and so is everything that is no product.
    """
    vocabulary = params["embed"]["kernel"].T.shape
    kernels = [leaf.shape[1:] for leaf in jax.tree.leaves(params["layers"]) if leaf.ndim == 3]

    @jax.jit
    def forward(x, w):
        return x @ w

    @jax.jit
    def backward(x, w, dy):
        return dy @ w.T, x.T @ dy

    def products(completion: int) -> Callable[[], int]:
        sizes = [(ROWS * PROMPT + completion, *shape) for shape in kernels * POLICY.num_layers]
        sizes.append((completion, *vocabulary))
        held = {size: _operands(*size) for size in sizes}

        def all_products() -> int:
            for size in sizes:
                x, w, dy = held[size]
                jax.block_until_ready((forward(x, w), backward(x, w, dy)))
            return completion

        return all_products

    full, ragged = products(ROWS * COMPLETION), products(int(data["ragged"].sum()))
    return {
        "step": lambda: timed(full),
        "ragged": lambda: timed(ragged),
        "packed": lambda: timed(ragged),
    }


def _operands(rows: int, inputs: int, outputs: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random float32 of a product's input [rows, inputs], matrix, and cotangent [rows, outputs]."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (rows, inputs), (inputs, outputs), (rows, outputs)
    x, w, dy = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    return x, w, dy


def our_side(params: Any, data: dict[str, np.ndarray]) -> dict[str, Callable[[], Timing]]:
    """What we measure by name: the full step, the ragged one, the same packed, the sampler."""
    device_mesh = mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    levels = ("trajectory", "group", "domain")
    gate, budgets = gates.from_config(get_gate("fiberpo_domain"), levels)
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    start = jax.tree.map(jnp.copy, params)
    state = TrainState(start, optimizer.init(start), jnp.zeros((), jnp.int32))
    shardings = state_shardings(device_mesh, state)
    step = make_step(POLICY, device_mesh, gate, optimizer, StepOptions(), shardings)
    knobs = Knobs(budgets, np.float32(1), np.float32(0), np.float32(0))
    held = {"state": jax.device_put(state, shardings)}
    ragged = make_batch(data, data["ragged"])
    fewer = packing.choose(device_mesh, ragged.segment_ids, COMPLETION, 1)
    assert fewer is not None
    batches = {
        "step": make_batch(data, np.ones_like(data["ragged"])),
        "ragged": ragged,
        "packed": packing.pack(ragged, fewer),
    }
    placed = {k: mesh.place(device_mesh, b, batch_specs(b)) for k, b in batches.items()}
    tokens = {name: int(batch.layout.mask.sum()) for name, batch in batches.items()}
    prompts, mask = jnp.asarray(data["prompts"]), jnp.ones((ROWS, PROMPT), bool)
    calls = iter(range(10**9))

    def train(name: str) -> int:
        held["state"], metrics = step(held["state"], placed[name], knobs)
        jax.block_until_ready((held["state"], metrics))
        return tokens[name]

    def draw() -> int:
        drawn = sample(
            POLICY,
            params,
            prompts,
            mask,
            jax.random.split(jax.random.key(next(calls)), ROWS),
            max_new_tokens=COMPLETION,
            eos_id=EOS,
            pad_id=PAD,
        )
        return jax.device_get(drawn).tokens.size

    return {
        "step": lambda: timed(lambda: train("step")),
        "ragged": lambda: timed(lambda: train("ragged")),
        "packed": lambda: timed(lambda: train("packed")),
        "sample": lambda: timed(draw),
    }


def their_side(data: dict[str, np.ndarray]) -> contextlib.AbstractContextManager[Ask]:
    """Asks tunix, in a process of its own, to `step`, `sample` or tell `about` itself."""
    options = dataclasses.asdict(POLICY) | {
        "samples": SAMPLES,
        "prompt": PROMPT,
        "completion": COMPLETION,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
    }
    script = str(pathlib.Path(__file__).with_name("tunix_side.py"))
    # One jax on both sides too.
    command = [*python_with("", TUNIX, f"jax=={jax.__version__}"), script]
    return other_side(command, options, data, {"JAX_PLATFORMS": jax.default_backend()})


def compare(
    name: str, sides: Mapping[str, Callable[[], Timing] | None], repeats: int
) -> dict[str, Any]:
    """Turns of one measurement each, after two of each that compile and warm up.

    Args:
      name: of the case.
      sides: what measures each side, `ours` first; None where a side has no such case.
      repeats: turns that count.

    Returns:
      The summary of every side, and of `ours` over each other one, of the medians, `ratios`.
    """
    there = {side: measure for side, measure in sides.items() if measure is not None}
    runs: dict[str, list[Timing]] = {side: [] for side in there}
    for turn in range(repeats + 2):
        for side, measure in there.items():
            timing = measure()
            if turn >= 2:
                runs[side].append(timing)
    result: dict[str, Any] = {"name": name} | {s: summary(r) for s, r in runs.items()}
    others = [side for side in there if side != "ours"]
    result["ratios"] = {
        side: {key: result["ours"][key] / result[side][key] for key in ("wall", "cpu")}
        for side in others
    }
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: seconds and tokens a second of each side, and ours over the others."""
    lines = [
        "| | ours, wall s | tunix, wall s | ours, CPU s | tunix, CPU s | limit, CPU s "
        "| ours, tokens/s | tunix, tokens/s | ours/tunix, wall | ours/tunix, CPU "
        "| ours/limit, CPU |",
        "|---|" + "---|" * 10,
    ]

    def number(row: dict[str, Any], side: str, key: str) -> str:
        places = ",.0f" if key.startswith("tokens") else ".2f"
        return f"{row[side][key]:{places}}" if side in row else ""

    def ratio(row: dict[str, Any], side: str, key: str) -> str:
        return f"{row['ratios'][side][key]:.2f}" if side in row["ratios"] else ""

    for row in rows:
        cells = [number(row, side, "wall") for side in ("ours", "tunix")]
        cells += [number(row, side, "cpu") for side in ("ours", "tunix", "limit")]
        cells += [number(row, side, "tokens_per_wall_second") for side in ("ours", "tunix")]
        cells += [
            ratio(row, "tunix", "wall"),
            ratio(row, "tunix", "cpu"),
            ratio(row, "limit", "cpu"),
        ]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, saves."""
    distributed.leave_out_absent_tpus()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tunix", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    options = parser.parse_args()
    params = init(POLICY, jax.random.key(0))
    data = problem(params)
    ours, least = our_side(params, data), limit(params, data)
    versions = {name: version(name) for name in ("fiberjax", "jax", "jaxlib", "optax")}
    about = {"params": num_params(POLICY)} | versions
    result: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "ours": about,
        "shape": dataclasses.asdict(POLICY)
        | {"rows": ROWS, "prompt": PROMPT, "completion": COMPLETION},
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_before": os.getloadavg(),
    }
    with their_side(data) if options.tunix else contextlib.nullcontext() as ask:
        if ask is not None:
            result["tunix"] = ask("about")
            if result["tunix"]["params"] != about["params"]:
                raise SystemExit(f"the policies differ in size: {result['tunix']} and {about}")

        def theirs(command: str) -> Callable[[], Timing] | None:
            return None if ask is None else lambda: ask(command)

        cases = {
            "train step, full completions": ("step", "step"),
            "train step, ragged completions": ("ragged", "ragged"),
            "train step, ragged, ours packed": ("packed", "ragged"),
            "sampler": ("sample", "sample"),
        }
        rows = []
        for name, (mine, other) in cases.items():
            sides = {"ours": ours[mine], "tunix": theirs(other), "limit": least.get(mine)}
            rows.append(compare(name, sides, options.repeats))
            print(json.dumps({key: rows[-1][key] for key in ("name", "ratios")}))
    result |= {"load_after": os.getloadavg(), "results": rows}
    print(table(rows))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "train_step.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
