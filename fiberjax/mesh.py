"""The mesh and every sharding: nobody else makes one.

Three axes: `data` (replicas of the parameters), `fsdp` (parameters and optimizer state split, rows
split too) and `tensor` (heads, MLP and vocabulary split). Rows of a batch lie over `data` and
`fsdp` together. Trajectories never leave their device; the small tables of the levels above are
added over the same axes and held by everyone.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import layout as memory_layout
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fiberjax.layout import Layout
from fiberjax.policy import Placement, TransformerConfig, attention

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")
ROWS = P(ROW_AXES)
REPLICATED = P()

# Path of a parameter (and of its moments in the optimizer state) -> how its axes are split. The
# leading axis of `layers/...` is the layer, which is scanned over and never split.
PARTITION_RULES: tuple[tuple[str, P], ...] = (
    (r"(embed|head)/kernel$", P("tensor", "fsdp")),
    (r"layers/attention/[qkv]/kernel$", P(None, "fsdp", "tensor")),
    (r"layers/attention/[qkv]/bias$", P(None, "tensor")),
    (r"layers/attention/o/kernel$", P(None, "tensor", "fsdp")),
    (r"layers/mlp/(gate|up)/kernel$", P(None, "fsdp", "tensor")),
    (r"layers/mlp/down/kernel$", P(None, "tensor", "fsdp")),
    (r"norm/scale$", P()),
)

ACTIVATION_SPECS: Mapping[str, P] = {
    "activation": P(ROW_AXES),  # [B, S, D]
    "heads": P(ROW_AXES, None, "tensor"),  # [B, S, heads, head_dim]
    "mlp": P(ROW_AXES, None, "tensor"),  # [B, S, F]
    "column": P(ROW_AXES, "tensor"),  # [B, kv heads, S, head_dim]
}

# A layer's matrix by the axis that `tensor` splits -> as it is stored, and as its product reads it.
KERNEL_SPECS: Mapping[str, tuple[P, P]] = {
    "out": (P("fsdp", "tensor"), P(None, "tensor")),
    "in": (P("tensor", "fsdp"), P("tensor", None)),
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes `data`, `fsdp` and `tensor`.

    Args:
      sizes: size of each axis; one of them may be −1 and takes what the others leave.
      devices: the devices to use, all of them by default.

    Raises:
      ValueError: an unknown axis, a size that is not positive, or sizes that do not multiply to the
        number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if set(sizes) != set(AXES):
        raise ValueError(f"mesh must give a size for each of {AXES}; got {sorted(sizes)}")
    shape = [sizes[axis] for axis in AXES]
    shown = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise ValueError(f"mesh sizes must be positive, at most one of them −1; got {shown}")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise ValueError(f"mesh {shown} does not fit {len(devices)} devices")
    num_slices = len({_slice(device) for device in devices})
    if shape[0] % num_slices:
        raise ValueError(
            f"mesh data={shape[0]} must be a multiple of the {num_slices} slices: only replicas of "
            "the parameters may be joined by the slow network between them"
        )
    # Auto axes: the compiler places what the specs below leave open.
    arranged = np.array(_arrange(devices)).reshape(shape)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice(device: Any) -> int:
    """The TPU slice of a device; 0 where there is but one, and on other hardware."""
    index = getattr(device, "slice_index", None)
    return 0 if index is None else index


def _arrange(devices: Sequence[Any]) -> list[Any]:
    """Devices in an order in which neighbours are neighbours, and a process stands together.

    A process must hold one block of a batch's rows. On a TPU, hosts follow each other in a snake
    through the slice, and so do the chips of a host: consecutive ranks of an axis are linked.
    """
    processes: dict[tuple[int, int], list[Any]] = {}
    for device in devices:
        processes.setdefault((_slice(device), device.process_index), []).append(device)

    def corner(of: list[Any]) -> tuple[int, ...]:
        return tuple(min(device.coords[k] for device in of) for k in range(3))

    if not all(hasattr(device, "coords") for device in devices):
        return [device for key in sorted(processes) for device in processes[key]]
    arranged = []
    for index in sorted({key[0] for key in processes}):
        hosts = [of for key, of in processes.items() if key[0] == index]
        for host in _snake(hosts, corner):
            arranged += _snake(host, lambda device: (*device.coords, device.core_on_chip))
    return arranged


def _snake(items: list[Any], place: Callable[[Any], tuple[int, ...]]) -> list[Any]:
    """Items by their places, (x, y, z, ...), each line run through in the other direction."""
    ranks = [
        {at: rank for rank, at in enumerate(sorted({place(item)[k] for item in items}))}
        for k in range(len(place(items[0])))
    ]

    def key(item: Any) -> tuple[int, ...]:
        at = place(item)
        # Devices of a chip stay together; then z slowest, x fastest.
        result, lines = [], 0
        for k in (2, 1, 0):
            rank = ranks[k][at[k]]
            rank = len(ranks[k]) - 1 - rank if lines % 2 else rank
            result.append(rank)
            lines = lines * len(ranks[k]) + rank
        return (*result, *at[3:])

    return sorted(items, key=key)


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as `layers/attention/q/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def param_shardings(mesh: Mesh, params: Any) -> Any:
    """The sharding of each parameter by `PARTITION_RULES`; a pytree like `params`.

    Raises:
      ValueError: a parameter without a rule, or one whose size does not divide over its axes.
    """

    def choose(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in PARTITION_RULES:
            if re.search(pattern, name):
                _check_divides(mesh, name, leaf.shape, spec)
                return NamedSharding(mesh, spec)
        raise ValueError(f"no partition rule matches parameter {name!r}; see mesh.PARTITION_RULES")

    return jax.tree_util.tree_map_with_path(choose, params)


def sampling_shardings(mesh: Mesh, params: Any) -> Any:
    """The sharding of each parameter while sampling: `fsdp` holds all of it, `tensor` a part.

    A decoding step reads every parameter for a few tokens: gathering them at each step would take
    longer than the step.
    """

    def whole(sharding: NamedSharding) -> NamedSharding:
        kept = [axis if axis == "tensor" else None for axis in sharding.spec]
        return NamedSharding(mesh, P(*kept))

    return jax.tree.map(whole, param_shardings(mesh, params))


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Shardings of a whole train state: moments like their parameters, everything else replicated.

    A moment is recognised by the same path rules as its parameter, and by having a parameter's
    number of axes: factored or scalar statistics are replicated.
    """

    def choose(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in PARTITION_RULES:
            if re.search(pattern, name) and len(leaf.shape) >= len(spec):
                _check_divides(mesh, name, leaf.shape, spec)
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, REPLICATED)

    return jax.tree_util.tree_map_with_path(choose, state)


