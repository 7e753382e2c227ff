"""The plans of the shipped configs on every slice of their table, collected and shown.

    FIBERJAX_PLANS=all pytest tests/plans -k published -n 2 --basetemp=plans
    python benchmarks/plans.py plans

The first command takes more than an hour of two cores, compiles and checks them, and leaves one
JSON each. The second copies these to `benchmarks/results/plans`, writes a table of all of them
beside them, and prints that of the smallest slices, which docs/pods.md shows. Nothing runs: the
figures are the compiler's.
"""

import argparse
import datetime
import json
import pathlib
from typing import Any

from fiberjax.plans.topologies import CHIPS, Chip, parse_topology, slice_shapes

RESULTS = pathlib.Path("benchmarks/results/plans")
GIB = 2**30
TOKENS = 3072  # The shipped configs sample answers of up to so many.
WHOLE = (
    *("config", "slice", "chips", "mesh", "update, GB a chip", "packed, GB", "sampling, GB", "of"),
    *("arithmetic, s", "HBM, s", "exchange, s", "a token, HBM, ms", "exchange, ms"),
    *("gate sends, bytes", "compiled"),
)
SMALLEST = (
    *("config", "slice", "fsdp × tensor", "update, GB", "sampling, GB", "of", "FLOPs / 6 N D"),
    *("arithmetic, s", "HBM, s", "exchange, s", "a token, HBM, ms", "refused"),
)


class Entry:
    """One plan, as the tables read it."""

    def __init__(self, config: str, plan: dict[str, Any]):
        self.config, self.plan = config, plan
        self.topology = parse_topology(plan["topology"])
        self.programs = {program["name"]: program for program in plan["programs"]}

    @property
    def chip(self) -> Chip:
        """The kind of chip."""
        return self.topology.chip

    @property
    def order(self) -> tuple[str, int, int]:
        """Config, generation and size."""
        generation = list(CHIPS).index(self.topology.generation)
        return self.config, generation, self.topology.num_chips

    def memory(self, name: str) -> str:
        """What a program needs of a chip, GB; a refusal shows what it asks for."""
        program = self.programs.get(name)
        if program is None:
            return ""
        shown = f"{program['peak_bytes'] / GIB:.2f}"
        return shown if program["fits"] else f"{shown} **refused**"

    def seconds(self, name: str) -> tuple[float, float, float]:
        """Arithmetic, HBM traffic and exchange of a program, each at its limit."""
        program = self.programs[name]
        return (
            program["ideal_seconds"],
            program["hbm_bytes"] / self.chip.hbm_bandwidth,
            program["wire_bytes"] / self.chip.ici_bandwidth,
        )

    def update(self) -> list[str]:
        """The seconds of an update, where it was compiled."""
        seconds = self.seconds("train step")
        return [f"{s:.2f}" for s in seconds] if seconds[0] else ["", "", ""]

    def token(self) -> list[str]:
        """HBM traffic and exchange of a sampled column, ms, where it was compiled."""
        _, hbm, exchange = (1e3 * s / TOKENS for s in self.seconds("sampler"))
        return [f"{hbm:.2f}", f"{exchange:.2f}"] if hbm else ["", ""]


def whole_row(entry: Entry) -> list[str]:
    """A row of the table of all plans."""
    sizes = entry.plan["mesh"].items()
    mesh = " × ".join(f"{axis} {size}" for axis, size in sizes if size > 1)
    return [
        *(f"`{entry.config}`", f"`{entry.topology}`", f"{entry.topology.num_chips:,}"),
        mesh if mesh else "one",
        *(entry.memory(name) for name in ("train step", "packed step", "sampler")),
        f"{entry.chip.hbm / GIB:.2f}",
        *entry.update(),
        *entry.token(),
        f"{entry.programs['gate']['wire_bytes']:,.0f}",
        entry.plan["compiled"],
    ]


def smallest_rows(entries: list[Entry]) -> list[list[str]]:
    """For each config and generation the smallest slice that fits, and the next one below."""
    rows = []
    for key in dict.fromkeys(entry.order[:2] for entry in entries):
        of = [entry for entry in entries if entry.order[:2] == key]
        fitting = [entry for entry in of if entry.plan["fits"]]
        refused = [entry for entry in of if not entry.plan["fits"]]
        if not fitting:
            continue
        entry, mesh = fitting[0], fitting[0].plan["mesh"]
        below = "none smaller"
        if str(entry.topology).partition(":")[2] != slice_shapes(entry.topology.generation)[0]:
            below = f"the mesh needs {mesh['tensor']} chips"
        if refused:
            asked = max(p["peak_bytes"] for p in refused[-1].plan["programs"] if not p["fits"])
            below = f"`{refused[-1].topology}`: {asked / GIB:.2f}"
        flops = entry.programs["train step"]["flops"] / entry.plan["ideal_flops"]
        rows.append(
            [
                *(f"`{entry.config}`", f"`{entry.topology}`"),
                f"{mesh['fsdp']} × {mesh['tensor']}",
                *(entry.memory(name) for name in ("train step", "sampler")),
                *(f"{entry.chip.hbm / GIB:.2f}", f"{flops:.2f}"),
                *(*entry.update(), entry.token()[0], below),
            ]
        )
    return rows


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    """Collects where asked to, and writes the table of what there is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, nargs="?", help="Where pytest left plans.")
    options = parser.parse_args()
    if options.folder:
        for path in sorted(options.folder.rglob("*_v*.json")):
            if not path.parent.is_symlink():
                when = datetime.datetime.fromtimestamp(path.stat().st_mtime).date().isoformat()
                plan = json.loads(path.read_text()) | {"compiled": when}
                (RESULTS / path.name).write_text(json.dumps(plan, indent=2) + "\n")
    entries = [
        Entry(path.stem.rpartition("_v")[0], json.loads(path.read_text()))
        for path in RESULTS.glob("*.json")
    ]
    entries.sort(key=lambda entry: entry.order)
    text = table(WHOLE, [whole_row(entry) for entry in entries])
    (RESULTS / "README.md").write_text(
        "# Plans\n\nWritten by `benchmarks/plans.py`; what the columns mean is in "
        f"[docs/pods.md](../../../docs/pods.md).\n\n{text}"
    )
    print(table(SMALLEST, smallest_rows(entries)))


if __name__ == "__main__":
    main()
