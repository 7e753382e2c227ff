"""Speed of the gates: forward and backward of the hierarchy against the physical limit.

    python benchmarks/gates.py                    # 2^16 to 2^22 tokens, two to four levels, torch
    python benchmarks/gates.py --max-log2=18      # small
    python benchmarks/gates.py --no-torch

Side by side, in one run: our gate in rows, packed (in blocks of 16 tokens of one trajectory) and
scattered (any token of any trajectory); the plain form, the definition with a gather and a scatter
for every term; the same in eager PyTorch; and one fused pass over the same bytes (read log ratio,
advantage and id, write the gradient), the physical limit. PyTorch is no dependency of fiberjax: it
runs, with `uv`, in an environment of its own. `--gate` measures the coefficients of a preset in
place of the bare hierarchy. `--tpu` adds what programs compiled for TPUs cost a token: bytes that
they move through HBM, those that XLA's model charges, temporaries, and the cycles that the compiler
estimates, over those of the fused pass; it needs libtpu but no TPU.

Prints a table and saves `gates.json` and `gates.png` in the folder `--output`.
"""

import argparse
import functools
import json
import pathlib
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

import fiberjax
from fiberjax.analysis import style
from fiberjax.gates.aggregate import clip, rollback
from fiberjax.gates.hierarchy import Hierarchy, fgh
from fiberjax.layout import make_layout
from fiberjax.parallel import distributed
from fiberjax.plans import topologies
from fiberjax.plans.costs import estimated_cycles, hbm_bytes
from fiberjax.plans.hlo import parse
from fiberjax.run.plots import COLOURS, DASHES

LEVELS = ("trajectory", "group", "domain")
BUDGETS = {"trajectory": (0.11, 0.09), "group": (0.06, 0.05), "domain": (0.03, 0.025)}
EPSILON = 0.05
LENGTH = 256
BLOCK = 16
TORCH = "torch==2.13.0"