def _check_divides(mesh: Mesh, name: str, shape: tuple[int, ...], spec: P) -> None:
    for size, axes in zip(shape, spec, strict=False):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        parts = math.prod(mesh.shape[axis] for axis in names)
        if size % parts:
            raise ValueError(
                f"parameter {name!r} of shape {shape} does not divide: {size} over "
                f"{parts} parts of mesh axis {'×'.join(names)}"
            )


def placement(mesh: Mesh, config: TransformerConfig) -> "MeshPlacement":
    """Where a policy's arrays lie on this mesh, and its attention, as `config.attention` has it.

    Raises:
      ValueError: splash attention on a GPU, or query heads that do not divide for it.
    """
    platform = mesh.devices.flat[0].platform
    tensor = mesh.shape["tensor"]
    divides = config.num_heads % math.lcm(config.num_kv_heads, tensor) == 0
    if config.attention == "dense":
        return MeshPlacement(mesh, splash=False)
    if config.attention == "auto" and not (platform == "tpu" and divides):
        return MeshPlacement(mesh, splash=False)
    if platform not in ("tpu", "cpu"):
        raise ValueError(
            "config.policy.attention = 'splash' runs on TPUs, and on CPUs for tests; the mesh is "
            f"of {platform} devices: choose 'dense' or 'auto'"
        )
    if not divides:
        raise ValueError(
            f"config.policy.attention = 'splash' splits heads over mesh tensor={tensor}: num_heads "
            f"= {config.num_heads} must divide by lcm(num_kv_heads = {config.num_kv_heads}, "
            f"{tensor}); choose 'dense', 'auto' or another size"
        )
    return MeshPlacement(mesh, splash=True)


