"""What a schedule sends beside its matrix products, read from text."""

import pytest
from test_costs import OVERLAPPED

from fiberjax.plans import costs, hlo, overlap, plan

GATHER = 1000 * 64 * 2 * 3 / 4
PRODUCT = 2 * 8**3


def test_an_exchange_in_pieces_goes_beside_the_loop_between_its_ends():
    """All of it where links are slow; else what they carry during 24 products."""
    module = hlo.parse(OVERLAPPED)
    assert overlap.overlapped_bytes(module, 1e9) == GATHER
    assert overlap.overlapped_bytes(module, 0.5) == 0.5 * 24 * PRODUCT


START = "all-gather-start({}), channel_id=1, replica_groups=[1,4]<=[4], dimensions={{0}}"
PAIR = "(bf16[250,64]{1,0}, bf16[1000,64]{1,0})"


def program(*lines: str) -> hlo.Module:
    """A schedule over %s, a part to gather, and %x, a factor of products."""
    text = "\n".join(f"  {line}" for line in lines)
    return hlo.parse(
        f"""HloModule m, is_scheduled=true

ENTRY %main (s: bf16[250,64], x: f32[8,8]) -> f32[8,8] {{
  %s = bf16[250,64]{{1,0}} parameter(0)
  %x = f32[8,8]{{1,0}} parameter(1)
{text}
}}
"""
    )


def start(name: str) -> str:
    return f"%{name} = {PAIR} {START.format('%s')}"


def done(name: str, of: str) -> str:
    return f"%{name} = bf16[1000,64]{{1,0}} all-gather-done(%{of})"


def product(name: str) -> str:
    return f"%{name} = f32[8,8]{{1,0}} convolution(%x, %x), dim_labels=bf_io->bf"


def test_what_nothing_stands_between_is_not_overlapped():
    at_once = program(product("y"), start("a"), done("b", "a"), product("z"))
    assert sum(one.wire_bytes for one in costs.collectives(at_once)) == GATHER
    assert overlap.overlapped_bytes(at_once, 1e9) == 0
    assert (
        overlap.overlapped_bytes(program(start("a"), product("y"), done("b", "a")), 1e9) == GATHER
    )


def test_a_product_hides_one_exchange_at_a_time():
    both = program(start("a"), start("b"), product("y"), done("c", "a"), done("d", "b"))
    half = 0.5 * GATHER / PRODUCT
    assert overlap.overlapped_bytes(both, half) == pytest.approx(0.5 * GATHER)
    assert overlap.overlapped_bytes(both, 3 * half) == pytest.approx(1.5 * GATHER)


LOOP = f"""HloModule m, is_scheduled=true

%body (p: (bf16[250,64], f32[8,8])) -> (bf16[250,64], f32[8,8]) {{
  %p = (bf16[250,64]{{1,0}}, f32[8,8]{{1,0}}, {PAIR[1:-1]}) parameter(0)
  %s = bf16[250,64]{{1,0}} get-tuple-element(%p), index=0
  %x = f32[8,8]{{1,0}} get-tuple-element(%p), index=1
  %y = f32[8,8]{{1,0}} convolution(%x, %x), dim_labels=bf_io->bf
  %e = bf16[1000,64]{{1,0}} all-gather-done(%a)
  %z = f32[8,8]{{1,0}} convolution(%x, %x), dim_labels=bf_io->bf
  %a = {PAIR} {START.format("%s")}
  %w = f32[8,8]{{1,0}} convolution(%x, %x), dim_labels=bf_io->bf
  ROOT %t = (bf16[250,64]{{1,0}}, f32[8,8]{{1,0}}, {PAIR[1:-1]}) tuple(%s, %w, %a)
}}

%condition (p: (bf16[250,64], f32[8,8])) -> pred[] {{
  %p = (bf16[250,64]{{1,0}}, f32[8,8]{{1,0}}) parameter(0)
  ROOT %k = pred[] constant(true)
}}

ENTRY %main (i: (bf16[250,64], f32[8,8])) -> f32[8,8] {{
  %i = (bf16[250,64]{{1,0}}, f32[8,8]{{1,0}}) parameter(0)
  ROOT %r = (bf16[250,64]{{1,0}}, f32[8,8]{{1,0}}) while(%i), condition=%condition, body=%body, backend_config={{"known_trip_count":{{"n":"5"}}}}
}}
"""  # noqa: E501


def test_an_exchange_may_end_in_the_next_round():
    """The product after its start and the one before its end hide it, not the one beside."""
    module = hlo.parse(LOOP)
    assert overlap.overlapped_bytes(module, 1.0) == 5 * 2 * PRODUCT


def test_sums_that_are_scattered_are_sent_once():
    text = """HloModule m

%all-reduce-scatter.1 (p: bf16[64,32]) -> bf16[16,32] {
  %p = bf16[64,32]{1,0} parameter(0)
  %r = bf16[64,32]{1,0} all-reduce(%p), replica_groups=[1,4]<=[4]
  %k = s32[] constant(0)
  ROOT %d = bf16[16,32]{1,0} dynamic-slice(%r, %k, %k), dynamic_slice_sizes={16,32}
}

ENTRY %main (x: bf16[64,32]) -> bf16[16,32] {
  %x = bf16[64,32]{1,0} parameter(0)
  ROOT %f = bf16[16,32]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    (scattered,) = costs.collectives(hlo.parse(text))
    assert (scattered.kind, scattered.wire_bytes) == ("reduce-scatter", 64 * 32 * 2 * 3 / 4)
    (whole,) = costs.collectives(hlo.parse(text.replace("all-reduce-scatter", "fused")))
    assert (whole.kind, whole.wire_bytes) == ("all-reduce", 2 * 64 * 32 * 2 * 3 / 4)


def test_utilisation_lies_between_all_in_turn_and_all_at_once():
    """6 N D take 2 of the 4 seconds of arithmetic; memory takes 3, the links 1."""
    step = plan.Program(
        "train step", True, 5, 10, {}, flops=40, hbm_bytes=1, ideal_seconds=4.0, hbm_seconds=3.0,
        wire_seconds=1.0, overlapped_bytes=512.0,
    )  # fmt: skip
    gate = plan.Program("gate", True, 5, 10, {}, flops=1, ideal_seconds=1.0)
    made = plan.Plan("v5e:1x1", 1, {"data": 1}, 3, 5, 20.0, (gate, step), ())
    assert made.utilisation == (0.25, 0.5)
    assert plan.to_dict(made)["utilisation"] == (0.25, 0.5)
    assert "25% with nothing overlapped to 50% with everything" in plan.to_text(made)
    assert "512 B of it beside products" in plan.to_text(made)
    refused = plan.Program("train step", False, 20, 10, {})
    assert plan.Plan("v5e:1x1", 1, {}, 3, 5, 20.0, (refused,), ()).utilisation is None
