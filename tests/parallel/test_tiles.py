"""TPUs split parameters into whole tiles, and replicas are translations of one another."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from configs import qwen2_5_0_5b
from fiberjax import experiment
from fiberjax.parallel import mesh, shardings
from fiberjax.tasks import loading


@dataclasses.dataclass(frozen=True)
class Device:
    """A chip of a flat slice whose hosts have 2 x 2."""

    coords: tuple[int, int, int]
    process_index: int
    platform: str = "tpu"
    core_on_chip: int = 0
    slice_index: int = 0
    device_kind: str = "TPU v5 lite"


def chips(side: int) -> list[Device]:
    return [
        Device((x, y, 0), x // 2 + side // 2 * (y // 2)) for y in range(side) for x in range(side)
    ]


def shapes(width: int, hidden: int, vocab: int, layers: int) -> dict[str, tuple[int, ...]]:
    return {
        "embed/kernel": (vocab, width),
        "layers/attention/o/kernel": (layers, width, width),
        "layers/mlp/up/kernel": (layers, width, hidden),
        "layers/mlp/down/kernel": (layers, hidden, width),
        "final_norm/scale": (width,),
    }


HALF_BILLION = shapes(896, 4864, 151_936, 24)


@pytest.mark.parametrize(
    ("of", "fsdp", "parts"),
    [
        (HALF_BILLION, 4, 4),
        (HALF_BILLION, 16, 16),
        (HALF_BILLION, 64, 16),  # 896 = 16 x 56, and 14 are no tiles.
        (HALF_BILLION, 48, 16),
        (
            HALF_BILLION,
            3,
            3,
        ),  # 5 GB if whole: left to be refused by `param_shardings`.
        (shapes(1536, 8960, 151_936, 28), 64, 64),
        (shapes(3584, 18_944, 152_064, 28), 64, 64),
        # 2880 = 8 x 360: eight parts would be whole, but hold 17 GB a device each.
        (shapes(2880, 23_040, 201_088, 70), 64, 64),
        (shapes(100, 64, 64, 1), 4, 1),
    ],
)
def test_parts_are_whole_tiles_where_replicas_are_small(of, fsdp, parts):
    assert shardings.tiled_parts(of, fsdp) == parts


def test_the_bound_on_replicas_is_of_what_a_device_holds():
    """12 bytes a parameter; the axis `tensor` splits them too."""
    width, layers = 8 * 9, 10_000
    of = {"layers/attention/q/kernel": (layers, width, width)}
    held = 12 * layers * width * width // 9
    assert shardings.REPLICA_BYTES / 16 < held < shardings.REPLICA_BYTES
    assert shardings.tiled_parts(of, 18) == 9
    of = {"layers/attention/q/kernel": (16 * layers, width, width)}
    assert shardings.tiled_parts(of, 18) == 18
    assert shardings.tiled_parts(of, 18, tensor=16) == 9


def test_rows_stay_where_they_are():
    wide = mesh.make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
    narrow = mesh.with_fsdp(wide, 2)
    assert dict(narrow.shape) == {"data": 4, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert list(narrow.devices.flat) == list(wide.devices.flat)
    assert mesh.row_shards(narrow) == mesh.row_shards(wide)
    with pytest.raises(ValueError, match="fsdp=8 cannot be cut into groups of 3"):
        mesh.with_fsdp(wide, 3)


def test_replicas_are_translations_of_the_first():
    """Chips of one rank lie in a line, and each host's rows together."""
    devices = mesh.make_mesh({"data": 4, "fsdp": 16, "tensor": 1}, chips(8)).devices
    assert len(set(devices.flat)) == 64
    places = np.array([[of.coords for of in replica.flat] for replica in devices])
    moved = places - places[:1]
    assert (moved == moved[:, :1]).all()
    hosts = [of.process_index for of in devices.flat]
    assert sum(a != b for a, b in itertools.pairwise(hosts)) == 15


def test_replicas_of_other_shapes_stay_as_they_are():
    """Two of a 3 x 2 block's halves are no translations, and all six chips are there."""
    devices = [Device((x, y, 0), 0) for y in range(2) for x in range(3)]
    arranged = mesh.make_mesh({"data": 2, "fsdp": 3, "tensor": 1}, devices).devices
    assert set(arranged.flat) == set(devices)


def planned(devices, **sizes):
    config = qwen2_5_0_5b.get_config()
    config.rollout.prompts = 256
    config.mesh.update(sizes)
    return experiment.from_config(config, devices, loading.named_domains)


def test_what_is_left_to_fsdp_is_whole_tiles():
    """On TPUs; who says how many has as many."""
    left = planned(chips(8))
    assert dict(left.mesh.shape) == {"data": 4, "fsdp": 16, "sequence": 1, "tensor": 1}
    assert left.sampling_mesh is left.mesh
    assert planned(chips(8), fsdp=64).mesh.shape["fsdp"] == 64


def test_other_platforms_have_no_tiles():
    wide = mesh.make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
    assert shardings.in_whole_tiles(wide, {"embed": {"kernel": np.zeros((8, 8))}}) is wide
    assert jax.devices()[0].platform == "cpu"
