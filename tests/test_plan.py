"""Pod plans: counting through loops, real slices, and refusals with numbers."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from fiberjax import hlo, plan, topologies
from fiberjax.experiment import Experiment

ROOT = Path(__file__).parents[1]
N, LAYERS, ROWS = 32, 7, 16
FLOPS_OF_A_LAYER = 2 * ROWS * N * N


def read(function, *arguments) -> hlo.Module:
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def scanned(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def unrolled(x, weights):
    for k in range(LAYERS):
        x = jnp.tanh(x @ weights[k])
    return x


X, WEIGHTS = np.ones((ROWS, N), np.float32), np.ones((LAYERS, N, N), np.float32)


def test_flops_are_counted_through_loops():
    """A loop and its body written out cost the same; the compiler's own count misses the loop."""
    compiled = jax.jit(scanned).lower(X, WEIGHTS).compile()
    module = hlo.parse(compiled.as_text())
    assert hlo.flops(module) == LAYERS * FLOPS_OF_A_LAYER
    assert hlo.flops(read(unrolled, X, WEIGHTS)) == LAYERS * FLOPS_OF_A_LAYER
    assert compiled.cost_analysis()["flops"] < 2 * FLOPS_OF_A_LAYER


def test_loops_in_loops_and_gradients():
    def loss(x, weights):
        def outer(x, _):
            return scanned(x, weights), None

        return jnp.sum(jax.lax.scan(outer, x, None, length=3)[0])

    # Forward, and a product for each of the two gradients.
    expected = 3 * 3 * LAYERS * FLOPS_OF_A_LAYER
    assert hlo.flops(read(jax.grad(loss, argnums=(0, 1)), X, WEIGHTS)) == expected


def test_loops_without_a_length_take_the_default():
    def search(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e30, lambda x: x @ w, x)

    module = read(search, X, WEIGHTS[0])
    assert hlo.flops(module, default_trips=5) == 5 * FLOPS_OF_A_LAYER


def test_collectives_are_counted_through_loops():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, split = NamedSharding(mesh, P("data")), NamedSharding(mesh, P(None, "data"))
    x = jax.ShapeDtypeStruct((ROWS, N), jnp.float32, sharding=rows)
    weights = jax.ShapeDtypeStruct((LAYERS, N, N), jnp.float32, sharding=split)
    compiled = jax.jit(scanned, out_shardings=rows).lower(x, weights).compile()
    found = hlo.collectives(hlo.parse(compiled.as_text()))
    moved = sum(c.wire_bytes for c in found)
    # Every layer gathers its weights: seven eighths of them come from elsewhere.
    assert moved == pytest.approx(LAYERS * N * N * 4 * 7 / 8, rel=0.3)
    assert {c.devices for c in found if c.kind != "collective-permute"} == {8}


def test_convolutions_that_stand_for_products():
    """As the TPU compiler prints them: a plain product, and a batched one as dilated windows."""
    text = """HloModule m, is_scheduled=true

ENTRY %main (a: bf16[4,128,896], b: bf16[1,896,64]) -> bf16[4,128,64] {
  %a = bf16[4,128,896]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[1,896,64]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[4,128,64]{2,1,0:T(8,128)(2,1)} convolution(%a, %b), window={size=1}, dim_labels=b0f_0io->b0f
}
"""  # noqa: E501
    assert hlo.flops(hlo.parse(text)) == 2 * 4 * 128 * 896 * 64
    batched = """HloModule m

ENTRY %main (a: f32[4,2,28,64], b: f32[4,2,16,64]) -> f32[4,2,28,16] {
  %a = f32[4,2,28,64]{3,2,1,0} parameter(0)
  %b = f32[4,2,16,64]{3,2,1,0} parameter(1)
  ROOT %c = f32[4,2,28,16]{2,3,1,0:T(8,128)} convolution(%a, %b), window={size=4x2 stride=3x1 lhs_dilate=4x2}, dim_labels=01bf_01oi->01bf
}
"""  # noqa: E501
    assert hlo.flops(hlo.parse(batched)) == 2 * 4 * 2 * 28 * 16 * 64


def kernel(name: str, tables: str) -> str:
    shapes = [f"s8[{tables}]", f"s8[{tables}]", "bf16[3,14,1024,64]", *2 * ["bf16[3,2,1024,64]"]]
    given = "".join(f"  %p.{k} = {shape} parameter({k})\n" for k, shape in enumerate(shapes))
    operands = ", ".join(f"%p.{k}" for k in range(len(shapes)))
    return f"""HloModule m

ENTRY %main (x: f32[1]) -> f32[1] {{
{given}  ROOT %{name}.1 = (f32[8,128], bf16[3,14,1024,64]) custom-call({operands}), custom_call_target="tpu_custom_call"
}}
"""  # noqa: E501


