"""What a compiled program costs: arithmetic, memory traffic, exchanges, counted through its loops.

XLA's own cost analysis counts the body of a loop once. Here every instruction counts as often as it
runs. Figures are of one device.
"""

import collections
import dataclasses
import math
import re

import numpy as np

from fiberjax.plans.hlo import Computation, Instruction, Module, async_stage, fused, walk

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_NO_ESTIMATE = 2**63 - 1
# Instructions that move nothing by themselves.
_FREE = frozenset(
    [
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
        *("call", "after-all", "partition-id", "iota", "copy-done", "async-done", "async-update"),
        *("slice-done", "opt-barrier", "add-dependency"),
        *(f"{kind}-done" for kind in COLLECTIVES),
    ]
)


def flops(module: Module, default_trips: int = 1) -> int:
    """Floating-point operations of the matrix products, two a multiply-add, on one device.

    Raises:
      ValueError: a TPU kernel whose arithmetic is not known.
    """
    total = 0
    for instruction, computation, times in walk(module, default_trips):
        total += times * products(module, instruction, computation)
    return total


def products(module: Module, instruction: Instruction, computation: Computation) -> int:
    """Operations of one instruction and of what is fused into it, not of loops in it."""
    inner = fused(module, instruction) if instruction.opcode == "fusion" else ()
    own = _matmul_flops(instruction, computation)
    return own + sum(_matmul_flops(*of) for of in inner)


def _matmul_flops(instruction: Instruction, computation: Computation) -> int:
    if instruction.opcode == "dot":
        left = computation[instruction.operands[0]].arrays[0].shape
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [int(n) for n in axes.group(1).split(",") if n] if axes else []
        out = math.prod(instruction.arrays[0].shape)
        return 2 * out * math.prod(left[axis] for axis in contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, computation)
    if instruction.opcode == "custom-call" and '"tpu_custom_call"' in instruction.attributes:
        return _kernel_flops(instruction, computation)
    return 0


# Matrix products of queries' and keys' size in each splash attention kernel: scores and values
# forward; scores again and two of the gradients' for queries; and for keys and values.
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def _kernel_flops(instruction: Instruction, computation: Computation) -> int:
    """Of splash attention, or of a product of rows sorted by expert with their experts' matrices.

    The latter, and the gradient of the matrices, count as if every row met a matrix. A device that
    holds a part of the experts computes only the rows that go to them.
    """
    if instruction.name.startswith("%ragged-dot-metadata"):
        return 0
    if instruction.name.startswith("%ragged-dot-none"):
        rows, contracted = computation[instruction.operands[5]].arrays[0].shape
        return 2 * rows * contracted * instruction.arrays[0].shape[-1]
    if instruction.name.startswith("%tgmm"):
        rows = computation[instruction.operands[6]].arrays[0].shape[0]
        return 2 * rows * math.prod(instruction.arrays[0].shape[-2:])
    return _splash_flops(instruction, computation)


def _splash_flops(instruction: Instruction, computation: Computation) -> int:
    """Of JAX's splash attention with a causal mask, which leaves out the blocks that see nothing.

    Its first operand is the table of blocks, int8[heads or 1, n, w], or for the gradient of keys
    [heads or 1, w, n]: each of n rows of blocks sees the w blocks that end with its own, all n of
    them without a window. Those that would lie before the first are not computed. Where the columns
    of a row lie on several devices, queries are a part of them, and each device computes as many
    blocks as any other.
    """
    kind = re.match(r"%splash_m[hq]a_(fwd|dq|dkv)_", instruction.name)
    if kind is None:
        raise ValueError(
            f"the arithmetic of TPU kernel {instruction.name} is not known; only splash "
            "attention's and ragged products'"
        )
    operands = [computation[name].arrays[0].shape for name in instruction.operands[:5]]
    *rows, columns, head_dim = operands[2]
    *_, keys, _ = operands[3]
    if kind.group(1) == "dkv":
        width, blocks = operands[0][-2:]
        # A device with some of the queries has no more rows than these, though blocks see more.
        width = blocks if width * keys == blocks * columns else width
    else:
        queries, width = operands[0][-2:]
        blocks = queries * keys // columns
    computed = blocks * width - width * (width - 1) // 2
    product = 2 * math.prod(rows) * columns * keys * head_dim
    return _SPLASH_PRODUCTS[kind.group(1)] * product * computed // blocks**2