@dataclasses.dataclass(frozen=True)
class MeshPlacement(Placement):
    """`ACTIVATION_SPECS` and `KERNEL_SPECS` on a mesh; use `placement`, which checks.

    Attributes:
      mesh: the mesh.
      splash: whether each device runs the attention kernel over its rows and heads.
    """

    mesh: Mesh
    splash: bool

    @property
    def platform(self) -> str:
        """Of the devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    def activation(self, x: jax.Array, name: str) -> jax.Array:
        """`x`, split as `ACTIVATION_SPECS` says."""
        spec = ACTIVATION_SPECS[name]
        x = jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))
        divides = name == "column" and x.shape[1] % self.mesh.shape["tensor"] == 0
        return self._in_order(x, spec) if divides and self.platform == "tpu" else x

    def _in_order(self, x: jax.Array, spec: P) -> jax.Array:
        """`x`, in memory in the order of its axes.

        Left to itself, the TPU compiler lays the cache out for writing a column, and copies all of
        it for every read. Under `shard_map`, because the constraint is not split by itself.
        """
        order = memory_layout.Layout(tuple(range(x.ndim)))
        if self.mesh.size == 1:
            return memory_layout.with_layout_constraint(x, order)
        return jax.shard_map(
            lambda x: memory_layout.with_layout_constraint(x, order),
            mesh=self.mesh,
            in_specs=spec,
            out_specs=spec,
            check_vma=False,
        )(x)

    def kernel(self, kernel: jax.Array, split: str) -> jax.Array:
        """The matrix gathered over `fsdp`; its gradient is scattered over it."""
        if self.mesh.shape["fsdp"] == 1:
            return kernel
        stored, read = (NamedSharding(self.mesh, spec) for spec in KERNEL_SPECS[split])
        return _gathered(kernel, stored, read)

    def attend(
        self, query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
    ) -> jax.Array:
        """Attention of whole rows, each device its rows and heads."""
        if not self.splash:
            return super().attend(query, key, value, segment_ids)

        def local(*parts: jax.Array) -> jax.Array:
            return attention.splash(*parts, interpret=self.platform == "cpu")

        # Fewer key-value heads than parts: several parts read the same one.
        copies = math.lcm(key.shape[1], self.mesh.shape["tensor"]) // key.shape[1]
        key, value = (jnp.repeat(part, copies, axis=1) for part in (key, value))
        if self.mesh.size == 1:
            return local(query, key, value, segment_ids)
        heads, narrow = ACTIVATION_SPECS["heads"], ACTIVATION_SPECS["column"]
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(heads, narrow, narrow, ROWS),
            out_specs=heads,
            # The kernel does not say over which axes its result varies.
            check_vma=False,
        )(query, key, value, segment_ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(kernel: jax.Array, stored: NamedSharding, read: NamedSharding) -> jax.Array:
    """A matrix that is split over `fsdp`, whole; its gradient is added and split again at once.

    Left to itself, the TPU compiler may turn product and gather into a loop of partial products,
    which pass their sum through memory at every round.
    """
    del stored
    return jax.lax.with_sharding_constraint(kernel, read)


_gathered.defvjp(
    lambda kernel, stored, read: (_gathered(kernel, stored, read), None),
    lambda stored, read, _, gradient: (jax.lax.with_sharding_constraint(gradient, stored),),
)


def layout_specs(layout: Layout) -> Layout:
    """Partition specs of a layout: tokens and finest cells by rows, the tables above replicated."""
    rows: Any = ROWS
    everywhere: Any = REPLICATED
    return dataclasses.replace(
        layout,
        mask=rows,
        cell_id=None if layout.cell_id is None else rows,
        parents=tuple(everywhere if k else rows for k in range(len(layout.parents))),
        sizes=tuple(everywhere if k else rows for k in range(len(layout.sizes))),
        state_id=None if layout.state_id is None else rows,
    )


def local_shards(mesh: Mesh) -> range:
    """The row shards that this process holds."""
    held = local_rows(mesh, row_shards(mesh))
    return range(held.start, held.stop)


def local_rows(mesh: Mesh, num_rows: int) -> slice:
    """The block of a batch's rows that this process holds, and so generates and verifies.

    Raises:
      ValueError: the rows do not divide over the mesh.
    """
    shards = row_shards(mesh)
    if num_rows % shards:
        raise ValueError(
            f"{num_rows} rows do not divide over {shards} row shards "
            f"(data={mesh.shape['data']} × fsdp={mesh.shape['fsdp']})"
        )
    indices = NamedSharding(mesh, ROWS).addressable_devices_indices_map((num_rows,))
    blocks = {index[0].indices(num_rows)[:2] for index in indices.values() if index is not None}
    start, stop = min(block[0] for block in blocks), max(block[1] for block in blocks)
    if sum(last - first for first, last in blocks) != stop - start:
        raise ValueError(
            f"this process holds rows {sorted(blocks)} of {num_rows}, which are not one block; "
            "the devices of a process must follow each other in the mesh"
        )
    return slice(start, stop)


def place(mesh: Mesh, tree: Any, specs: Any) -> Any:
    """Puts host arrays onto the mesh: split arrays hold this process's rows, others everything.

    Args:
      mesh: the mesh.
      tree: host arrays. One with spec `ROWS` holds the rows `local_rows` names.
      specs: a partition spec for each array, or one for all.
    """
    if isinstance(specs, P):
        specs = jax.tree.map(lambda _: specs, tree)

    def put(leaf: Any, spec: P) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), np.asarray(leaf))

    return jax.tree.map(put, tree, specs)


def gather(mesh: Mesh, local: np.ndarray) -> np.ndarray:
    """The rows of all processes, in the order of the mesh; every process must call it."""
    if jax.process_count() == 1:
        return np.asarray(local)
    placed = place(mesh, np.asarray(local), ROWS)
    everywhere = NamedSharding(mesh, REPLICATED)
    return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(placed))


def local_values(array: jax.Array) -> np.ndarray:
    """This process's rows of an array split by rows, in order, each once."""
    if array.is_fully_addressable:
        return np.asarray(array)
    rows = {
        shard.index[0].indices(array.shape[0])[0]: shard.data for shard in array.addressable_shards
    }
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def local_layout(mesh: Mesh, layout: Layout) -> Layout:
    """This process's part of a layout that every process built whole, ready for `place`."""
    rows = local_rows(mesh, layout.mask.shape[0])
    return dataclasses.replace(
        layout,
        mask=layout.mask[rows],
        parents=(layout.parents[0][rows], *layout.parents[1:]),
        sizes=(layout.sizes[0][rows], *layout.sizes[1:]),
        state_id=None if layout.state_id is None else layout.state_id[rows],
    )


def split_rows(x: jax.Array, parts: int) -> jax.Array:
    """`[B, ...]` as `[n, B/n, ...]`; part j takes rows j, n + j, ..., so devices keep theirs."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def merge_rows(x: jax.Array) -> jax.Array:
    """Undoes `split_rows`."""
    return x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def in_micro_batches(function: Callable[[Any], Any], rows: Any, parts: int) -> Any:
    """Applies a function of rows to `parts` splits of them, one after the other, and merges."""
    if parts == 1:
        return function(rows)
    split = jax.tree.map(lambda x: split_rows(x, parts), rows)
    return jax.tree.map(merge_rows, jax.lax.map(function, split))
