"""Slices that exist, and a clear error for those that do not."""

import pytest

from fiberjax.plans import topologies


def test_real_slices():
    assert topologies.parse_topology("v5e:16x16").num_chips == 256
    assert topologies.parse_topology("v4:2x2x1").num_chips == 4
    assert topologies.parse_topology("v5p:16x16x24").num_chips == 6144
    assert topologies.parse_topology("v5e:16x16*4").num_chips == 1024
    assert topologies.parse_topology("tpu7x:4x4x4").num_devices == 128
    for generation, chip in topologies.CHIPS.items():
        for shape in topologies.slice_shapes(generation):
            assert topologies.parse_topology(f"{generation}:{shape}").num_chips <= chip.max_chips


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v7:2x2", "no TPU 'v7'; choose from v4, v5e"),
        ("v5e:32x32", r"no slice '32x32'.*16x16 \(at most 256 chips\)"),
        ("v5p:4x4x5", "no slice '4x4x5'; choose from 2x2x1"),
        ("v5e", "no slice ''"),
        ("v5e:4x4*0", "must be positive; got '0'"),
    ],
)
def test_slices_that_do_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        topologies.parse_topology(name)