def _convolution_flops(instruction: Instruction, computation: Computation) -> int:
    """A TPU runs every matrix product as a convolution; batch axes become dilated windows."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    left, right, out = labels.groups()
    inputs, kernel = (computation[name].arrays[0].shape for name in instruction.operands[:2])
    result = instruction.arrays[0].shape
    size = {label: inputs[k] for k, label in enumerate(left)}
    window = {label: kernel[k] for k, label in enumerate(right)}
    made = {label: result[k] for k, label in enumerate(out)}
    spatial = sorted(label for label in left if label.isdigit())
    options = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    text = options.group(1) if options else ""
    total = 2 * made["b"] * made["f"] * window["i"]
    for k, label in enumerate(spatial):
        total *= _valid_positions(
            size[label],
            window[label],
            made[label],
            stride=_window_option(text, "stride", k, 1),
            low=_window_option(text, "pad", k, 0),
            base=_window_option(text, "lhs_dilate", k, 1),
            dilation=_window_option(text, "rhs_dilate", k, 1),
        )
    return total // _count_option(instruction.attributes, "batch_group_count")


def _window_option(text: str, name: str, axis: int, default: int) -> int:
    found = re.search(rf"(?:^|\s){name}=([\w\-]+)", text)
    return int(found.group(1).split("x")[axis].split("_")[0]) if found else default


def _count_option(text: str, name: str) -> int:
    found = re.search(rf"{name}=(\d+)", text)
    return int(found.group(1)) if found else 1


def _valid_positions(
    size: int, window: int, made: int, *, stride: int, low: int, base: int, dilation: int
) -> int:
    """Pairs of output and window positions along an axis that meet a real input, not padding."""
    position = np.arange(made)[:, None] * stride + np.arange(window) * dilation - low
    inside = (position >= 0) & (position <= (size - 1) * base) & (position % base == 0)
    return int(inside.sum())


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange between devices, all its runs in a program.

    Attributes:
      kind: one of `COLLECTIVES`.
      shapes: of the result, e.g. "f32[16,2]".
      devices: how many exchange.
      times: how often it runs.
      num_bytes: payload of one run on one device: the larger of what goes in and comes out.
      source: the operation of the traced program that it comes from.
    """

    kind: str
    shapes: str
    devices: int
    times: int
    num_bytes: int
    source: str

    @property
    def wire_bytes(self) -> float:
        """Bytes a device sends over all runs, by the ring algorithm."""
        if self.kind == "collective-permute":
            return float(self.times * self.num_bytes)
        rounds = 2 if self.kind == "all-reduce" else 1
        return self.times * self.num_bytes * rounds * (self.devices - 1) / self.devices


def collectives(module: Module, default_trips: int = 1) -> list[Collective]:
    """Every exchange between devices, alike ones together, largest traffic first.

    An exchange that XLA overlaps with arithmetic counts where it starts.
    """
    found: dict[tuple, Collective] = {}
    for instruction, computation, times in walk(module, default_trips):
        for one in exchanges(module, instruction, computation):
            key = (one.kind, one.shapes, one.devices, one.num_bytes, one.source)
            before = found[key].times if key in found else 0
            found[key] = dataclasses.replace(one, times=before + times)
    return sorted(found.values(), key=lambda c: -c.wire_bytes)


