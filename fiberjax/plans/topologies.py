"""Published facts of TPU generations: chips, slices that exist, and their devices for compiling."""

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of TPU; figures of a chip.

    Attributes:
      hbm: bytes that a program may use, as the compiler has it, a little below the capacity.
      peak_flops: bfloat16 operations a second.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second between chips, one direction of all links.
      devices: JAX devices a chip.
      max_chips: of the largest slice.
      flat: whether slices are two-dimensional.
      config: the compiler's name of the chip's arrangement.
    """

    hbm: int
    peak_flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    devices: int
    max_chips: int
    flat: bool
    config: str


CHIPS: Mapping[str, Chip] = {
    "v4": Chip(int(30.75 * GIB), 275e12, 1.23e12, 1.5e11, 1, 4096, False, "megacore"),
    "v5e": Chip(int(15.75 * GIB), 197e12, 8.19e11, 2.0e11, 1, 256, True, "default"),
    "v5p": Chip(int(95.74 * GIB), 459e12, 2.765e12, 6.0e11, 1, 6144, False, "megacore"),
    "v6e": Chip(int(31.25 * GIB), 918e12, 1.64e12, 4.48e11, 1, 256, True, "default"),
    "tpu7x": Chip(int(189.5 * GIB), 2307e12, 7.38e12, 6.0e11, 2, 9216, False, "default"),
}

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several equal slices.

    Attributes:
      generation: a key of `CHIPS`.
      shape: chips along each axis of a slice.
      slices: joined by the data-centre network.
    """

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """The kind of chip."""
        return CHIPS[self.generation]

    @property
    def num_chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        """JAX devices of all slices."""
        return self.num_chips * self.chip.devices

    def __str__(self) -> str:
        name = f"{self.generation}:{'x'.join(map(str, self.shape))}"
        return name if self.slices == 1 else f"{name}*{self.slices}"


def slice_shapes(generation: str) -> tuple[str, ...]:
    """The shapes of slices that a generation has, smallest first, as `4x4x8`."""
    chip = CHIPS[generation]
    if chip.flat:
        return _FLAT
    # Beyond a rack of 4 x 4 x 4 slices are built of whole racks.
    sides = [4 * k for k in range(1, 7)]
    cubes = [
        cube
        for cube in itertools.combinations_with_replacement(sides, 3)
        if math.prod(cube) <= chip.max_chips
    ]
    cubes.sort(key=math.prod)
    return (*_SMALL_CUBES, *("x".join(map(str, cube)) for cube in cubes))


def parse_topology(name: str) -> Topology:
    """Reads `v5e:16x16`, or `v5e:16x16*4` for four slices.

    Raises:
      ValueError: a generation or a slice that does not exist, with those that do.

    >>> parse_topology("v5p:4x4x8").num_chips
    128
    """
    generation, _, rest = name.partition(":")
    if generation not in CHIPS:
        raise ValueError(
            f"topology {name!r}: there is no TPU {generation!r}; choose from {', '.join(CHIPS)}, "
            "for example v5e:16x16"
        )
    shape, _, slices = rest.partition("*")
    shapes = slice_shapes(generation)
    if shape not in shapes:
        shown = shapes if len(shapes) <= 20 else (*shapes[:16], "...", shapes[-1])
        raise ValueError(
            f"topology {name!r}: {generation} has no slice {shape!r}; choose from "
            f"{', '.join(shown)} (at most {CHIPS[generation].max_chips} chips)"
        )
    if slices and not (slices.isdigit() and int(slices) >= 1):
        raise ValueError(
            f"topology {name!r}: the number of slices must be positive; got {slices!r}"
        )
    sides = tuple(int(side) for side in shape.split("x"))
    return Topology(generation, sides, int(slices) if slices else 1)


def compile_environment() -> None:
    """Lets the TPU compiler run on a machine without TPUs; call before jax is imported."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    # Nothing is driven: several plans may be made at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def describe_devices(topology: Topology) -> list[Any]:
    """The devices of a topology, to compile for; needs libtpu, but no TPU.

    Raises:
      RuntimeError: libtpu is not installed.
    """
    from jax.experimental import topologies

    sides = (*topology.shape, 1, 1)[:3]
    options: dict[str, Any] = {
        "chip_config_name": topology.chip.config,
        "chips_per_host_bounds": tuple(min(2, side) for side in (*sides[:2], 1)),
    }
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    name = f"{topology.generation}:{'x'.join(map(str, topology.shape))}"
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        raise RuntimeError(
            f"the TPU compiler cannot describe {topology}: {error}. It comes with "
            "libtpu, the extra `tpu`: uv sync --inexact --extra tpu"
        ) from error
    devices = list(described.devices)
    if len(devices) != topology.num_devices:
        raise RuntimeError(
            f"{topology} has {topology.num_devices} devices; the compiler sees {len(devices)}"
        )
    return devices