@pytest.mark.parametrize(("kind", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_kernels_count_the_blocks_that_they_compute(kind, products):
    """14 query heads, 1,024 columns, 64 wide: all of one block, or 10 of 16 blocks."""
    whole = products * 2 * 3 * 14 * 1024 * 1024 * 64
    for tables, share in (("1,1,1", 1.0), ("1,4,4", 10 / 16)):
        text = kernel(f"splash_mha_{kind}_segmented_no_residuals", tables)
        assert hlo.flops(hlo.parse(text)) == share * whole


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match=r"%mystery\.1 is not known; only splash"):
        hlo.flops(hlo.parse(kernel("mystery", "1,1,1")))


# As the TPU compiler prints it: a gather that starts before a loop of 24 rounds, moves on beside
# a product in each, and ends after it.
OVERLAPPED = """HloModule m, is_scheduled=true

%start (s: bf16[1000,16]) -> (bf16[1000,16], bf16[1000,64], u32[]) {
  %s = bf16[1000,16]{1,0} parameter(0)
  %g = bf16[1000,64]{1,0} all-gather(%s), channel_id=1, replica_groups=[1,4]<=[4], dimensions={1}, metadata={op_name="table"}
  ROOT %c = (bf16[1000,16]{1,0}, bf16[1000,64]{1,0}, u32[]{:S(2)}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%piece (a: bf16[1000,16], b: bf16[1000,64], u: u32[], x: f32[8,8]) -> (f32[8,8], bf16[1000,16], bf16[1000,64], bf16[1000,64], u32[]) {
  %x = f32[8,8]{1,0} parameter(3)
  %y = f32[8,8]{1,0} convolution(%x, %x), dim_labels=bf_io->bf
  %a = bf16[1000,16]{1,0} parameter(0)
  %b = bf16[1000,64]{1,0} parameter(1)
  %g = bf16[1000,64]{1,0} all-gather(%a), channel_id=1, replica_groups=[1,4]<=[4], dimensions={1}, metadata={op_name="table"}
  %u = u32[]{:S(2)} parameter(2)
  ROOT %t = (f32[8,8]{1,0}, bf16[1000,16]{1,0}, bf16[1000,64]{1,0}, bf16[1000,64]{1,0}, u32[]{:S(2)}) tuple(%y, %a, %b, %g, %u)
}

%done (a: bf16[1000,16], b: bf16[1000,64], u: u32[]) -> bf16[1000,64] {
  %a = bf16[1000,16]{1,0} parameter(0)
  %b = bf16[1000,64]{1,0} parameter(1)
  %u = u32[]{:S(2)} parameter(2)
  %g = bf16[1000,64]{1,0} all-gather(%a), channel_id=1, replica_groups=[1,4]<=[4], dimensions={1}, metadata={op_name="table"}
  ROOT %c = bf16[1000,64]{1,0} custom-call(%a, %b, %g, %u), custom_call_target="AsyncCollectiveDone"
}

%body (p: (bf16[1000,16], bf16[1000,64], u32[], f32[8,8])) -> (bf16[1000,16], bf16[1000,64], u32[], f32[8,8]) {
  %p = (bf16[1000,16]{1,0}, bf16[1000,64]{1,0}, u32[]{:S(2)}, f32[8,8]{1,0}) parameter(0)
  %p0 = bf16[1000,16]{1,0} get-tuple-element(%p), index=0
  %p1 = bf16[1000,64]{1,0} get-tuple-element(%p), index=1
  %p2 = u32[]{:S(2)} get-tuple-element(%p), index=2
  %p3 = f32[8,8]{1,0} get-tuple-element(%p), index=3
  ROOT %f = (f32[8,8]{1,0}, bf16[1000,16]{1,0}, bf16[1000,64]{1,0}, bf16[1000,64]{1,0}, u32[]{:S(2)}) fusion(%p0, %p1, %p2, %p3), kind=kOutput, calls=%piece, backend_config={"continuation_config":{"output_tuple_original_start":"0","output_tuple_original_end":"0","operand_original_start":"3","operand_original_end":"3"}}
}

%condition (p: (bf16[1000,16], bf16[1000,64], u32[], f32[8,8])) -> pred[] {
  %p = (bf16[1000,16]{1,0}, bf16[1000,64]{1,0}, u32[]{:S(2)}, f32[8,8]{1,0}) parameter(0)
  ROOT %k = pred[] constant(true)
}

ENTRY %main (s: bf16[1000,16], x: f32[8,8]) -> bf16[1000,64] {
  %s = bf16[1000,16]{1,0} parameter(0)
  %x = f32[8,8]{1,0} parameter(1)
  %b = (bf16[1000,16]{1,0}, bf16[1000,64]{1,0}, u32[]{:S(2)}) fusion(%s), kind=kCustom, calls=%start
  %b0 = bf16[1000,16]{1,0} get-tuple-element(%b), index=0
  %b1 = bf16[1000,64]{1,0} get-tuple-element(%b), index=1
  %b2 = u32[]{:S(2)} get-tuple-element(%b), index=2
  %i = (bf16[1000,16]{1,0}, bf16[1000,64]{1,0}, u32[]{:S(2)}, f32[8,8]{1,0}) tuple(%b0, %b1, %b2, %x)
  %w = (bf16[1000,16]{1,0}, bf16[1000,64]{1,0}, u32[]{:S(2)}, f32[8,8]{1,0}) while(%i), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  %w0 = bf16[1000,16]{1,0} get-tuple-element(%w), index=0
  %w1 = bf16[1000,64]{1,0} get-tuple-element(%w), index=1
  %w2 = u32[]{:S(2)} get-tuple-element(%w), index=2
  ROOT %e = bf16[1000,64]{1,0} fusion(%w0, %w1, %w2), kind=kCustom, calls=%done
}
"""  # noqa: E501


def test_overlapped_exchanges_count_once():
    """The gather is sent, read and written once; the product beside it 24 times."""
    module = hlo.parse(OVERLAPPED)
    (gather,) = hlo.collectives(module)
    assert (gather.kind, gather.times, gather.num_bytes) == ("all-gather", 1, 1000 * 64 * 2)
    assert hlo.flops(module) == 24 * 2 * 8**3
    table = 1000 * 16 * 2 + 1000 * 64 * 2
    assert hlo.hbm_bytes(module) == table + 24 * 2 * 8 * 8 * 4


def test_groups_of_a_collective():
    for text, size in (
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=4] {'axis_0'}, dimensions={0}", 16),
    ):
        assert hlo._group_size(text) == size


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


