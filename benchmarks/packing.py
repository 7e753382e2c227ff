"""Packing: rows that ragged answers leave, and the time of a train step with and without it.

    python benchmarks/packing.py

Two parts. Rows of 4,096 tokens as in the configs of large models, 256 answers to prompts of 100 to
400 tokens: packed on the host alone, on one row shard and on sixteen. And the compiled step of a
small policy, rows of 512 tokens, the same batch padded and packed in turns, with the same gradient.
Prints two tables and saves `packing.json` in the folder `--output`.
"""

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.gates import get_gate
from fiberjax import gates
from fiberjax.layout import make_layout
from fiberjax.parallel import distributed, mesh
from fiberjax.parallel.shardings import state_shardings
from fiberjax.policy import TransformerConfig, init
from fiberjax.train import packing
from fiberjax.train.batch import Batch, batch_specs
from fiberjax.train.update import Knobs, StepOptions, TrainState, make_step

POLICY = TransformerConfig(
    vocab_size=2048,
    embed_dim=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    mlp_dim=768,
    qk_norm=True,
    remat="full",
)
SAMPLES, DOMAINS = 8, 4

Draw = Callable[[np.random.Generator, int, int], np.ndarray]
LENGTHS: dict[str, Draw] = {
    "log-normal, median an eighth": lambda rng, n, most: rng.lognormal(np.log(most / 8), 0.8, n),
    "uniform": lambda rng, n, most: rng.integers(1, most + 1, n).astype(float),
    "log-normal, median a half": lambda rng, n, most: rng.lognormal(np.log(most / 2), 0.5, n),
    "all full": lambda rng, n, most: np.full(n, float(most)),
}


def make_batch(lengths: str, rows: int, prompt: int, completion: int) -> Batch:
    """Random tokens, one trajectory a row, prompts of a tenth to two fifths of their window."""
    rng = np.random.default_rng(0)
    drawn = LENGTHS[lengths](rng, rows, completion)
    mask = np.arange(completion) < np.clip(drawn, 1, completion).astype(int)[:, None]
    first = prompt - rng.integers(prompt // 10, 2 * prompt // 5 + 1, rows)
    real = np.concatenate([np.arange(prompt) >= first[:, None], mask], axis=1)
    layout = make_layout(
        mask,
        {"group": np.arange(rows) // SAMPLES, "domain": np.arange(rows // SAMPLES) % DOMAINS},
        num_cells={"domain": DOMAINS},
        axis_names={"group": mesh.ROW_AXES},
    )
    host: Any = {
        "tokens": np.where(real, rng.integers(2, POLICY.vocab_size, real.shape, np.int32), 0),
        "positions": np.maximum(np.cumsum(real, axis=1, dtype=np.int32) - 1, 0),
        "segment_ids": real.astype(np.int32),
        "advantage": np.repeat(rng.normal(size=(rows, 1)), completion, 1).astype(np.float32),
        "old_log_prob": np.full(mask.shape, -np.log(POLICY.vocab_size), np.float32),
        "reference_log_prob": np.zeros(mask.shape, np.float32),
        "sample_weight": np.ones(mask.shape, np.float32),
    }
    return Batch(layout=layout, **host)


def used(batch: Batch, rows: int) -> float:
    """Share of `rows` rows that holds tokens."""
    return float((np.asarray(batch.segment_ids) != 0).sum()) / (rows * batch.tokens.shape[1])


def count_rows() -> list[dict[str, Any]]:
    """Rows of a large batch, before and after, on one shard and on sixteen."""
    total = 256
    result = []
    for lengths in LENGTHS:
        batch = make_batch(lengths, total, prompt=1024, completion=3072)
        for shards in (1, 16):
            local = total // shards
            free, _ = packing.places(batch.segment_ids != 0, 3072, shards)
            rows = shards * packing.bucket(packing.rows_of(free), local, 1)
            shares = {"used": used(batch, total), "used_packed": used(batch, rows)}
            result.append({"lengths": lengths, "shards": shards, "rows": rows} | shares)
    return result


def time_steps(repeats: int) -> list[dict[str, Any]]:
    """Seconds of a step on one device, padded and packed in turns, two of each to warm up."""
    total, prompt, completion = 64, 128, 384
    device_mesh = mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    levels = ("trajectory", "group", "domain")
    gate, budgets = gates.from_config(get_gate("fiberpo_domain"), levels)
    optimizer = optax.adamw(1e-5)
    knobs = Knobs(budgets, np.float32(1), np.float32(0), np.float32(0))
    options = StepOptions(num_micro_batches=8, chunk=128)
    params = init(POLICY, jax.random.key(0))
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    shardings = state_shardings(device_mesh, state)
    step = make_step(POLICY, device_mesh, gate, optimizer, options, shardings)
    held = {"state": jax.device_put(state, shardings)}
    result = []
    for lengths in LENGTHS:
        padded = make_batch(lengths, total, prompt, completion)
        fewer = packing.choose(device_mesh, padded.segment_ids, completion, 8)
        rows = total if fewer is None else fewer.rows
        batches = {"padded": padded}
        batches["packed"] = padded if fewer is None else packing.pack(padded, fewer)
        placed = {k: mesh.place(device_mesh, b, batch_specs(b)) for k, b in batches.items()}
        seconds: dict[str, list[float]] = {name: [] for name in batches}
        for turn in range(repeats + 2):
            for name, batch in placed.items():
                began = time.perf_counter()
                held["state"], metrics = step(held["state"], batch, knobs)
                jax.block_until_ready((held["state"], metrics))
                if turn >= 2:
                    seconds[name].append(time.perf_counter() - began)
        medians = {name: statistics.median(runs) for name, runs in seconds.items()}
        row = {"lengths": lengths, "rows": rows, "of": total, "used": used(padded, total)}
        row |= {"used_packed": used(padded, rows), "ratio": medians["packed"] / medians["padded"]}
        result.append(row | medians | {"repeats": seconds})
    return result


def table(counted: list[dict[str, Any]], timed: list[dict[str, Any]]) -> str:
    """Both parts in Markdown."""
    lines = ["| lengths of answers | shards | rows | tokens used |", "|---|---|---|---|"]
    lines += [
        f"| {r['lengths']} | {r['shards']} | 256 → {r['rows']} "
        f"| {r['used']:.0%} → {r['used_packed']:.0%} |"
        for r in counted
    ]
    lines += ["", "| lengths of answers | rows | tokens used | padded, s | packed, s | ratio |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {r['lengths']} | {r['of']} → {r['rows']} | {r['used']:.0%} → {r['used_packed']:.0%} "
        f"| {r['padded']:.2f} | {r['packed']:.2f} | {r['ratio']:.2f} |"
        for r in timed
    ]
    return "\n".join(lines)


def main() -> None:
    """Counts, measures, prints, saves."""
    distributed.leave_out_absent_tpus()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    options = parser.parse_args()
    counted, timed = count_rows(), time_steps(options.repeats)
    print(table(counted, timed))
    result = {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load_after": os.getloadavg(),
        "rows": counted,
        "step": timed,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "packing.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
