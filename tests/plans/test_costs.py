"""What a compiled program costs, counted through its loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from fiberjax.plans import costs, hlo

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
    assert costs.flops(module) == LAYERS * FLOPS_OF_A_LAYER
    assert costs.flops(read(unrolled, X, WEIGHTS)) == LAYERS * FLOPS_OF_A_LAYER
    assert compiled.cost_analysis()["flops"] < 2 * FLOPS_OF_A_LAYER


def test_loops_in_loops_and_gradients():
    def loss(x, weights):
        def outer(x, _):
            return scanned(x, weights), None

        return jnp.sum(jax.lax.scan(outer, x, None, length=3)[0])

    # Forward, and a product for each of the two gradients.
    expected = 3 * 3 * LAYERS * FLOPS_OF_A_LAYER
    assert costs.flops(read(jax.grad(loss, argnums=(0, 1)), X, WEIGHTS)) == expected


def test_loops_without_a_length_take_the_default():
    def search(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e30, lambda x: x @ w, x)

    module = read(search, X, WEIGHTS[0])
    assert costs.flops(module, default_trips=5) == 5 * FLOPS_OF_A_LAYER


def test_a_loop_around_loops_without_a_length_counts_once():
    def search(x, w):
        inner = lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1e30, lambda x: x @ w, x)  # noqa: E731
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e30, inner, x)

    module = read(search, X, WEIGHTS[0])
    assert costs.flops(module, default_trips=5) == 5 * FLOPS_OF_A_LAYER


def test_collectives_are_counted_through_loops():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, split = NamedSharding(mesh, P("data")), NamedSharding(mesh, P(None, "data"))
    x = jax.ShapeDtypeStruct((ROWS, N), jnp.float32, sharding=rows)
    weights = jax.ShapeDtypeStruct((LAYERS, N, N), jnp.float32, sharding=split)
    compiled = jax.jit(scanned, out_shardings=rows).lower(x, weights).compile()
    found = costs.collectives(hlo.parse(compiled.as_text()))
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
    assert costs.flops(hlo.parse(text)) == 2 * 4 * 128 * 896 * 64
    batched = """HloModule m

ENTRY %main (a: f32[4,2,28,64], b: f32[4,2,16,64]) -> f32[4,2,28,16] {
  %a = f32[4,2,28,64]{3,2,1,0} parameter(0)
  %b = f32[4,2,16,64]{3,2,1,0} parameter(1)
  ROOT %c = f32[4,2,28,16]{2,3,1,0:T(8,128)} convolution(%a, %b), window={size=4x2 stride=3x1 lhs_dilate=4x2}, dim_labels=01bf_01oi->01bf
}
"""  # noqa: E501
    assert costs.flops(hlo.parse(batched)) == 2 * 4 * 2 * 28 * 16 * 64


def kernel(name: str, tables: str, queries: int = 1024) -> str:
    shapes = [f"s8[{tables}]", f"s8[{tables}]", f"bf16[3,14,{queries},64]"]
    shapes += 2 * ["bf16[3,2,1024,64]"]
    given = "".join(f"  %p.{k} = {shape} parameter({k})\n" for k, shape in enumerate(shapes))
    operands = ", ".join(f"%p.{k}" for k in range(len(shapes)))
    return f"""HloModule m

ENTRY %main (x: f32[1]) -> f32[1] {{
{given}  ROOT %{name}.1 = (f32[8,128], bf16[3,14,1024,64]) custom-call({operands}), custom_call_target="tpu_custom_call"
}}
"""  # noqa: E501


@pytest.mark.parametrize(("kind", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_kernels_count_the_blocks_that_they_compute(kind, products):
    """14 query heads, 1,024 columns, 64 wide: all of one block, or 10 of 16; under a window 7."""
    whole = products * 2 * 3 * 14 * 1024 * 1024 * 64
    window = "1,2,4" if kind == "dkv" else "1,4,2"
    for tables, share in (("1,1,1", 1.0), ("1,4,4", 10 / 16), (window, 7 / 16)):
        text = kernel(f"splash_mha_{kind}_segmented_no_residuals", tables)
        assert costs.flops(hlo.parse(text)) == share * whole


@pytest.mark.parametrize(("kind", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_kernels_of_some_queries_count_their_share(kind, products):
    """Half of 1,024 queries: half of 10 blocks of 16, or of 7."""
    whole = products * 2 * 3 * 14 * 1024 * 1024 * 64
    every, window = ("1,2,4", "1,1,4") if kind == "dkv" else ("1,2,4", "1,2,2")
    for tables, share in ((every, 5 / 16), (window, 7 / 32 if kind != "dkv" else 2 / 16)):
        text = kernel(f"splash_mha_{kind}_segmented_no_residuals", tables, 512)
        assert costs.flops(hlo.parse(text)) == share * whole


def test_kernels_of_experts_count_every_row():
    """70 rows, 64 wide, by matrices of three experts to 32, and back; preparing costs nothing."""
    text = """HloModule m