def test_refusals_of_the_compiler_are_read():
    gib = 2**30
    full = "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G."
    assert plan.needed_bytes(full, 3) == int(20.5 * gib)
    part = "the total memory required for HLO temporaries (20.50G) exceeds available HBM (15.75G)."
    assert plan.needed_bytes(part, 3) == int(20.5 * gib) + 3
    assert plan.needed_bytes("INTERNAL: something else", 3) is None


def make(arguments: list[str], topology: str, output: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "experiments/plan.py", f"--topology={topology}"]
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [*command, f"--output={output}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
    )


def has_compiler() -> bool:
    try:
        import libtpu  # noqa: F401
    except ImportError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="libtpu is not installed")


def assert_tables_only(gate: dict, groups: int, domains: int) -> None:
    """The gate's program adds level tables and scalars over devices and moves nothing else."""
    for collective in gate["collectives"]:
        assert collective["kind"] == "all-reduce", collective
        # At most two tables of the groups with two channels, one of the domains, and the scalars.
        assert collective["num_bytes"] <= 4 * (4 * groups + 2 * domains + 64), collective


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x4", "v5p:2x2x1", "v4:2x2x1"])
def test_tiny_plan(tmp_path, topology):
    output = tmp_path / "plan.json"
    options = ["--config.mesh.data=2", "--config.mesh.fsdp=-1", "--config.rollout.prompts=16"]
    done = make(
        ["--config=tests/tiny.py", *options, "--config.evaluation.batch=8"], topology, output
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(output.read_text())
    step, sampler, gate = found["programs"]
    assert found["fits"]
    assert step["aliased"][0] == step["aliased"][1] > 0
    assert step["flops"] > 0.8 * found["ideal_flops"]
    # Parameters are gathered before sampling, not at every token.
    assert sampler["wire_bytes"] == 0
    assert gate["collectives"]
    assert_tables_only(gate, groups=8, domains=5)


@needs_compiler
@pytest.mark.slow
def test_wrong_mesh_is_an_error_with_numbers(tmp_path):
    done = make(
        ["--config=tests/tiny.py", "--config.mesh.data=3"], "v5e:2x2", tmp_path / "plan.json"
    )
    assert done.returncode == 1
    assert "data=3, fsdp=1, tensor=1 does not fit 4 devices" in done.stderr
    done = make(["--config=tests/tiny.py"], "v5e:3x3", tmp_path / "plan.json")
    assert done.returncode == 1
    assert "v5e has no slice '3x3'" in done.stderr


# Config -> generation -> slices, smallest first: the first does not fit, the rest do. None where a
# generation's smallest slice fits. The whole table takes hours of CPU: FIBERJAX_PLANS=all
# runs it, FIBERJAX_PLANS=v5e one generation, and without it two entries stand for the rest.
MATRIX = {
    "qwen2_5_0_5b": {
        "v5e": (None, "1x1", "2x2", "4x4", "16x16"),
        "v6e": (None, "1x1", "4x4", "16x16"),
        "v5p": (None, "2x2x1", "4x4x4", "8x8x16"),
        "v4": (None, "2x2x1", "4x4x4", "8x8x16"),
    },
    "qwen2_5_1_5b": {
        "v5e": ("1x1", "2x2", "4x4", "16x16"),
        "v6e": ("1x1", "2x2", "16x16"),
        "v5p": (None, "2x2x1", "8x8x16"),
        "v4": (None, "2x2x1", "8x8x16"),
    },
    "qwen2_5_7b": {
        "v5e": ("2x4", "4x4", "8x8", "16x16"),
        "v6e": ("2x2", "2x4", "8x8", "16x16"),
        "v5p": (None, "2x2x1", "4x4x4", "8x8x16", "16x16x16"),
        "v4": ("2x2x1", "2x2x2", "4x4x4", "8x8x16"),
    },
    "qwen3_1_7b": {"v5e": (None, "2x2", "8x8", "16x16"), "v6e": (None, "2x2")},
}
ALWAYS = ("qwen2_5_0_5b-v5e-2x2", "qwen2_5_7b-v4-2x2x1")


def wanted() -> list:
    chosen = os.environ.get("FIBERJAX_PLANS", "")
    return [
        pytest.param(config, f"{generation}:{shape}", k > 0, id=name)
        for config, rows in MATRIX.items()
        for generation, shapes in rows.items()
        for k, shape in enumerate(shapes)
        for name in (f"{config}-{generation}-{shape}",)
        if shape is not None
        and (chosen in ("all", generation) or (chosen == "" and name in ALWAYS))
    ]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("config", "topology", "fits"), wanted())
