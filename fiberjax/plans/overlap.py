"""How much of what a compiled program sends goes while it computes, as its schedule has it.

The text of a TPU program is its schedule: what stands between the start and the end of an exchange
runs while it goes. An exchange without a start and an end of its own holds everything up.
"""

import re
from collections.abc import Sequence

from fiberjax.plans import costs
from fiberjax.plans.hlo import (
    Computation,
    Instruction,
    Module,
    async_stage,
    fused,
    trip_count,
    walk,
)


def overlapped_bytes(module: Module, bytes_per_flop: float, default_trips: int = 1) -> float:
    """Bytes that a device sends while it computes matrix products.

    Of each exchange at most what its links carry in the time that the products between its start
    and its end take at peak, those of loops as often as they go round; a product hides one exchange
    at a time, the one that starts first. An exchange that starts in one round of a loop and ends in
    the next goes on from the start to the end of the loop's body and from there to its own end.

    Args:
      module: from `hlo.parse`.
      bytes_per_flop: bytes a second of the links over operations a second at peak.
      default_trips: see `hlo.walk`.
    """
    runs: dict[int, int] = {}
    computations: dict[int, Computation] = {}
    for instruction, computation, times in walk(module, default_trips):
        if instruction is next(iter(computation.values())):
            runs[id(computation)] = runs.get(id(computation), 0) + times
            computations[id(computation)] = computation
    return sum(
        times * _overlapped(module, computations[key], bytes_per_flop, default_trips)
        for key, times in runs.items()
    )


def _overlapped(
    module: Module, computation: Computation, bytes_per_flop: float, default_trips: int
) -> float:
    """Of the exchanges that start in one run of a computation."""
    order = list(computation.values())
    room: dict[str, float] = {}  # What may still go beside an instruction, bytes.
    total = 0.0
    for first, start in enumerate(order):
        if not _starts(module, start):
            continue
        sent = sum(one.wire_bytes for one in costs.exchanges(module, start, computation))
        last = _end(module, order, first)
        if last is None:
            continue
        between = order[first + 1 : last] if last > first else order[first + 1 :] + order[:last]
        for instruction in between:
            if instruction.name not in room:
                products = _products(module, instruction, computation, default_trips)
                room[instruction.name] = bytes_per_flop * products
            hidden = min(room[instruction.name], sent)
            room[instruction.name] -= hidden
            sent -= hidden
            total += hidden
    return total


def _products(
    module: Module, instruction: Instruction, computation: Computation, default_trips: int
) -> int:
    """Operations of the products of an instruction and of the loops and choices in it."""
    if instruction.opcode == "fusion":
        return costs.products(module, instruction, computation)
    times = trip_count(module, instruction, default_trips) if instruction.opcode == "while" else 1
    inside = sum(
        _products(module, of, module.computations[name], default_trips)
        for names in instruction.callees().values()
        for name in names
        for of in module.computations[name].values()
    )
    return costs.products(module, instruction, computation) + times * inside


def _starts(module: Module, instruction: Instruction) -> bool:
    if async_stage(module, instruction) == "start":
        return True
    return instruction.opcode in {f"{kind}-start" for kind in costs.COLLECTIVES}


def _end(module: Module, order: Sequence[Instruction], first: int) -> int | None:
    """Where the exchange that starts at `first` ends: after it, or else in the next round."""
    start = order[first]
    for position in (*range(first + 1, len(order)), *range(first)):
        instruction = order[position]
        if start.opcode != "fusion":
            if start.name in instruction.operands and instruction.opcode.endswith("-done"):
                return position
        elif async_stage(module, instruction) == "done":
            if _identity(module, instruction) == _identity(module, start):
                return position
    return None


def _identity(module: Module, part: Instruction) -> set[tuple[str, ...]]:
    """What every part of an overlapped exchange says of the whole: kind, channel, shapes."""
    return {
        (of.opcode, *re.findall(r"channel_id=\d+", of.attributes), *map(str, of.arrays))
        for of, _ in fused(module, part)
        if of.opcode in costs.COLLECTIVES
    }