ENTRY %main (n: s32[3]) -> bf16[70,32] {
  %n = s32[3]{0} parameter(0)
  %x = bf16[70,64]{1,0} parameter(1)
  %w = bf16[3,64,32]{2,1,0} parameter(2)
  %ragged-dot-metadata = (s32[4]{0}, s32[5]{0}, s32[5]{0}, s32[1]{0}) custom-call(%n), custom_call_target="tpu_custom_call"
  %a = s32[4]{0} get-tuple-element(%ragged-dot-metadata), index=0
  %ragged-dot-none.1 = bf16[70,32]{1,0} custom-call(%a, %a, %a, %a, %a, %x, %w), custom_call_target="tpu_custom_call"
  ROOT %tgmm.3 = bf16[3,64,32]{2,1,0} custom-call(%a, %a, %a, %a, %a, %x, %ragged-dot-none.1), custom_call_target="tpu_custom_call"
}
"""  # noqa: E501
    assert costs.flops(hlo.parse(text)) == 2 * 2 * 70 * 64 * 32


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match=r"%mystery\.1 is not known; only splash"):
        costs.flops(hlo.parse(kernel("mystery", "1,1,1")))


# As the TPU compiler prints them, of a table of 24 layers: one layer copied into another tiling
# inside a product's fusion; a part of one chosen and put back, beside a result of its own; a table
# that a product reads through a bitcast.
CACHED = """HloModule m, is_scheduled=true

%tiled (t: s8[24,64,512]) -> s8[24,64,512] {
  %t = s8[24,64,512]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %c = s8[24,64,512]{2,1,0:T(8,128)(4,1)} copy(%t)
}

%layer (t: s8[24,64,512], l: s32[]) -> bf16[1,64,512] {
  %t = s8[24,64,512]{2,1,0:T(32,128)(4,1)} parameter(0)
  %l = s32[] parameter(1)
  %f = s8[24,64,512]{2,1,0:T(8,128)(4,1)} fusion(%t), kind=kLoop, calls=%tiled
  %z = s32[] constant(0)
  %s = s8[1,64,512]{2,1,0} dynamic-slice(%f, %l, %z, %z), dynamic_slice_sizes={1,64,512}
  ROOT %b = bf16[1,64,512]{2,1,0} convert(%s)
}

%put (t: f32[24,64,512], l: s32[], n: f32[64,128]) -> (f32[24,64,512], f32[1,64,128]) {
  %t = f32[24,64,512]{2,1,0} parameter(0)
  %l = s32[] parameter(1)
  %n = f32[64,128]{1,0} parameter(2)
  %z = s32[] constant(0)
  %s = f32[1,64,128]{2,1,0} dynamic-slice(%t, %l, %z, %z), dynamic_slice_sizes={1,64,128}
  %m = f32[1,64,128]{2,1,0} bitcast(%n)
  %a = f32[1,64,128]{2,1,0} add(%s, %m)
  %u = f32[24,64,512]{2,1,0} dynamic-update-slice(%t, %a, %l, %z, %z)
  ROOT %r = (f32[24,64,512]{2,1,0}, f32[1,64,128]{2,1,0}) tuple(%u, %a)
}

%flat (t: bf16[24,1,64]) -> bf16[24,64] {
  %t = bf16[24,1,64]{2,1,0} parameter(0)
  ROOT %b = bf16[24,64]{1,0} bitcast(%t)
}