def test_published_shapes(tmp_path, config, topology, fits):
    """Weak scaling: one prompt group a minibatch on each row shard, whatever the slice."""
    tensor = importlib.import_module(f"configs.{config}").get_config().mesh.tensor
    shards = topologies.parse_topology(topology).num_devices // tensor
    output = tmp_path / f"{config}_{topology.replace(':', '_')}.json"
    options = [f"--config.rollout.prompts={4 * shards}"]
    # Parameters in 64 parts at most: 896 columns do not divide over more than 128.
    options += [f"--config.mesh.data={max(1, shards // 64)}"]
    options += [f"--config.evaluation.batch={max(256, shards)}"]
    done = make([f"--config=configs/{config}.py", *options], topology, output)
    assert output.exists(), done.stderr[-2000:]
    found = json.loads(output.read_text())
    assert found["fits"] == fits, done.stdout
    if not fits:
        assert done.returncode == 1
        assert found["advice"]
        assert any(p["peak_bytes"] > p["limit_bytes"] for p in found["programs"])
        return
    step = found["programs"][0]
    assert step["aliased"][0] == step["aliased"][1]
    sampler, gate = found["programs"][1:]
    # A step of the sampler reads its cache once: there is no room for another pass over it.
    parameters, cache = (sampler["memory"][name] for name in ("parameters", "key-value cache"))
    assert tensor > 1 or sampler["wire_bytes"] == 0
    assert sampler["hbm_bytes"] < 1.6 * 3071 * (parameters + cache)
    assert bool(gate["collectives"]) == (shards > 1)
    assert_tables_only(gate, groups=shards, domains=5)
    assert gate["hbm_bytes"] < 1e-4 * step["hbm_bytes"]


def test_advice_names_numbers():
    program = plan.Program("train step", False, 20, 10, {"parameters": 5, "optimizer": 3})

    @dataclasses.dataclass
    class Part:
        prompts: int = 8
        samples: int = 4
        minibatches: int = 1
        micro_batches: int = 1
        chunk: int = 512
        remat: str = "none"
        compute_dtype: str = "float32"

    class Stub:
        rollout = training = policy = Part()
        mesh = jax.make_mesh((4, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:4])

    stub: Experiment = Stub()  # type: ignore[assignment]
    advice = "\n".join(plan.advise(stub, program))
    for expected in ("micro_batches = 8 instead of 1", "remat = 'full'", "mesh.data = 4", "chips"):
        assert expected in advice
    assert plan.advise(stub, dataclasses.replace(program, fits=True)) == []