def problem(log2: int) -> dict[str, np.ndarray]:
    """Trajectories of `LENGTH` tokens, eight a group, groups in four domains."""
    rng = np.random.default_rng(0)
    n = 2**log2
    m = n // LENGTH
    return {
        "log_ratio": rng.normal(0, 0.08, (m, LENGTH)).astype(np.float32),
        "advantage": np.repeat(rng.normal(size=(m, 1)), LENGTH, axis=1).astype(np.float32),
        "trajectory": np.repeat(np.arange(m, dtype=np.int32), LENGTH),
        "group": np.arange(m, dtype=np.int32) // 8,
        "domain": np.arange(max(m // 8, 1), dtype=np.int32) % min(4, max(m // 8, 1)),
    }


def plain(log_ratio, layout, budgets):
    """The definition, term by term; gathers and scatters wherever it says sum or lift."""
    ids, tables = layout.cell_id, [layout.sizes[0]]
    sign = jnp.where(log_ratio < 0, -1.0, 1.0)
    drifts = {}
    for s in (1, -1):
        part = jnp.where(s * log_ratio > 0, s * log_ratio, 0)
        total = jax.ops.segment_sum(part, ids, tables[0].shape[0])
        drifts[s] = [total / layout.sizes[0]]
        for parent, size in zip(layout.parents, layout.sizes[1:], strict=True):
            below = jax.ops.segment_sum(drifts[s][-1], parent, size.shape[0])
            drifts[s].append(below / size)
    log_weight, cell = 0.0, ids
    for k, budget in enumerate(budgets.values()):
        for s, c in zip((1, -1), budget, strict=True):
            drift = drifts[s][k][cell]
            if k < len(layout.parents):
                drift = drift - drifts[s][k + 1][layout.parents[k][cell]]
            log_weight += s * rollback(drift, c, layout.sizes[k][cell])
        cell = layout.parents[k][cell] if k < len(layout.parents) else cell
    plus, minus = drifts[1][0][ids], drifts[-1][0][ids]
    mine, other = jnp.where(sign > 0, plus, minus), jnp.where(sign > 0, minus, plus)
    fiber = clip(log_ratio - sign * mine, EPSILON) + clip(sign * other, EPSILON)
    return jnp.exp(log_weight + fiber)


def gradient(form: str, preset: str | None = None):
    """`(log_ratio, advantage, layout) -> gradient` of the token-summed surrogate.

    Of a preset: the coefficients, of the trajectory-weighted one.
    """
    if form == "ours" and preset is not None:
        gate = fiberjax.gate(preset)
        return jax.jit(functools.partial(fiberjax.coefficients, gate))

    def total(log_ratio, advantage, layout):
        budgets = {level: BUDGETS[level] for level in layout.levels}
        if form == "plain":
            gated = plain(log_ratio, layout, budgets)
        else:
            hierarchy = Hierarchy(budgets=budgets, epsilon=EPSILON)
            gated = fgh(log_ratio, advantage, layout, hierarchy)
        return jnp.sum(gated * advantage)

    return jax.jit(jax.grad(total))


@jax.jit
def one_pass(log_ratio, advantage, ids):
    """Reads three arrays and writes one: no gate can be faster."""
    return jnp.exp(log_ratio) * advantage + ids.astype(jnp.float32)


def seconds(function, *args, repeats: int, clock=time.perf_counter) -> float:
    """The best of several runs by a clock, after one that compiles."""
    jax.block_until_ready(function(*args))
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(function(*args))
        best = min(best, clock() - start)
    return best


def layouts(p: dict[str, np.ndarray], depth: int) -> dict[str, tuple]:
    """The same tokens in rows, packed and scattered, with log ratios and advantages to match."""
    parents = {name: p[name] for name in LEVELS[1:depth]}
    flat = {k: p[k].ravel() for k in ("log_ratio", "advantage")}
    order = np.random.default_rng(1).permutation(p["trajectory"].size)
    ones = np.ones(p["log_ratio"].shape, bool)
    built = {
        "rows": (p["log_ratio"], p["advantage"], make_layout(ones, parents)),
        "packed": (
            *flat.values(),
            make_layout(ones.ravel(), parents, cell_id=p["trajectory"], block_size=BLOCK),
        ),
        "flat": (*flat.values(), make_layout(ones.ravel(), parents, cell_id=p["trajectory"])),
    }
    scattered = make_layout(ones.ravel(), parents, cell_id=p["trajectory"][order])
    built["scattered"] = (*(x[order] for x in flat.values()), scattered)
    return jax.tree.map(jnp.asarray, built)


def measure(log2: int, depth: int, repeats: int, preset: str | None) -> dict[str, float]:
    """Milliseconds of each form."""
    p = problem(log2)
    built = layouts(p, depth)
    ours = ("rows", "packed", "scattered")
    times = {
        name: seconds(gradient("ours", preset), *built[name], repeats=repeats) for name in ours
    }
    times["plain"] = seconds(gradient("plain"), *built["flat"], repeats=repeats)
    ids = jnp.asarray(p["trajectory"])
    times["limit"] = seconds(one_pass, *built["packed"][:2], ids, repeats=repeats)
    return {name: 1e3 * value for name, value in times.items()}


def tpu_cost(log2: int, depth: int, preset: str | None) -> dict[str, dict[str, float]]:
    """What programs compiled for a TPU v5e and v6e cost by form: bytes a token, relative cycles."""
    costs: dict[str, dict[str, float]] = {}
    built = layouts(problem(log2), depth)
    for chip in ("v5e", "v6e"):
        devices = topologies.describe_devices(topologies.parse_topology(f"{chip}:2x2"))
        sharding = SingleDeviceSharding(devices[0])

        def compiled(function, *args, sharding=sharding):
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args
            )
            return function.lower(*abstract).compile()

        ids = np.zeros(2**log2, np.int32)
        limit = estimated_cycles(parse(compiled(one_pass, *built["flat"][:2], ids).as_text()))
        for name, form in (
            ("rows", "ours"),
            ("packed", "ours"),
            ("flat", "ours"),
            ("flat", "plain"),
        ):
            program = compiled(gradient(form, preset), *built[name])
            shown = {"ours": {"flat": "an id a token"}.get(name, name), "plain": "plain"}[form]
            costs[f"{chip} {shown}"] = {
                "hbm": hbm_bytes(parse(program.as_text())) / 2**log2,
                "model": program.cost_analysis()["bytes accessed"] / 2**log2,
                "temporaries": program.memory_analysis().temp_size_in_bytes / 2**log2,
                "cycles over one pass": estimated_cycles(parse(program.as_text())) / limit,
            }
    return costs


TORCH_SCRIPT = """
import json, sys, time, torch
torch.manual_seed(0)
LENGTH, EPSILON = 256, 0.05
BUDGETS = [(0.11, 0.09), (0.06, 0.05), (0.03, 0.025)]
def run(n, depth):
    m = n // LENGTH
    l = (0.08 * torch.randn(n)).requires_grad_()
    a = torch.randn(m).repeat_interleave(LENGTH)
    ids = torch.arange(m).repeat_interleave(LENGTH)
    groups = max(m // 8, 1)
    domains = min(4, groups)
    parents = [torch.arange(m) // 8, torch.arange(groups) % domains][: depth - 1]
    counts = [m, groups, domains]
    def sums(x, index, size):
        return torch.zeros(size).index_add(0, index, x)
    sizes = [sums(torch.ones(n), ids, m)]
    for k, parent in enumerate(parents):
        sizes.append(sums(torch.ones(counts[k]), parent, counts[k + 1]))
    def g(x, c, k):
        left = torch.clamp(c + k * (c - x.abs()), min=0)
        return torch.where(x.abs() <= c, x, x.sign() * left)
    def step():
        sign = torch.where(l < 0, -1.0, 1.0)
        drifts = {}
        for s in (1, -1):
            drifts[s] = [sums(torch.relu(s * l), ids, m) / sizes[0]]
            for k, parent in enumerate(parents):
                drifts[s].append(sums(drifts[s][-1], parent, counts[k + 1]) / sizes[k + 1])
        weight = 0
        for k in reversed(range(depth)):
            weight = weight[parents[k]] if k < depth - 1 else weight
            for s, c in zip((1, -1), BUDGETS[k]):
                x = drifts[s][k] - (drifts[s][k + 1][parents[k]] if k < depth - 1 else 0)
                weight = weight + s * g(x, c, sizes[k])
        plus, minus = drifts[1][0][ids], drifts[-1][0][ids]
        mine, other = torch.where(sign > 0, plus, minus), torch.where(sign > 0, minus, plus)
        f = torch.clamp(l - sign * mine, -EPSILON, EPSILON)
        f = f + torch.clamp(sign * other, -EPSILON, EPSILON)
        return torch.autograd.grad((torch.exp(weight[ids] + f) * a).sum(), l)
    step()
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best
print(json.dumps([run(2 ** log2, depth) for log2, depth in CASES]))
"""


def torch_times(cases: list[tuple[int, int]], repeats: int) -> list[float]:
    """Milliseconds of eager PyTorch, in an environment that `uv` makes for this run only."""
    script = f"REPEATS, CASES = {repeats}, {cases}\n" + TORCH_SCRIPT
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("the torch column needs uv; leave it out with --no-torch")
    command = [
        uv,
        "run",
        "--no-project",
        "--with",
        TORCH,
        "--with",
        "numpy",
        "python",
        "-c",
        script,
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output)


def plot(rows: list[dict], device: str, path: pathlib.Path) -> None:
    """Times over the number of tokens for the deepest hierarchy measured."""
    deepest = max(row["levels"] for row in rows)
    rows = [row for row in rows if row["levels"] == deepest]
    picture, ((axes,),) = style.grid(1, 1, width=6.0, height=4.0)
    tokens = [2 ** row["log2"] for row in rows]
    names = ("torch", "plain", "scattered", "packed", "rows", "limit")
    for name, colour, dashes, mark in zip(names, COLOURS, (*DASHES, "-"), "os^DvP", strict=False):
        if name in rows[0]:
            values = [row[name] for row in rows]
            axes.loglog(tokens, values, color=colour, linestyle=dashes, marker=mark, label=name)
    title = f"The gate hierarchy, {deepest} levels, {device}"
    style.finish(axes, title, x="tokens", y="forward and backward, ms", legend="upper left")
    axes.set_xticks(tokens, [f"2^{row['log2']}" for row in rows])
    axes.minorticks_off()
    path.write_bytes(picture.png(dpi=150))


def main() -> None:
    """Measures, prints, saves."""
    distributed.leave_out_absent_tpus()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--min-log2", type=int, default=16)
    parser.add_argument("--max-log2", type=int, default=22)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--gate", help="a preset of four levels; the bare hierarchy by default")
    parser.add_argument("--tpu", action="store_true")
    parser.add_argument("--tpu-log2", type=int, default=20)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/benchmarks"))
    options = parser.parse_args()
    if options.tpu:
        topologies.compile_environment()
    sizes = range(options.min_log2, options.max_log2 + 1, 2)
    # Levels as a user counts them, tokens included: two is FiberPO, four is FiberPO-Domain.
    depths = (1, 2, 3) if options.gate is None else (3,)
    cases = [(log2, depth) for log2 in sizes for depth in depths]
    torch = torch_times(cases, options.repeats) if options.torch else [None] * len(cases)
    rows = []
    for (log2, depth), torch_time in zip(cases, torch, strict=True):
        row = {
            "log2": log2,
            "levels": depth + 1,
            **measure(log2, depth, options.repeats, options.gate),
        }
        if torch_time is not None:
            row["torch"] = torch_time
        rows.append(row)
        if len(rows) == 1:
            print("  ".join(f"{name:>9}" for name in row), " rows/limit  packed/limit")
        cells = [f"{v:>9}" if isinstance(v, int) else f"{v:9.2f}" for v in row.values()]
        ratios = row["rows"] / row["limit"], row["packed"] / row["limit"]
        print("  ".join(cells), f"{ratios[0]:10.1f}  {ratios[1]:12.1f}", flush=True)
    result = {"device": jax.devices()[0].device_kind, "milliseconds": rows}
    if options.tpu:
        result["tpu_bytes_per_token"] = {
            f"{depth + 1} levels": tpu_cost(options.tpu_log2, depth, options.gate)
            for depth in depths
        }
        print(json.dumps(result["tpu_bytes_per_token"], indent=1))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gates.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, result["device"], options.output / "gates.png")


if __name__ == "__main__":
    main()
