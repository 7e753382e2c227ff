"""Reads the text of a compiled program, and walks it as it runs: loops as often as they go round.

The text is of one device, since that is what a partitioned program is for, and includes whatever
the partitioner added. What it costs is counted in `costs`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%[\w.\-]+")
_CALLEES = re.compile(
    r"(calls|body|condition|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
      dtype: as XLA names it, e.g. "bf16".
      shape: on one device.
      fast: whether it lives in on-chip memory, not in HBM.
    """

    dtype: str
    shape: tuple[int, ...]
    fast: bool

    @property
    def num_bytes(self) -> int:
        """Bytes without the padding of tiles."""
        bits = _BITS.get(self.dtype) or int((re.findall(r"\d+", self.dtype) or ["0"])[0])
        return math.prod(self.shape) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: with its percent sign.
      opcode: e.g. "fusion".
      arrays: the result, several for a tuple.
      operands: names.
      attributes: the text after the operands.
      root: whether it is the computation's result.
      literal: the text between the parentheses.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool
    literal: str

    @property
    def num_bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.num_bytes for array in self.arrays)

    @property
    def hbm_bytes(self) -> int:
        """Bytes of the result in HBM."""
        return sum(array.num_bytes for array in self.arrays if not array.fast)

    @property
    def source(self) -> str:
        """The operation of the traced program that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    def callees(self) -> dict[str, list[str]]:
        """Names of the computations it calls, by role."""
        return {role: _NAME.findall(names) for role, names in _CALLEES.findall(self.attributes)}


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      entry: name of the computation that runs.
      computations: by name; instructions by name, in order.
      aliased: number of results that reuse a donated argument's memory.
    """

    entry: str
    computations: dict[str, Computation]
    aliased: int


def parse(text: str) -> Module:
    """Reads the text of a compiled module, `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if line.endswith("{") and " -> " in line and not line.startswith(" "):
            name = _NAME.search(line)
            assert name is not None
            current = computations.setdefault(name.group(), {})
            if line.startswith("ENTRY"):
                entry = name.group()
        elif " = " in line and line.startswith(" "):
            instruction = _parse_line(line)
            if instruction is not None:
                current[instruction.name] = instruction
    header = text.split("\n", 1)[0]
    return Module(entry, computations, len(re.findall(r"(?:may|must)-alias", header)))


def _parse_line(line: str) -> Instruction | None:
    left, right = line.split(" = ", 1)
    name = _NAME.search(left)
    if name is None:
        return None
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    start = rest.find("(")
    if start < 0:
        return None
    close = _closing(rest, start)
    literal = rest[start + 1 : close - 1]
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), "S(" in (layout or ""))
        for dtype, dims, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape))
    )
    return Instruction(
        name=name.group(),
        opcode=rest[:start].strip(),
        arrays=arrays,
        operands=tuple(_NAME.findall(literal)),
        attributes=rest[close:],
        root="ROOT" in left,
        literal=literal,
    )


def _closing(text: str, start: int) -> int:
    """Position after the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return position + 1
    return len(text)


def trip_count(module: Module, loop: Instruction, default: int) -> int:
    """How often the body of a while loop runs; `default` where the text does not say."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known.group(1))
    roles = loop.callees()
    condition = module.computations[roles["condition"][0]]
    body = module.computations[roles["body"][0]]
    compare = next(i for i in condition.values() if i.root)
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return default
    counter, bound = (condition[name] for name in compare.operands)
    if bound.opcode != "constant" or counter.opcode != "get-tuple-element":
        return default
    index = re.search(r"index=(\d+)", counter.attributes)
    assert index is not None
    step = _step(body, int(index.group(1)))
    return -(-int(bound.literal) // step)


def _step(body: Computation, index: int) -> int:
    """By how much a loop's counter grows; 1 unless the body adds another constant to it."""
    root = next(i for i in body.values() if i.root)
    if root.opcode != "tuple":
        return 1
    seen = body.get(root.operands[index])
    while seen is not None and seen.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        seen = body.get(seen.operands[0])
    if seen is None or seen.opcode != "add":
        return 1
    for name in seen.operands:
        operand = body.get(name)
        if operand is not None and operand.opcode == "constant" and operand.literal.isdigit():
            return max(1, int(operand.literal))
    return 1


def walk(module: Module, default_trips: int = 1) -> Iterator[tuple[Instruction, Computation, int]]:
    """Every instruction that runs outside fusions, its computation, and how often it runs.

    Both sides of a choice count, such as the kernels of layers that slide and of those that do not.

    Args:
      module: from `parse`.
      default_trips: of loops whose length is not in the text: the sampler's, which may end early. A
        loop around such loops, as that of slots is, counts once.
    """

    @functools.cache
    def unknown(name: str) -> bool:
        """Whether a computation holds a loop of unknown length."""
        return any(
            (of.opcode == "while" and trip_count(module, of, -1) < 0)
            or any(unknown(callee) for callees in of.callees().values() for callee in callees)
            for of in module.computations[name].values()
        )

    def visit(name: str, times: int) -> Iterator[tuple[Instruction, Computation, int]]:
        computation = module.computations[name]
        for instruction in computation.values():
            yield instruction, computation, times
            roles = instruction.callees()
            if instruction.opcode == "while":
                body = roles["body"][0]
                trips = trip_count(module, instruction, 1 if unknown(body) else default_trips)
                yield from visit(body, times * trips)
            elif instruction.opcode != "fusion":
                for callees in roles.values():
                    for callee in callees:
                        yield from visit(callee, times)

    yield from visit(module.entry, 1)


def fused(module: Module, fusion: Instruction) -> Iterator[tuple[Instruction, Computation]]:
    """Every instruction inside a fusion, those of fusions in it too, and its computation."""
    for name in fusion.callees().get("calls", ()):
        computation = module.computations[name]
        for instruction in computation.values():
            yield instruction, computation
            if instruction.opcode == "fusion":
                yield from fused(module, instruction)


def async_stage(module: Module, instruction: Instruction) -> str | None:
    """The part of an overlapped exchange that a fusion carries: "start", "continue" or "done".

    XLA cuts an exchange into a start, pieces inside the fusions that it overlaps with, and an end;
    every part names the whole exchange and passes all its buffers on.
    """
    if instruction.opcode != "fusion":
        return None
    if "continuation_config" in instruction.attributes:
        return "continue"
    (callee,) = instruction.callees()["calls"]
    for inner in module.computations[callee].values():
        if inner.opcode == "custom-call":
            for stage in ("Start", "Done"):
                if f'"AsyncCollective{stage}"' in inner.attributes:
                    return stage.lower()
    return None
