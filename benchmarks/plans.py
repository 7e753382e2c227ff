"""The plans of the shipped configs on every slice of their table, collected and shown.

    FIBERJAX_PLANS=all pytest tests/test_plan.py -k published -n 2 --basetemp=plans
    python benchmarks/plans.py plans

The first command takes about an hour of two cores, compiles and checks them, and leaves one JSON
each; the second copies these to
`benchmarks/results/plans` and writes a table beside them. Nothing runs: figures are the compiler's.
"""

import argparse
import json
import pathlib
import shutil
from typing import Any

from fiberjax.plans.topologies import CHIPS, parse_topology

RESULTS = pathlib.Path("benchmarks/results/plans")
GIB = 2**30
HEADER = (
    "| config | slice | chips | mesh | update, GB a chip | sampling, GB a chip | of "
    "| arithmetic, s | HBM, s | exchange, s | a token, HBM, ms | exchange, ms | gate sends, bytes |"
)


def row(config: str, plan: dict[str, Any]) -> str:
    """One line of the table; a refused program shows what it needs."""
    chip = CHIPS[parse_topology(plan["topology"]).generation]
    programs = {program["name"]: program for program in plan["programs"]}
    step, sampler, gate = (programs[name] for name in ("train step", "sampler", "gate"))
    limit = step["limit_bytes"]
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    memory = [
        f"{p['peak_bytes'] / GIB:.2f}" + ("" if p["fits"] else " **refused**")
        for p in (step, sampler)
    ]
    seconds = ["", "", ""]
    if step["fits"]:
        seconds = [
            f"{step['ideal_seconds']:.2f}",
            f"{step['hbm_bytes'] / chip.hbm_bandwidth:.2f}",
            f"{step['wire_bytes'] / chip.ici_bandwidth:.2f}",
        ]
    token = ["", ""]
    if sampler["fits"]:
        # The shipped configs sample answers of up to 3,072 tokens.
        token = [
            f"{1e3 * sampler['hbm_bytes'] / chip.hbm_bandwidth / 3072:.2f}",
            f"{1e3 * sampler['wire_bytes'] / chip.ici_bandwidth / 3072:.2f}",
        ]
    cells = [f"`{config}`", f"`{plan['topology']}`", f"{plan['num_chips']:,}", mesh or "one"]
    cells += [*memory, f"{limit / GIB:.2f}", *seconds, *token, f"{gate['wire_bytes']:,.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Collects where asked to, and writes the table of what there is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, nargs="?", help="Where pytest left plans.")
    options = parser.parse_args()
    if options.folder:
        for path in sorted(options.folder.rglob("*_v*.json")):
            if not path.parent.is_symlink():
                shutil.copy(path, RESULTS / path.name)
    found = []
    for path in RESULTS.glob("*.json"):
        config, _, _ = path.stem.rpartition("_v")
        plan = json.loads(path.read_text())
        place = (config, list(CHIPS).index(plan["topology"].partition(":")[0]), plan["num_chips"])
        found.append((place, row(config, plan)))
    lines = [HEADER, "|" + "---|" * (HEADER.count("|") - 1), *(line for _, line in sorted(found))]
    text = (
        "# Plans\n\nWritten by `benchmarks/plans.py`; what the columns mean is in "
        "[docs/pods.md](../../../docs/pods.md).\n\n" + "\n".join(lines) + "\n"
    )
    (RESULTS / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