def exchanges(
    module: Module, instruction: Instruction, computation: Computation
) -> list[Collective]:
    """The exchanges that begin with one run of an instruction, inside fusions too.

    A TPU scatters sums by a fusion that is called `all-reduce-scatter` and holds an all-reduce and
    a slice of it; it sends no more than a reduce-scatter does, and counts as one.
    """
    if async_stage(module, instruction) in ("continue", "done"):
        return []
    inner = [(instruction, computation)]
    scatters = False
    if instruction.opcode == "fusion":
        inner = list(fused(module, instruction))
        (callee,) = instruction.callees()["calls"]
        scatters = callee.startswith("%all-reduce-scatter")
    found = []
    for candidate, place in inner:
        kind = candidate.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            sums = "reduce-scatter" if scatters and kind == "all-reduce" else kind
            found.append(_collective(candidate, place, sums))
    return found


def _collective(instruction: Instruction, computation: Computation, kind: str) -> Collective:
    arrays = instruction.arrays
    if instruction.opcode.endswith("-start") and len(arrays) > 1:
        arrays = arrays[len(instruction.operands) : 2 * len(instruction.operands)] or arrays[1:2]
    given = sum(computation[name].num_bytes for name in instruction.operands if name in computation)
    shown = [f"{array.dtype}[{','.join(map(str, array.shape))}]" for array in arrays]
    return Collective(
        kind=kind,
        shapes=", ".join(dict.fromkeys(shown)),
        devices=_group_size(instruction.attributes),
        times=1,
        num_bytes=max(sum(array.num_bytes for array in arrays), given),
        source=instruction.source,
    )


def _group_size(attributes: str) -> int:
    """Devices in one group of a collective, in the forms that XLA prints.

    Raises:
      ValueError: groups in another form.
    """
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? ?\{([^}]*)\}", attributes
    )
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named.group(2)))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes)
    if iota:
        return int(iota.group(2))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    if "source_target_pairs=" in attributes:
        return 2
    raise ValueError(f"groups of devices in a form that is not known: {attributes[:200]}")


def slow_bytes(module: Module, default_trips: int = 1) -> int:
    """Bytes that a device sends over the network between slices.

    The compiler exchanges within each slice, and has the hosts of the slices exchange what is left.
    """
    return sum(
        times * instruction.arrays[0].num_bytes
        for instruction, _, times in walk(module, default_trips)
        if instruction.opcode == "send" and "xla_megascale_runtime" in instruction.attributes
    )


def hbm_bytes(module: Module, default_trips: int = 1) -> int:
    """Bytes read from and written to HBM by one device.

    Each instruction outside fusions reads its operands and writes its result. A slice of an operand
    counts as the slice, and an update in place as the update. A kernel counts as reading each
    operand once, whatever its blocks read again.
    """
    total = 0
    for instruction, computation, times in walk(module, default_trips):
        if instruction.opcode not in _FREE:
            total += times * _traffic(module, instruction, computation)
    return total


