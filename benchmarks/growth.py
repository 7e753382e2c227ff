"""How cost grows: with tokens, trajectories, levels, the vocabulary, and chips.

    python benchmarks/growth.py
    python benchmarks/growth.py --no-chips    # what needs no TPU compiler

Coefficients of three gates (the shipped hierarchy, the published one, GSPO) over a batch of rows,
as tokens, trajectories or levels grow; log-probabilities with entropies, forward and back, as the
vocabulary grows; in CPU-seconds of this process, the least of several runs. For chips, the train
step of the quickstart's policy with as many prompt groups on each, compiled for TPU slices: bytes
sent and arithmetic a chip, as the compiler has them. Exponents are fitted by least squares to the
upper half of each range, where what a call costs by itself is small, and of levels to all of it.
Prints a table, and writes `growth.json` and `growth.png` in the folder `--output`.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gates import seconds

import fiberjax
from fiberjax import gates
from fiberjax.analysis import style
from fiberjax.layout import Layout, make_layout
from fiberjax.parallel import distributed
from fiberjax.plans import topologies
from fiberjax.policy import chunked_token_outputs
from fiberjax.run.plots import COLOURS, DASHES

REPEATS = 30
TOKENS = 2**18
NAMES = {
    "silent_sequence": "shipped hierarchy",
    "fiberpo_domain": "published hierarchy",
    "gspo": "GSPO",
}
LEVELS = ("trajectory", "group", "domain", "source", "all")

Series = dict[str, dict[int, float]]
"""Name of a line -> what grows -> its cost."""


cpu_seconds = functools.partial(seconds, repeats=REPEATS, clock=time.process_time)


def batch(tokens: int, length: int, levels: int = 3) -> tuple[jax.Array, jax.Array, Layout]:
    """Log-ratios and advantages in rows of that length; eight cells a cell of the level above."""
    rows = tokens // length
    rng = np.random.default_rng(0)
    log_ratio = rng.normal(0, 0.08, (rows, length)).astype(np.float32)
    advantage = np.repeat(rng.normal(size=(rows, 1)), length, axis=1).astype(np.float32)
    parents, cells = {}, rows
    for name in LEVELS[1:levels]:
        parents[name] = np.arange(cells, dtype=np.int32) // 8
        cells = max(1, cells // 8)
    layout = make_layout(np.ones((rows, length), bool), parents)
    return jnp.asarray(log_ratio), jnp.asarray(advantage), jax.tree.map(jnp.asarray, layout)


def of_tokens() -> Series:
    """Rows of 256 tokens."""
    return {
        shown: {2**n: cpu_seconds(coefficients(name), *batch(2**n, 256)) for n in range(13, 22, 2)}
        for name, shown in NAMES.items()
    }


def of_trajectories() -> Series:
    """As many tokens, in more and shorter rows."""
    return {
        shown: {
            2**n: cpu_seconds(coefficients(name), *batch(TOKENS, TOKENS // 2**n))
            for n in range(6, 15, 2)
        }
        for name, shown in NAMES.items()
    }


def of_levels() -> Series:
    """Levels beside the token's, one above the other."""
    found: Series = {"silent": {}, "published": {}}
    for count in range(1, len(LEVELS) + 1):
        given = batch(TOKENS, 256, count)
        names = LEVELS[:count]
        for shown, base in (("silent", "silent_sequence"), ("published", "fiberpo_domain")):
            config = fiberjax.presets.preset(base)
            level = next(iter(config["levels"].values()))
            config |= {"order": names, "levels": dict.fromkeys(names, level)}
            gate, budgets = gates.from_config(config, names)
            gated = jax.jit(functools.partial(derivative, gate, budgets))
            found[shown][count] = cpu_seconds(gated, *given)
    return found


def derivative(
    gate: Any, budgets: Any, log_ratio: jax.Array, advantage: jax.Array, layout: Layout
) -> jax.Array:
    """The gradient of `Σ G Â` in every log-ratio."""

    def total(log_ratio: jax.Array) -> jax.Array:
        return jnp.sum(gate(log_ratio, advantage, layout, budgets) * advantage)

    return jax.grad(total)(log_ratio)


@functools.cache
def coefficients(name: str) -> Callable:
    """The compiled coefficients of a preset's gate."""
    return jax.jit(functools.partial(fiberjax.coefficients, fiberjax.gate(name)))


