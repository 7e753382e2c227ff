"""Wall-clock weak scaling on this machine's own cores: one virtual device on each.

    python benchmarks/cores.py

The compiled train step with the FiberPO-Domain gate, 32 rows of 512 tokens a device, on 1, 2, 4
and more devices, each run in a process of its own that may use as many cores as it has devices:
replicas (`data`) and split parameters (`fsdp`). Ideal is the time of one device; what is
above it is exchange between devices, and whatever else the cores share: caches and memory. More
devices than cores would measure nothing. Prints a table and saves `cores.json` in the folder
`--output`.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

ROWS, PROMPT, COMPLETION = 32, 128, 384


def one_run(devices: int, axis: str, repeats: int) -> list[float]:
    """Seconds of each step, in this process, after two to warm up."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:devices])
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from packing import POLICY, make_batch  # The benchmark beside this one.

    from configs.gates import get_gate
    from fiberjax import gates
    from fiberjax.parallel import mesh
    from fiberjax.parallel.shardings import state_shardings
    from fiberjax.policy import init
    from fiberjax.train.batch import batch_specs
    from fiberjax.train.update import Knobs, StepOptions, TrainState, make_step

    device_mesh = mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 1} | {axis: devices})
    levels = ("trajectory", "group", "domain")
    gate, budgets = gates.from_config(get_gate("fiberpo_domain"), levels)
    optimizer = optax.adamw(1e-5)
    knobs = Knobs(budgets, np.float32(1), np.float32(0), np.float32(0))

    def fresh() -> TrainState:
        params = init(POLICY, jax.random.key(0))
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    shardings = state_shardings(device_mesh, jax.eval_shape(fresh))
    state = jax.jit(fresh, out_shardings=shardings)()
    options = StepOptions(num_micro_batches=4, chunk=128)
    step = make_step(POLICY, device_mesh, gate, optimizer, options, shardings)
    batch = make_batch("all full", ROWS * devices, PROMPT, COMPLETION)
    placed = mesh.place(device_mesh, batch, batch_specs(batch))
    seconds = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        state, metrics = step(state, placed, knobs)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    return seconds[2:]


def in_process(devices: int, axis: str, repeats: int) -> list[float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, f"--devices={devices}", f"--axis={axis}"]
    done = subprocess.run(
        [*command, f"--repeats={repeats}"], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--devices", type=int, help="Measure this many here, print seconds.")
    parser.add_argument("--axis", choices=["data", "fsdp"], default="data")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    options = parser.parse_args()
    if options.devices:
        print(json.dumps(one_run(options.devices, options.axis, options.repeats)))
        return
    cores = len(os.sched_getaffinity(0))
    counts = [2**k for k in range(cores.bit_length()) if 2**k <= cores]
    rows: list[dict[str, Any]] = []
    for devices in counts:
        for axis in ("data", "fsdp") if devices > 1 else ("data",):
            seconds = in_process(devices, axis, options.repeats)
            median = statistics.median(seconds)
            mesh = f"{axis} {devices}"
            rows.append({"mesh": mesh, "devices": devices, "seconds": median, "repeats": seconds})
    print("| mesh | rows | step, s | of one device |", "|---|---|---|---|", sep="\n")
    for row in rows:
        row["ratio"] = row["seconds"] / rows[0]["seconds"]
        size = ROWS * row["devices"]
        print(f"| {row['mesh']} | {size} | {row['seconds']:.2f} | {row['ratio']:.2f} |")
    result = {"cores": cores, "load_after": os.getloadavg(), "results": rows}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "cores.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
