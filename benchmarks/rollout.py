"""Sampling answers of equal and of ragged lengths: ours, transformers and google-tunix.

    python benchmarks/rollout.py                                  # all sides
    python benchmarks/rollout.py --no-tunix --no-torch            # ours alone
    python benchmarks/rollout.py --torch-python=PATH              # a Python that has torch

One policy shape with random weights, float32, temperature 1, the whole vocabulary but the end
token, log-probabilities with the tokens. Every side has 32 rows in its cache at a time, and ends
every row after the same number of tokens: all of them at the limit, or log-normally, the median an
eighth of the limit. Ours is measured in parts of 32 rows, which is what the others do, and with 32
slots.

The sides run in processes of their own and take turns, one measurement each. Prints a table and
saves `rollout.json` and `rollout.md` in the folder `--output`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sides import Timing, other_side, python_with, summary, timed
from benchmarks.train_step import POLICY, TUNIX
from fiberjax.parallel import distributed
from fiberjax.policy import Samples, Transformer, init, num_params, sample

TORCH = ("torch==2.14.1", "transformers==5.24.0")
PROMPT, LIMIT, AT_A_TIME = 32, 128, 32
ROWS = {"equal": 64, "ragged": 256}
PAD, EOS = 0, 1
FOLDER = pathlib.Path(__file__).parent
SIDES = {"parts": "ours, in parts", "slots": "ours, slots", "torch": "transformers", "tunix": TUNIX}


def problem() -> dict[str, np.ndarray]:
    """Prompts and lengths of both cases; a prompt's first token is its length plus 2."""
    rng = np.random.default_rng(0)
    drawn = np.round(LIMIT / 8 * np.exp(rng.normal(size=ROWS["ragged"])))
    lengths = {
        "equal": np.full(ROWS["equal"], LIMIT, np.int32),
        "ragged": np.clip(drawn, 1, LIMIT).astype(np.int32),
    }
    data = {}
    for case, length in lengths.items():
        prompts = rng.integers(2, POLICY.vocab_size, (len(length), PROMPT), dtype=np.int32)
        prompts[:, 0] = 2 + length
        data |= {f"{case}_prompts": prompts, f"{case}_lengths": length}
    return data


def our_side(data: dict[str, np.ndarray]) -> tuple[Callable[[str, str], Timing], dict[str, float]]:
    """Measures a case in "parts" or in "slots"; and the share of steps wasted in each."""
    unembed = Transformer.unembed
    # No row ends by itself.
    Transformer.unembed = lambda self, of: unembed(self, of).at[..., EOS].set(-1e30)  # type: ignore[method-assign]
    params = init(POLICY, jax.random.key(0))
    calls = iter(range(10**9))
    wasted: dict[str, float] = {}

    def draw(case: str, way: str) -> int:
        prompts, lengths = data[f"{case}_prompts"], data[f"{case}_lengths"]
        keys = jax.random.split(jax.random.key(next(calls)), len(prompts))
        together = AT_A_TIME if way == "parts" else len(prompts)
        parts: list[Samples] = []
        for start in range(0, len(prompts), together):
            rows = slice(start, start + together)
            drawn = sample(
                POLICY,
                params,
                jnp.asarray(prompts[rows]),
                jnp.ones((together, PROMPT), bool),
                keys[rows],
                max_new_tokens=LIMIT,
                eos_id=EOS,
                pad_id=PAD,
                limits=jnp.asarray(lengths[rows]),
                slots=AT_A_TIME if way == "slots" else 0,
            )
            parts.append(jax.device_get(drawn))
        found = np.concatenate([part.length for part in parts])
        if not np.array_equal(found, lengths):
            raise SystemExit("rows did not end where they should have")
        held = sum(int(part.held.sum()) for part in parts)
        wasted[f"{case} {way}"] = 1 - float(lengths.sum()) / held
        return int(lengths.sum())

    return lambda case, way: timed(lambda: draw(case, way)), wasted


