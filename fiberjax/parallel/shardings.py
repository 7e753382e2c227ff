"""How everything is split over the mesh: parameters, activations, layouts, and train states.

One table says how each parameter is split, one how activations are. Trajectories never leave their
device; the small tables of the levels above are added over the row axes and held by everyone.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import layout as memory_layout
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fiberjax.layout import TRAJECTORY, Layout
from fiberjax.parallel.mesh import (
    REPLICATED,
    ROW_AXES,
    ROWS,
    STORE_AXES,
    local_rows,
    row_shards,
    stored_parts,
    with_fsdp,
)
from fiberjax.policy import Placement, TransformerConfig, apart, attention
from fiberjax.policy.placement import put_rows, select_columns, write_columns

# Path of a parameter (and of its moments in the optimizer state) -> how its axes are split. The
# leading axis of `layers/...` is the layer, which is scanned over and never split. Experts are
# split by `tensor`, whole experts to a device. Adapters are split as the sides of their matrices
# are; their rank is not.
PARTITION_RULES: tuple[tuple[str, P], ...] = (
    (r"(embed|head)/kernel$", P("tensor", STORE_AXES)),
    (r"layers/attention/[qkv]/kernel$", P(None, STORE_AXES, "tensor")),
    (r"layers/attention/[qkv]/bias$", P(None, "tensor")),
    (r"layers/attention/o/kernel$", P(None, "tensor", STORE_AXES)),
    (r"layers/(attention/[qkv]|mlp/(gate|up))/lora_a$", P(None, STORE_AXES)),
    (r"layers/(attention/[qkv]|mlp/(gate|up))/lora_b$", P(None, None, "tensor")),
    (r"layers/(attention/o|mlp/down)/lora_a$", P(None, "tensor")),
    (r"layers/(attention/o|mlp/down)/lora_b$", P(None, None, STORE_AXES)),
    (r"layers/mlp/(gate|up)/kernel$", P(None, STORE_AXES, "tensor")),
    (r"layers/mlp/down/kernel$", P(None, "tensor", STORE_AXES)),
    (r"layers/experts/router/kernel$", P(None, STORE_AXES)),
    (r"layers/experts/(gate|up)/kernel$", P(None, "tensor", STORE_AXES)),
    (r"layers/experts/down/kernel$", P(None, "tensor", None, STORE_AXES)),
    (r"norm/scale$", P()),
)

ACTIVATION_SPECS: Mapping[str, P] = {
    "rows": ROWS,  # [B, ...]
    "activation": P(ROW_AXES, "sequence"),  # [B, S, D]
    "heads": P(ROW_AXES, "sequence", "tensor"),  # [B, S, heads, head_dim]
    "mlp": P(ROW_AXES, "sequence", "tensor"),  # [B, S, F]
    "column": P(ROW_AXES, "tensor"),  # [B, kv heads, S, head_dim]
    "columns": P(ROW_AXES, "tensor", "sequence"),  # [B, kv heads, S, head_dim], of whole rows
}

# A layer's matrix by the axis that `tensor` splits (of experts, it is their first: by the axis that
# `fsdp` does not), or one of its adapter -> as it is stored, and as its product reads it.
KERNEL_SPECS: Mapping[str, tuple[P, P]] = {
    "out": (P(STORE_AXES, "tensor"), P(None, "tensor")),
    "in": (P("tensor", STORE_AXES), P("tensor", None)),
    "out lora_a": (P(STORE_AXES), P()),
    "out lora_b": (P(None, "tensor"), P(None, "tensor")),
    "in lora_a": (P("tensor"), P("tensor")),
    "in lora_b": (P(None, STORE_AXES), P()),
    "expert out": (P("tensor", STORE_AXES), P("tensor")),
    "expert in": (P("tensor", None, STORE_AXES), P("tensor")),
}


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as `layers/attention/q/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


# Rows of a TPU's smallest tile, [8, 128] numbers.
SUBLANES = 8

# Bytes a device of parameters and two moments in float32 that more replicas may cost it: a
# fifteenth of the smallest TPU's memory.
REPLICA_BYTES = 2**30


def tiled_parts(
    shapes: Mapping[str, tuple[int, ...]], fsdp: int, tensor: int = 1, sequence: int = 1
) -> int:
    """Into how many parts `fsdp` devices of a TPU should split the parameters; divides `fsdp`.

    The most that leave every part of every matrix a multiple of 8 along the axis that is split,
    whole tiles. Thinner parts the TPU compiler pads to tiles at best; on a slice of one replica it
    neither gathers nor scatters them, but adds whole matrices padded with zeros, which sends twice
    the bytes. Devices beyond that hold replicas. Where a device would then hold more than
    `REPLICA_BYTES` of parameters and moments, the state is what must fit and all of `fsdp` split
    it, whatever is sent.

    Args:
      shapes: path of each parameter -> its shape, as `PARTITION_RULES` knows them.
      fsdp: devices that could each hold a part.
      tensor: size of that mesh axis, which splits other axes.
      sequence: of that one, which splits what `fsdp` does further.

    >>> shapes = {"layers/mlp/up/kernel": (24, 896, 4864)}
    >>> tiled_parts(shapes, 16), tiled_parts(shapes, 64)  # 56 rows each; 14 would be too few.
    (16, 16)
    """
    sizes = [
        size
        for name, shape in shapes.items()
        for pattern, spec in PARTITION_RULES
        if re.search(pattern, name)
        for size, axis in zip(shape, spec, strict=False)
        if axis == STORE_AXES
    ]
    divisors = [parts for parts in range(fsdp, 0, -1) if fsdp % parts == 0]
    least = SUBLANES * sequence
    whole = (parts for parts in divisors if all(size % (least * parts) == 0 for size in sizes))
    parts = next(whole, 1)
    held = 12 * sum(map(math.prod, shapes.values())) // (parts * sequence * tensor)
    return parts if held <= REPLICA_BYTES else fsdp


def in_whole_tiles(device_mesh: Mesh, params: Any) -> Mesh:
    """The mesh with `fsdp` of `tiled_parts` and replicas beyond; itself on what has no tiles.

    Args:
      device_mesh: with as many devices along `fsdp` as could each hold a part.
      params: parameters, or their shapes.
    """
    if device_mesh.devices.flat[0].platform != "tpu":
        return device_mesh
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    shapes = {path_name(path): leaf.shape for path, leaf in leaves}
    sizes = device_mesh.shape
    parts = tiled_parts(shapes, sizes["fsdp"], sizes["tensor"], sizes["sequence"])
    return with_fsdp(device_mesh, parts)


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
        raise ValueError(
            f"no partition rule matches parameter {name!r}; see shardings.PARTITION_RULES"
        )

    return jax.tree_util.tree_map_with_path(choose, params)


def sampling_shardings(mesh: Mesh, params: Any) -> Any:
    """The sharding of each parameter while sampling: in parts over `tensor` alone.

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
        named = (axes,) if isinstance(axes, str) else tuple(axes or ())
        names = [axis for axis in named if mesh.shape[axis] > 1]
        parts = math.prod(mesh.shape[axis] for axis in names)
        if size % parts:
            raise ValueError(
                f"parameter {name!r} of shape {shape} does not divide: {size} over "
                f"{parts} parts of mesh axis {'×'.join(names)}"
            )