def of_vocabulary() -> Series:
    """Four rows of 64 tokens, 256 wide, 32 columns of logits at a time."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(4, 64, 256)).astype(np.float32))
    found: dict[int, float] = {}
    for n in range(9, 18, 2):
        kernel = jnp.asarray(rng.normal(0, 0.1, (2**n, 256)).astype(np.float32))
        targets = jnp.asarray(rng.integers(0, 2**n, (4, 64)))

        def total(hidden: jax.Array, kernel: jax.Array, targets: jax.Array = targets) -> jax.Array:
            outputs = chunked_token_outputs(
                hidden, kernel, targets, temperature=1.0, chunk=32, entropy_gradient=False
            )
            return outputs.log_prob.sum()

        found[2**n] = cpu_seconds(jax.jit(jax.grad(total, (0, 1))), hidden, kernel)
    return {"log-probabilities": found}


def of_chips() -> Series:
    """Bytes sent a chip, eight prompt groups on each, parameters split over four."""
    from configs import quickstart
    from fiberjax import experiment
    from fiberjax.plans import plan
    from fiberjax.tasks import loading

    found: Series = {"step sends": {}, "gate sends": {}, "arithmetic of the step": {}}
    for name in ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16"):
        topology = topologies.parse_topology(name)
        chips = topology.num_devices
        config = quickstart.get_config()
        config.mesh.data, config.mesh.fsdp = chips // 4, 4
        config.rollout.prompts = 8 * chips * config.training.minibatches
        config.evaluation.batch = config.warm_start.batch_size = chips
        config.training.packing = False
        built = experiment.from_config(
            config, topologies.describe_devices(topology), loading.named_domains
        )
        step, gate = plan.make_plan(built, topology, ["train step", "gate"]).programs
        found["step sends"][chips] = step.wire_bytes
        found["gate sends"][chips] = gate.wire_bytes
        found["arithmetic of the step"][chips] = step.flops
        print(f"{name}: {step.wire_bytes:.3g} and {gate.wire_bytes:.3g} bytes sent", flush=True)
    return found


def exponent(costs: dict[int, float]) -> float:
    """The slope of log cost over log size, of the upper half of the sizes where these are many."""
    sizes = sorted(costs)
    upper = sizes[len(sizes) // 2 :] if sizes[-1] > 16 * sizes[0] else sizes
    slope, _ = np.polyfit(np.log(upper), np.log([costs[size] for size in upper]), 1)
    return float(slope)


def table(found: dict[str, Series]) -> str:
    """Costs at both ends and the exponent, in Markdown."""
    lines = ["| grows | of | from | to | exponent |", "|---|---|---|---|---|"]
    for grows, series in found.items():
        for name, costs in series.items():
            low, high = min(costs), max(costs)
            ends = (f"{size:,}: {costs[size]:.3g}" for size in (low, high))
            lines.append(f"| {grows} | {name} | {' | '.join(ends)} | {exponent(costs):.2f} |")
    return "\n".join(lines)


def draw(found: dict[str, Series], path: pathlib.Path) -> None:
    """A panel for each thing that grows."""
    picture, panels = style.grid(1, len(found), width=3.0 * len(found), height=3.2)
    for axes, (grows, series) in zip(panels[0], found.items(), strict=True):
        for number, (name, costs) in enumerate(series.items()):
            dashes = DASHES[number % len(DASHES)]
            label = f"{name}, {exponent(costs):.2f}"
            axes.loglog(
                list(costs),
                list(costs.values()),
                marker="o",
                markersize=3,
                color=COLOURS[number],
                linestyle=dashes,
                label=label,
            )
        if grows == "levels":
            axes.set_xscale("linear")
        unit = "bytes, FLOPs a chip" if grows == "chips" else "CPU-seconds"
        style.finish(axes, f"Growth with {grows}", x=grows, y=unit, legend="best")
    path.write_bytes(picture.png(dpi=150))


def main() -> None:
    """Measures, prints, saves."""
    topologies.compile_environment()
    distributed.leave_out_absent_tpus()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chips", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/benchmarks"))
    given = parser.parse_args()
    measured = {
        "tokens": of_tokens,
        "trajectories": of_trajectories,
        "levels": of_levels,
        "vocabulary": of_vocabulary,
    }
    measured |= {"chips": of_chips} if given.chips else {}
    found = {name: function() for name, function in measured.items()}
    print(table(found))
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "growth.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, given.output / "growth.png")


if __name__ == "__main__":
    main()