def measure(sides: dict[str, Callable[[str], Timing]], case: str, repeats: int) -> dict[str, Any]:
    """Turns of one measurement of each side, after one of each that compiles."""
    runs: dict[str, list[Timing]] = {side: [] for side in sides}
    for turn in range(repeats + 1):
        for side, ask in sides.items():
            timing = ask(case)
            print(case, turn, side, {k: round(v, 2) for k, v in timing.items()}, flush=True)
            if turn:
                runs[side].append(timing)
    return {side: summary(of) for side, of in runs.items()}


def table(results: dict[str, dict[str, Any]], wasted: dict[str, float]) -> str:
    """Markdown: seconds and tokens a second, and each side over tunix, or else over our parts."""
    lines = [
        "| lengths | side | wall, s | CPU, s | tokens/s | wasted steps | wall ratio | CPU ratio |",
        "|---|" + "---|" * 7,
    ]
    for case, sides in results.items():
        base = sides["tunix" if "tunix" in sides else "parts"]
        for side, of in sides.items():
            share = wasted.get(f"{case} {side}")
            cells = [
                *(case, SIDES[side], f"{of['wall']:.2f}", f"{of['cpu']:.2f}"),
                f"{of['tokens_per_wall_second']:,.0f}",
                "" if share is None else f"{share:.2f}",
                *(f"{of[key] / base[key]:.2f}" for key in ("wall", "cpu")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, saves."""
    distributed.leave_out_absent_tpus()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tunix", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tunix-python", default="", help="a Python that has google-tunix")
    parser.add_argument("--torch-python", default="", help="a Python that has torch, transformers")
    parser.add_argument("--output", type=pathlib.Path, default=FOLDER / "results")
    options = parser.parse_args()
    data = problem()
    ours, wasted = our_side(data)
    sides: dict[str, Callable[[str], Timing]] = {
        way: lambda case, way=way: ours(case, way)  # type: ignore[misc]
        for way in ("parts", "slots")
    }
    about: dict[str, Any] = {"ours": {n: version(n) for n in ("fiberjax", "jax", "jaxlib")}}
    about["ours"]["params"] = num_params(POLICY)
    load = os.getloadavg()
    given = dataclasses.asdict(POLICY) | {
        "prompt": PROMPT,
        "completion": LIMIT,
        "rows": AT_A_TIME,
        "threads": os.cpu_count(),
    }
    # Torch's threads would else spin while they wait, and time is shared.
    environment = {"JAX_PLATFORMS": jax.default_backend(), "OMP_WAIT_POLICY": "passive"}
    with contextlib.ExitStack() as stack:
        for side, wanted, command in (
            ("torch", options.torch, lambda: python_with(options.torch_python, *TORCH)),
            (
                "tunix",
                options.tunix,
                lambda: python_with(options.tunix_python, TUNIX, f"jax=={jax.__version__}"),
            ),
        ):
            if not wanted:
                continue
            script = str(FOLDER / f"rollout_{side}.py")
            ask = stack.enter_context(other_side([*command(), script], given, data, environment))
            about[side] = ask("about")
            if about[side]["params"] != about["ours"]["params"]:
                raise SystemExit(f"the policies differ in size: {about}")
            sides[side] = ask
        results = {case: measure(sides, case, options.repeats) for case in ROWS}
    shown = table(results, wasted)
    print(shown)
    result = {
        "command": "python " + " ".join(["benchmarks/rollout.py", *sys.argv[1:]]),
        "shape": dataclasses.asdict(POLICY)
        | {"prompt": PROMPT, "limit": LIMIT, "at_a_time": AT_A_TIME, "rows": ROWS},
        "about": about,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_before": load,
        "load_after": os.getloadavg(),
        "mean_length": {case: float(data[f"{case}_lengths"].mean()) for case in ROWS},
        "wasted": wasted,
        "results": results,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "rollout.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "rollout.md").write_text(shown + "\n")


if __name__ == "__main__":
    main()