def placement(
    mesh: Mesh, config: TransformerConfig, *, row_axes: tuple[str, ...] = ROW_AXES
) -> "MeshPlacement":
    """Where a policy's arrays lie on this mesh, and its attention, as `config.attention` has it.

    Args:
      mesh: the mesh.
      config: shape of the policy.
      row_axes: what the rows are split over: without `data`, those of one replica.

    Raises:
      ValueError: attention that cannot run there; see `attention.choose`.
    """
    chosen = attention.choose(
        config, hardware(mesh.devices.flat[0]), mesh.shape["tensor"], mesh.shape["sequence"]
    )
    return MeshPlacement(mesh, chosen, config.sliding_window, row_axes)


def hardware(device: Any) -> attention.Hardware:
    """What a device is, to those who choose kernels for it."""
    if device.platform != "gpu":
        return attention.Hardware(device.platform)
    if "cuda" not in device.client.platform_version.lower():
        return attention.Hardware("rocm")
    return attention.Hardware("cuda", float(device.compute_capability))


@dataclasses.dataclass(frozen=True)
class MeshPlacement(Placement):
    """`ACTIVATION_SPECS` and `KERNEL_SPECS` on a mesh; use `placement`, which checks.

    Attributes:
      mesh: the mesh.
      attention: "dense", or the kernel that each device runs over its rows and heads: "splash" or
        "cudnn".
      window: of the policy's sliding layers, 0 for none: the kernels' masks are static.
      row_axes: what the rows are split over.
    """

    mesh: Mesh
    attention: str
    window: int = 0
    row_axes: tuple[str, ...] = ROW_AXES

    def spec(self, name: str) -> P:
        """That of `ACTIVATION_SPECS`, for rows that are split over `row_axes`."""
        return P(*(self.row_axes if of == ROW_AXES else of for of in ACTIVATION_SPECS[name]))

    @property
    def platform(self) -> str:
        """Of the devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    @property
    def row_shards(self) -> int:
        """Into how many parts the rows are split."""
        return math.prod(self.mesh.shape[axis] for axis in self.row_axes)

    @property
    def vocabulary_parts(self) -> int:
        """Into how many parts the table of logits is split, where its rows divide by them."""
        return self.mesh.shape["tensor"]

    def activation(self, x: jax.Array, name: str) -> jax.Array:
        """`x`, split as `ACTIVATION_SPECS` says."""
        spec = self.spec(name)
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

    @property
    def flat(self) -> bool:
        """Whether columns lie together."""
        return self.mesh.shape["sequence"] == 1

    def spread(self, columns: jax.Array) -> jax.Array:
        """Columns in `apart.order`."""
        parts = self.mesh.shape["sequence"]
        return columns if parts == 1 else columns[:, apart.order(columns.shape[1], parts)]

    def restore(self, x: jax.Array) -> jax.Array:
        """Columns in that of the rows."""
        parts = self.mesh.shape["sequence"]
        if parts == 1:
            return x
        held = self.spec("activation")
        home = functools.partial(apart.back, axis="sequence", parts=parts)
        return jax.shard_map(home, mesh=self.mesh, in_specs=held, out_specs=held, check_vma=False)(
            x
        )

    def kernel(self, kernel: jax.Array, split: str) -> jax.Array:
        """The matrix gathered over `STORE_AXES`; its gradient is scattered over them."""
        if stored_parts(self.mesh) == 1:
            return kernel
        stored, read = (NamedSharding(self.mesh, spec) for spec in KERNEL_SPECS[split])
        return _gathered(kernel, stored, read)

    def attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        segment_ids: jax.Array,
        *,
        scale: float | None = None,
        window: jax.Array | int | None = None,
    ) -> jax.Array:
        """Attention of whole rows, each device its rows, heads and queries."""
        if self.attention == "dense":
            if self.mesh.shape["sequence"] > 1:
                return self._dense_apart(query, key, value, segment_ids, scale, window)
            return super().attend(query, key, value, segment_ids, scale=scale, window=window)
        # Fewer key-value heads than parts: several parts read the same one.
        copies = math.lcm(key.shape[1], self.mesh.shape["tensor"]) // key.shape[1]
        key, value = (jnp.repeat(part, copies, axis=1) for part in (key, value))
        parts = (query, key, value, segment_ids)
        if window is None or isinstance(window, int):
            return self._kernel(window, scale, *parts)
        # Layers of both kinds: a kernel for each, of which one runs.
        return jax.lax.cond(
            window == self.window,
            functools.partial(self._kernel, self.window, scale),
            functools.partial(self._kernel, None, scale),
            *parts,
        )

    def _dense_apart(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        segment_ids: jax.Array,
        scale: float | None,
        window: jax.Array | int | None,
    ) -> jax.Array:
        """Dense attention where columns lie on several devices: of each its queries."""
        specs = self.spec("columns"), self.spec("column")
        split, whole = (NamedSharding(self.mesh, spec) for spec in specs)
        key, value = (_gathered(part, split, whole) for part in (key, value))
        column = jnp.asarray(apart.order(segment_ids.shape[1], self.mesh.shape["sequence"]))
        mask = attention.causal_mask(segment_ids, column, segment_ids, column, window=window)
        return attention.masked(query, key, value, mask, scale=scale)

    def _kernel(self, window: int | None, scale: float | None, *parts: jax.Array) -> jax.Array:
        """The kernel over query, key, value and segment ids."""
        if self.mesh.shape["sequence"] > 1:
            return self._kernel_apart(window, scale, *parts)

        def local(*parts: jax.Array) -> jax.Array:
            on_cpu = self.platform == "cpu"
            if self.attention == "cudnn":
                implementation: Literal["cudnn", "xla"] = "xla" if on_cpu else "cudnn"
                return attention.cudnn(
                    *parts, scale=scale, window=window, implementation=implementation
                )
            return attention.splash(*parts, scale=scale, window=window, interpret=on_cpu)

        if self.mesh.size == 1:
            return local(*parts)
        heads, narrow = self.spec("heads"), self.spec("column")
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(heads, narrow, narrow, self.spec("rows")),
            out_specs=heads,
            # The kernels do not say over which axes its result varies.
            check_vma=False,
        )(*parts)

    def _kernel_apart(
        self, window: int | None, scale: float | None, *parts: jax.Array
    ) -> jax.Array:
        """What `_kernel` computes where the columns of a row lie on several devices."""
        count = self.mesh.shape["sequence"]
        kernel = apart.make_kernel(
            parts[0].shape[1], count, window=window, interpret=self.platform == "cpu"
        )
        tables = kernel.manual_sharding_spec(NamedSharding(self.mesh, P(None, "sequence")))
        heads, narrow = self.spec("heads"), self.spec("columns")

        def local(kernel: attention.Kernel, *parts: jax.Array) -> jax.Array:
            return apart.splash(*parts, axis="sequence", parts=count, kernel=kernel, scale=scale)

        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(tables, heads, narrow, narrow, self.spec("rows")),
            out_specs=heads,
            check_vma=False,
        )(kernel, *parts)

    def experts(
        self,
        local: Callable[..., jax.Array],
        x: jax.Array,
        share: jax.Array,
        expert: jax.Array,
        *kernels: jax.Array,
    ) -> jax.Array:
        """Each device its rows, through the experts it holds; added over `tensor`.

        The devices of a `tensor` group hold the same rows, so no token moves.
        """
        if self.mesh.size == 1:
            return local(0, x, share, expert, *kernels)

        def held(x: jax.Array, share: jax.Array, expert: jax.Array, *kernels: jax.Array) -> Any:
            first = jax.lax.axis_index("tensor") * kernels[0].shape[0]
            return jax.lax.psum(local(first, x, share, expert, *kernels), "tensor")

        return jax.shard_map(
            held,
            mesh=self.mesh,
            in_specs=(*[self.spec("activation")] * 3, *[P("tensor")] * len(kernels)),
            out_specs=self.spec("activation"),
            # Checked, the permutations' own gradients would have to say over which axes they vary.
            check_vma=False,
        )(x, share, expert, *kernels)

    def by_rows(self, local: Callable[..., Any], *arrays: Any) -> Any:
        """`local` on each device's rows."""
        return self._local(local, (self.spec("rows"),) * len(arrays), self.spec("rows"))(*arrays)

    def write(
        self,
        table: jax.Array,
        layer: jax.Array,
        column: jax.Array,
        new: jax.Array,
        *,
        columns: int,
    ) -> tuple[jax.Array, jax.Array]:
        """Each device its rows, and its heads where they divide."""
        narrow, cache = self._narrow(table)
        specs = (cache, REPLICATED, self.spec("rows"), narrow)
        local = functools.partial(
            select_columns if self.platform == "tpu" else write_columns, columns=columns
        )
        return self._local(local, specs, (cache, narrow))(table, layer, column, new)

    def put(self, table: jax.Array, new: jax.Array, source: jax.Array) -> jax.Array:
        """Each device its rows, and its heads where they divide."""
        _, cache = self._narrow(table)
        return self._local(put_rows, (cache, cache, self.spec("rows")), cache)(table, new, source)

    def _narrow(self, table: jax.Array) -> tuple[P, P]:
        """How a column [B, G, ...] and a cache [L, B, G, ...] lie."""
        divides = table.shape[2] % self.mesh.shape["tensor"] == 0
        narrow = self.spec("column") if divides else self.spec("rows")
        return narrow, P(None, *narrow)

    def _local(self, local: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        if self.mesh.size == 1:
            return local
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            # What is the same on all parts of `tensor` is computed on each of them.
            check_vma=False,
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(kernel: jax.Array, stored: NamedSharding, read: NamedSharding) -> jax.Array:
    """An array that is split over some axes, whole; its gradient is added and split again at once.

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
    """Partition specs of a layout: all by rows but the tables above trajectories, replicated."""
    rows: Any = ROWS
    everywhere: Any = REPLICATED
    top = layout.index(TRAJECTORY)
    return dataclasses.replace(
        layout,
        mask=rows,
        cell_id=None if layout.cell_id is None else rows,
        parents=tuple(everywhere if k > top else rows for k in range(len(layout.parents))),
        sizes=tuple(everywhere if k > top else rows for k in range(len(layout.sizes))),
        state_id=None if layout.state_id is None else rows,
    )


def local_layout(mesh: Mesh, layout: Layout) -> Layout:
    """This process's part of a layout that every process built whole, ready for `place`.

    Ids of cells up to the trajectory are then counted within each row shard, where their tables
    are. Each row must hold as many cells as every other.
    """
    rows, top = local_rows(mesh, layout.mask.shape[0]), layout.index(TRAJECTORY)

    def part(table: Any) -> Any:
        return table[local_rows(mesh, len(table))]

    def within(ids: Any, size: int) -> Any:
        held = size // row_shards(mesh)
        return np.where(ids < size, ids % held, held).astype(np.int32)

    sizes = [len(size) for size in layout.sizes]
    below = [within(part(layout.parents[k]), sizes[k + 1]) for k in range(top)]
    at_top = [part(parents) for parents in layout.parents[top : top + 1]]
    return dataclasses.replace(
        layout,
        mask=layout.mask[rows],
        cell_id=None if layout.cell_id is None else within(layout.cell_id[rows], sizes[0]),
        parents=(*below, *at_top, *layout.parents[top + 1 :]),
        sizes=(*map(part, layout.sizes[: top + 1]), *layout.sizes[top + 1 :]),
        state_id=None if layout.state_id is None else layout.state_id[rows],
    )


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of a pytree with shardings, as a checkpoint is restored onto them."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