%read (t: bf16[24,1,64]) -> bf16[24] {
  %t = bf16[24,1,64]{2,1,0} parameter(0)
  %f = bf16[24,64]{1,0} fusion(%t), kind=kLoop, calls=%flat
  %z = bf16[] constant(0)
  ROOT %s = bf16[24]{0} reduce(%f, %z), dimensions={1}, to_apply=%add
}

ENTRY %main (t: s8[24,64,512], l: s32[], f: f32[24,64,512], n: f32[64,128], w: bf16[24,1,64]) -> bf16[24] {
  %t = s8[24,64,512]{2,1,0:T(32,128)(4,1)} parameter(0)
  %l = s32[]{:S(6)} parameter(1)
  %f = f32[24,64,512]{2,1,0} parameter(2)
  %n = f32[64,128]{1,0:S(1)} parameter(3)
  %w = bf16[24,1,64]{2,1,0} parameter(4)
  %a = bf16[1,64,512]{2,1,0:S(1)} fusion(%t, %l), kind=kLoop, calls=%layer
  %b = (f32[24,64,512]{2,1,0}, f32[1,64,128]{2,1,0:S(1)}) fusion(%f, %l, %n), kind=kLoop, calls=%put
  %m = f32[1,64,128]{2,1,0:S(1)} bitcast(%n)
  %d = f32[24,64,512]{2,1,0} dynamic-update-slice(%f, %m, %l, %l, %l)
  ROOT %c = bf16[24]{0:S(1)} fusion(%w), kind=kLoop, calls=%read
}
"""  # noqa: E501


def test_traffic_is_of_what_a_fusion_asks_for():
    """A layer of the table, not all of it; a part read and written in place; a matrix whole.

    And a part that is on the chip, which is written alone.
    """
    layer, part, matrix = 64 * 512, 64 * 128 * 4, 24 * 64 * 2
    assert costs.hbm_bytes(hlo.parse(CACHED)) == layer + 2 * part + matrix + part


ESTIMATED = """HloModule m, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %y = f32[8]{0} negate(%x), backend_config={"estimated_cycles":"30"}
  %z = f32[8]{0} negate(%y), backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %z)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = f32[8]{0} negate(%a), backend_config={"estimated_cycles":"7"}
  %zero = s32[] constant(0)
  %t = (s32[], f32[8]{0}) tuple(%zero, %b)
  %w = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  ROOT %r = f32[8]{0} get-tuple-element(%w), index=1
}
"""  # noqa: E501


def test_estimated_cycles_are_summed_over_loops_where_there_is_an_estimate():
    assert costs.estimated_cycles(hlo.parse(ESTIMATED)) == 7 + 24 * 30


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
    (gather,) = costs.collectives(module)
    assert (gather.kind, gather.times, gather.num_bytes) == ("all-gather", 1, 1000 * 64 * 2)
    assert costs.flops(module) == 24 * 2 * 8**3
    table = 1000 * 16 * 2 + 1000 * 64 * 2
    assert costs.hbm_bytes(module) == table + 24 * 2 * 8 * 8 * 4


def test_what_goes_from_slice_to_slice_is_what_hosts_send():
    """In a loop of three rounds, 4 kB a round; hosts are sent other things too."""
    text = """HloModule m

%body (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %t = token[] after-all()
  %s = (f32[8,128]{1,0}, u32[], token[]) send(%p, %t), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %o = (f32[8,128]{1,0}, u32[], token[]) send(%p, %t), channel_id=3, is_host_transfer=true
  ROOT %r = f32[8,128]{1,0} copy(%p)
}

%condition (p: f32[8,128]) -> pred[] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %l = pred[] constant(true)
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  ROOT %w = f32[8,128]{1,0} while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501
    assert costs.slow_bytes(hlo.parse(text)) == 3 * 4096


def test_groups_of_a_collective():
    for text, size in (
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=4] {'axis_0'}, dimensions={0}", 16),
        ("replica_groups=mesh['a'=2,'b'=16,'c'=4], device_ids=([4,16,2]T(1,0,2)) {'b','c'}, x", 64),
        ("channel_id=1, source_target_pairs={{0,1},{1,0}}", 2),
    ):
        assert costs._group_size(text) == size
    with pytest.raises(ValueError, match="in a form that is not known: replica_groups=new"):
        costs._group_size("replica_groups=new")