def _traffic(module: Module, instruction: Instruction, computation: Computation) -> int:
    operands = [computation[name] for name in instruction.operands if name in computation]
    reads = [operand.hbm_bytes for operand in operands]
    writes = instruction.hbm_bytes
    stage = async_stage(module, instruction)
    if stage == "done":
        return 0
    if stage == "start":  # The operand comes back beside the result.
        return sum(reads) + sum(a.num_bytes for a in instruction.arrays[1:] if not a.fast)
    if stage == "continue":  # Buffers of the exchange pass through.
        bounds = dict(re.findall(r'"((?:output|operand)\w*)":"(\d+)"', instruction.attributes))
        first = int(bounds["operand_original_start"])
        reads = [
            size if first <= k <= int(bounds["operand_original_end"]) else 0
            for k, size in enumerate(reads)
        ]
        outputs = instruction.arrays[: int(bounds["output_tuple_original_end"]) + 1]
        writes = sum(array.num_bytes for array in outputs if not array.fast)
    if instruction.opcode == "slice-start":  # The operand, the slice and a flag.
        taken = instruction.arrays[1]
        return taken.num_bytes * (bool(reads[0]) + (not taken.fast))
    if instruction.opcode == "copy-start":  # The copy, the operand and a flag.
        return sum(reads) + instruction.arrays[0].num_bytes * (not instruction.arrays[0].fast)
    if instruction.opcode.endswith("-start"):
        return sum(reads)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * writes
    if instruction.opcode == "dynamic-update-slice":
        return operands[1].num_bytes + reads[1]  # An update that is on the chip is not read.
    if instruction.opcode == "fusion":
        (callee,) = instruction.callees()["calls"]
        inside = module.computations[callee]
        parameters = [i for i in inside.values() if i.opcode == "parameter"]
        for parameter in parameters:
            position = int(parameter.literal)
            if position >= len(reads) or not reads[position]:
                continue
            read = _read_bytes(module, inside, parameter)
            updates = [
                inside[user.operands[1]].num_bytes
                for user in inside.values()
                if user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name
            ]
            if updates and read < reads[position]:
                writes = max(0, writes - reads[position]) + sum(updates)
            reads[position] = min(reads[position], read)
    return sum(reads) + writes


def _read_bytes(
    module: Module, computation: Computation, value: Instruction, beyond: int | None = None
) -> int:
    """How much of a value a fused computation reads: all, or the slices it takes.

    Inside a fusion a copy, into another tiling for one, makes what is asked of it and no more.
    Where an update goes into the value itself, what it replaces is not read.

    Args:
      module: the program.
      computation: of a fusion.
      value: one of its instructions.
      beyond: what is read of the computation's result, where another takes slices of it.
    """
    if value.root:
        return value.num_bytes if beyond is None else beyond
    total = 0
    for user in computation.values():
        if value.name not in user.operands:
            continue
        if user.opcode in ("dynamic-slice", "slice") or (
            user.opcode == "gather" and user.operands[0] == value.name
        ):
            total += user.num_bytes
        elif user.opcode in ("bitcast", "copy"):
            total += _read_bytes(module, computation, user, beyond)
        elif user.opcode == "dynamic-update-slice" and user.operands.index(value.name) == 0:
            continue
        elif user.opcode == "fusion":
            inside = module.computations[user.callees()["calls"][0]]
            passed = _read_bytes(module, computation, user, beyond)
            for parameter in inside.values():
                if (
                    parameter.opcode == "parameter"
                    and user.operands[int(parameter.literal)] == value.name
                ):
                    total += _read_bytes(module, inside, parameter, passed)
        else:
            return value.num_bytes
    return min(total, value.num_bytes)


def estimated_cycles(module: Module, default_trips: int = 1) -> int:
    """What the TPU's compiler expects its operations to take, cycles of a core.

    Kernels have no estimate, nor has what the compiler says it has none for (the largest integer);
    on other platforms nothing has. Transfers that other operations hide count like these.
    """
    total = 0
    for instruction, _, times in walk(module, default_trips):
        found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        if found and int(found[1]) != _NO_ESTIMATE:
            total += times * int(found[1])
    return total


def largest(module: Module, count: int = 8) -> list[tuple[int, str, str]]:
    """The largest arrays that a program makes in HBM: (bytes, shape, source), each shape once."""
    seen: dict[tuple[str, str], int] = {}
    for instruction, _, _ in walk(module):
        if instruction.opcode in _FREE or instruction.opcode.endswith("-start"):
            continue
        for array in instruction.arrays:
            if not array.fast:
                shape = f"{array.dtype}[{','.join(map(str, array.shape))}]"
                seen.setdefault((shape, instruction.source), array.num_bytes)
    best = collections.OrderedDict[str, tuple[int, str, str]]()
    for (shape, source), size in sorted(seen.items(), key=lambda item: -item[1]):
        best.setdefault(shape, (size, shape, source))
    return list(best.values())[:count]
