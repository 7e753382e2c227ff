"""The mesh, and which rows each process holds: nobody else makes one.

Four axes: `data` (replicas of the parameters), `fsdp` (parameters and optimizer state split, rows
split too), `sequence` (the same of them split further, and the columns of every row) and `tensor`
(heads, MLP and vocabulary split). Rows of a batch lie over `data` and `fsdp` together. To sample,
columns come one at a time: there `sequence` splits rows like `fsdp` (`folded`).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "sequence", "tensor")
ROW_AXES = ("data", "fsdp")
# Those that split the rows of one replica.
WITHIN_REPLICA = ("fsdp",)
# What splits parameters beside `tensor`.
STORE_AXES = ("fsdp", "sequence")
ROWS = P(ROW_AXES)
REPLICATED = P()


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `AXES`.

    Args:
      sizes: size of each axis, `sequence` 1 where it is not named; one of them may be −1 and takes
        what the others leave.
      devices: the devices to use, all of them by default.

    Raises:
      ValueError: an unknown axis, a size that is not positive, or sizes that do not multiply to the
        number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"sequence": 1} | dict(sizes)
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
    return Mesh(_aligned(arranged), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def with_fsdp(device_mesh: Mesh, parts: int) -> Mesh:
    """The same devices in the same order, `parts` along `fsdp` and the others in more replicas.

    Rows lie where they lay: they are split over `data` and `fsdp` together.

    Raises:
      ValueError: parts that do not divide `fsdp`.
    """
    data, fsdp, *others = device_mesh.devices.shape
    if parts < 1 or fsdp % parts:
        raise ValueError(f"fsdp={fsdp} cannot be cut into groups of {parts}")
    devices = device_mesh.devices.reshape(data * (fsdp // parts), parts, *others)
    return Mesh(_aligned(devices), AXES, axis_types=device_mesh.axis_types)


def folded(device_mesh: Mesh) -> Mesh:
    """The same devices in the same order, those of `sequence` along `fsdp`: what samples.

    Parameters lie where they lay. Each process holds the rows that it held, finer split.

    Raises:
      ValueError: the columns of a row lie on several processes, which would each hold others of the
        rows to sample than of those to train on.
    """
    data, fsdp, sequence, tensor = device_mesh.devices.shape
    if sequence == 1:
        return device_mesh
    for shard in device_mesh.devices.reshape(data * fsdp, -1):
        if len({device.process_index for device in shard}) > 1:
            raise ValueError(
                f"mesh sequence={sequence} × tensor={tensor} lies over several processes: expected "
                "no more than the devices of one"
            )
    devices = device_mesh.devices.reshape(data, fsdp * sequence, 1, tensor)
    return Mesh(devices, AXES, axis_types=device_mesh.axis_types)


def split(
    sizes: Mapping[str, int], sampling: int, devices: Sequence[Any] | None = None
) -> tuple[Mesh, Mesh]:
    """The mesh that trains and the one that samples: the same, or apart.

    Args:
      sizes: of the mesh that trains; see `make_mesh`. The other has the same `tensor`, and replicas
        of the parameters beside it, which sampling reads whole.
      sampling: devices that sample and do nothing else, the last ones; 0 for none.
      devices: the devices to use, all of them by default.

    Raises:
      ValueError: as `make_mesh`; or too many devices sample, or they do not divide over `tensor`,
        or they are of several processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    if sampling == 0:
        whole = make_mesh(sizes, devices)
        return whole, whole
    tensor = sizes["tensor"]
    shown = f"{sampling} devices that sample (config.rollout.devices)"
    if sampling >= len(devices):
        raise ValueError(f"{shown} leave none of {len(devices)} to train")
    if tensor < 1 or sampling % tensor:
        raise ValueError(f"{shown} do not divide over tensor={tensor}")
    if len({device.process_index for device in devices}) > 1:
        raise ValueError(f"{shown}: that is for runs of one process, and there are several")
    apart = {"data": sampling // tensor, "fsdp": 1, "tensor": tensor}
    trains = make_mesh(sizes, devices[: len(devices) - sampling])
    return trains, make_mesh(apart, devices[len(devices) - sampling :])


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


def _aligned(devices: np.ndarray) -> np.ndarray:
    """Devices [data, fsdp, tensor] with every replica in the order of the first one.

    A snake runs through every other line backwards: the devices of the same rank in each replica
    would lie askew, and the TPU compiler refuses exchanges between such for slices without
    wraparound. Replicas that are no translations of the first stay as they are.
    """
    if not all(hasattr(device, "coords") for device in devices.flat):
        return devices
    orders = []
    for replica in devices:
        places = np.array([(*of.coords, of.core_on_chip) for of in replica.flat])
        relative = map(tuple, places - places.min(0))
        orders.append(dict(zip(relative, replica.flat, strict=True)))
    first = list(orders[0])
    if any(order.keys() != orders[0].keys() for order in orders):
        return devices
    aligned = np.empty(devices.shape, object)
    aligned.reshape(-1)[:] = [order[at] for order in orders for at in first]
    return aligned


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


def stored_parts(mesh: Mesh) -> int:
    """Into how many parts parameters are split, beside those of `tensor`."""
    return math.prod(mesh.shape[axis] for axis in STORE_AXES)


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


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
    return np.asarray(_replicate(NamedSharding(mesh, REPLICATED))(placed))


@functools.cache
def _replicate(everywhere: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """The compiled copy to all devices; one function a mesh, so that it compiles once a shape."""
    return jax.jit(lambda x: x, out_shardings=everywhere)


def local_values(array: jax.Array) -> np.ndarray:
    """This process's rows of an array split by rows, in order, each once."""
    if array.is_fully_addressable:
        return np.asarray(array)
    rows = {
        shard.index[0].indices(array.shape[0])[0]: shard.data for shard in array.addressable_shards
    }
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def process_share(mesh: Mesh, num_rows: int) -> tuple[int, int]:
    """Which part of a global batch this process feeds: its index, and the number of parts."""
    rows = local_rows(mesh, num_rows)
    size = rows.stop - rows.start
    return rows.start // size, num_rows // size
