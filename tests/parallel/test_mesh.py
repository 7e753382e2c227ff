"""One update agrees on every mesh; the compiled program exchanges tables, never tokens."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from small_step import (
    BUDGETS,
    CONFIG,
    GATE,
    KNOBS,
    OPTIONS,
    build,
    make_batch,
    mesh_of,
)

from fiberjax.layout import make_layout
from fiberjax.objective import EDGES
from fiberjax.parallel import mesh
from fiberjax.parallel.shardings import (
    param_shardings,
    placement,
    sampling_shardings,
)
from fiberjax.plans import costs, hlo
from fiberjax.policy import TokenOutputs, init, lora, sample
from fiberjax.train.batch import batch_specs
from fiberjax.train.update import NOT_FINITE, SKIPPED, TERMS, objective_gradient

LONG = (pytest.mark.slow, pytest.mark.long)
SHAPES = [
    (1, 8, 1),
    (2, 2, 2),
    *(pytest.param(shape, marks=LONG) for shape in [(8, 1, 1), (1, 1, 4), (4, 1, 2), (2, 4, 1)]),
    *(pytest.param(shape, marks=LONG) for shape in [(1, 4, 2), (1, 2, 4)]),
]


def run(shape, options=OPTIONS, config=CONFIG):
    """Metrics, and the state after two updates, on the host."""
    step, state, batch = build(shape, options, config)
    state, first = step(state, batch, KNOBS)
    state, second = step(state, batch, KNOBS)
    return jax.device_get((state, first, second))


@pytest.fixture(scope="module")
def single():
    return run((1, 1, 1))


def assert_agrees(found, expected):
    chex.assert_trees_all_close(found[1:], expected[1:], rtol=2e-4, atol=2e-5)
    # The first moment after two updates holds both gradients. A parameter whose gradient is almost
    # nothing may move by the learning rate either way, so parameters agree to a fraction of it.
    chex.assert_trees_all_close(found[0].opt_state, expected[0].opt_state, rtol=5e-3, atol=1e-6)
    chex.assert_trees_all_close(found[0].params, expected[0].params, atol=5e-4)


def shards(state):
    """What every device holds of a state, as bytes."""
    return [
        [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
        for leaf in jax.tree.leaves(state)
    ]


def poisoned(leaf, index):
    """An array with a NaN at one place, on the same devices."""
    values = np.array(leaf)
    values[index] = np.nan
    return jax.device_put(values, leaf.sharding)


def not_finite(metrics):
    """The terms of an update that were not finite."""
    return {term for term in TERMS if float(metrics[NOT_FINITE + term].value)}


def test_what_is_not_finite_on_one_device_keeps_the_old_state_on_all():
    """A row of the last device's."""
    step, state, batch = build((1, 8, 1))
    batch = dataclasses.replace(batch, advantage=poisoned(batch.advantage, (-1, 0)))
    before = shards(state)
    state, metrics = step(state, batch, KNOBS)
    assert shards(state) == before
    assert float(metrics[SKIPPED].value) == 1
    assert not_finite(metrics) == {"loss", "gradient"}


def test_a_state_that_is_lost_on_one_device_is_told_of():
    """One number of the last device's share of a moment."""
    step, state, batch = build((1, 8, 1))
    leaves, structure = jax.tree.flatten(state.opt_state)
    split = [i for i, leaf in enumerate(leaves) if not leaf.sharding.is_fully_replicated]
    leaves[split[0]] = poisoned(leaves[split[0]], (-1,) * leaves[split[0]].ndim)
    held = [np.isnan(shard.data).any() for shard in leaves[split[0]].addressable_shards]
    assert held == [False] * 7 + [True]
    state = dataclasses.replace(state, opt_state=jax.tree.unflatten(structure, leaves))
    _, metrics = step(state, batch, KNOBS)
    assert float(metrics[SKIPPED].value) == 0 and not_finite(metrics) == {"state"}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_update_agrees_with_one_device(single, shape):
    assert_agrees(run(shape), single)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.long)])
def test_micro_batches_on_a_mesh_agree_with_one_device(single, parts):
    options = dataclasses.replace(OPTIONS, num_micro_batches=parts)
    assert_agrees(run((2, 2, 2), options), single)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "parts"),
    [((2, 2, 2), 2), pytest.param((1, 8, 1), 1, marks=pytest.mark.long)],
    ids=str,
)
def test_adapters_on_a_mesh_agree_with_one_device(shape, parts):
    """Both sides of each: split by `fsdp` and by `tensor`."""
    chosen = lora.make_lora(CONFIG, rank=3, alpha=6.0, targets=(lora.ALL,), base_dtype="float32")
    options = dataclasses.replace(OPTIONS, lora=chosen)
    split = dataclasses.replace(options, num_micro_batches=parts)
    found, expected = run(shape, split), run((1, 1, 1), options)
    assert_agrees(found, expected)
    moved = jax.tree.leaves(found[0].opt_state[1][0].mu)
    assert len(moved) == 2 * 7 and all(np.abs(leaf).max() > 1e-6 for leaf in moved)


@pytest.mark.parametrize(
    ("attention", "shape", "kv_heads"),
    [
        ("splash", (2, 2, 2), 4),
        pytest.param("splash", (1, 2, 4), 2, marks=LONG),
        pytest.param("cudnn", (1, 2, 4), 2, marks=LONG),
    ],
    ids=["heads divide", "heads shared", "cudnn"],
)
def test_kernel_on_a_mesh_agrees_with_dense_attention(attention, shape, kv_heads):
    """Also where two parts of the mesh read the same key-value head."""
    config = dataclasses.replace(CONFIG, num_kv_heads=kv_heads)
    kernel = dataclasses.replace(config, attention=attention, remat="full")
    assert_agrees(run(shape, config=kernel), run((1, 1, 1), config=config))


class Device:
    """Enough of a device to choose attention for."""

    def __init__(self, platform, client="", capability=""):
        self.platform = platform
        self.client = type("Client", (), {"platform_version": client})()
        self.compute_capability = capability


def kernel_of(device: Device, tensor: int, **changes) -> str:
    config = dataclasses.replace(CONFIG, **changes)
    devices = np.array([device] * tensor).reshape(1, 1, 1, tensor)
    stub = type("Mesh", (), {"devices": devices, "shape": {"sequence": 1, "tensor": tensor}})()
    return placement(stub, config).attention


def test_auto_takes_the_kernel_of_the_devices_where_heads_divide():
    tpu, cpu = Device("tpu"), Device("cpu")
    assert kernel_of(tpu, 1) == "splash"
    assert kernel_of(tpu, 4, num_kv_heads=2) == "splash"
    assert kernel_of(tpu, 8) == "dense"
    assert kernel_of(tpu, 4, attention="dense") == "dense"
    assert kernel_of(cpu, 1) == "dense"
    assert kernel_of(cpu, 1, attention="splash") == "splash"
    nvidia, amd = Device("gpu", "PJRT C API\ncuda 13000", "9.0"), Device("gpu", "rocm 70000", "gfx")
    assert kernel_of(nvidia, 1, compute_dtype="bfloat16") == "cudnn"
    assert kernel_of(amd, 1, compute_dtype="bfloat16") == "dense"


def test_kernels_that_cannot_run_are_refused():
    with pytest.raises(ValueError, match=r"'splash' runs on TPUs.*the mesh is of rocm"):
        kernel_of(Device("gpu", "rocm"), 1, attention="splash")
    with pytest.raises(ValueError, match=r"tensor=8: num_heads = 4 must divide by lcm.* = 4, 8\)"):
        kernel_of(Device("tpu"), 8, attention="splash")


def test_gate_exchanges_tables_only():
    shape = (2, 2, 2)
    device_mesh = mesh_of(shape)
    batch = make_batch()
    placed = mesh.place(device_mesh, batch, batch_specs(batch))
    outputs = TokenOutputs(placed.old_log_prob + 0.01, placed.old_log_prob)
    compiled = jax.jit(
        lambda outputs, batch, knobs: objective_gradient(
            device_mesh, GATE, OPTIONS, outputs, batch, knobs
        )
    ).lower(outputs, placed, KNOBS)
    exchanged = costs.collectives(hlo.parse(compiled.compile().as_text()))
    assert exchanged
    assert {collective.kind for collective in exchanged} == {"all-reduce"}
    # The widest table: 5 groups with two channels. Scalars are joined into one exchange, and what
    # quantiles count, which is of one size whatever the batch.
    for collective in exchanged:
        for size in array_sizes(collective.shapes):
            assert size <= 5 * 2 or size == EDGES.size, collective
    assert EDGES.size not in (batch.layout.mask.size, batch.layout.mask.size // 4)


def array_sizes(shapes: str) -> list[int]:
    return [
        int(np.prod([int(n) for n in dims.split(",") if n]))
        for dims in re.findall(r"\[([\d,]*)\]", shapes)
    ]


def test_sampler_keeps_split_logits_where_they_are():
    """Drawing a token over `tensor` exchanges sums of blocks, never the logits."""
    rows, vocab = 16, 2112  # 33 blocks of 64: four parts would cut some of them.
    config = dataclasses.replace(CONFIG, vocab_size=vocab)
    device_mesh = mesh.make_mesh({"data": 1, "fsdp": 2, "tensor": 4})
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        params,
        sampling_shardings(device_mesh, params),
    )

    def draw(params, prompts, keys):
        return sample(
            config,
            params,
            prompts,
            prompts > 0,
            keys,
            max_new_tokens=4,
            eos_id=1,
            pad_id=0,
            placement=placement(device_mesh, config),
        )

    inputs = mesh.place(device_mesh, np.ones((rows, 3), np.int32), mesh.ROWS)
    keys = jax.random.split(jax.random.key(0), rows)
    compiled = jax.jit(draw).lower(params, inputs, keys).compile()
    exchanged = costs.collectives(hlo.parse(compiled.as_text()), default_trips=3)
    drawing = [c for c in exchanged if "dot_general" not in c.source]
    assert drawing
    assert all(c.num_bytes <= rows // 2 * vocab * 4 // 8 for c in drawing), drawing


def test_donated_state_is_reused():
    step, state, batch = build((2, 2, 2))
    module = hlo.parse(step.lower(state, batch, KNOBS).compile().as_text())
    assert module.aliased == len(jax.tree.leaves(state))


def test_trajectory_may_span_shards():
    """Columns of one sequence on four shards: the same gate, summed over their axis."""
    rng = np.random.default_rng(0)
    rows, columns = 4, 8
    mask = np.arange(columns) < np.array([8, 3, 1, 6])[:, None]
    log_ratio = np.where(mask, rng.normal(0, 0.2, mask.shape), np.nan).astype(np.float32)
    advantage = np.repeat(rng.normal(size=(rows, 1)), columns, 1).astype(np.float32)
    parents = {"group": np.array([0, 0, 1, 1]), "domain": np.array([0, 1])}
    cell = np.repeat(np.arange(rows)[:, None], columns, 1)
    whole = make_layout(mask, parents, cell_id=cell)
    split = dataclasses.replace(whole, axis_names=(("data",), (), ()))
    device_mesh = mesh.make_mesh({"data": 4, "fsdp": 1, "tensor": 1}, jax.devices()[:4])
    columns_spec, everywhere = P(None, "data"), P()
    specs = dataclasses.replace(
        split,
        mask=columns_spec,
        cell_id=columns_spec,
        parents=(everywhere,) * 2,
        sizes=(everywhere,) * 3,
    )

    def value(log_ratio, advantage, layout):
        return jnp.sum(jnp.where(layout.mask, GATE(log_ratio, advantage, layout, BUDGETS), 0.0))

    def local(log_ratio, advantage, layout):
        def total(log_ratio):
            return jax.lax.psum(value(log_ratio, advantage, layout), "data")

        return jax.value_and_grad(total)(log_ratio)

    found = jax.jit(
        jax.shard_map(
            local,
            mesh=device_mesh,
            in_specs=(columns_spec, columns_spec, specs),
            out_specs=(everywhere, columns_spec),
        )
    )(log_ratio, advantage, split)
    expected = jax.value_and_grad(value)(log_ratio, advantage, whole)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    # Without the axis name each shard would gate its own columns: another answer.
    alone = jax.value_and_grad(value)(
        log_ratio[:, :2], advantage[:, :2], make_layout(mask[:, :2], parents, cell_id=cell[:, :2])
    )
    assert not np.allclose(np.asarray(found[1])[:, :2], alone[1], atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"data": 3, "fsdp": 1, "tensor": 1},
            "data=3, fsdp=1, sequence=1, tensor=1 does not fit 8 devices",
        ),
        (
            {"data": -1, "fsdp": 3, "tensor": 1},
            "fsdp=3, sequence=1, tensor=1 does not fit 8 devices",
        ),
        ({"data": -1, "fsdp": -1, "tensor": 1}, "at most one of them"),
        ({"data": 0, "fsdp": 1, "tensor": 1}, "must be positive"),
        ({"data": 8}, "a size for each of"),
    ],
    ids=str,
)
def test_wrong_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        mesh.make_mesh(sizes)


def test_rows_that_do_not_divide_are_refused():
    device_mesh = mesh.make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
    with pytest.raises(ValueError, match="12 rows do not divide over 8 row shards"):
        mesh.local_rows(device_mesh, 12)


def test_parameters_that_do_not_divide_are_refused():
    device_mesh = mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 8})
    params = jax.eval_shape(
        lambda: init(dataclasses.replace(CONFIG, mlp_dim=36), jax.random.key(0))
    )
    with pytest.raises(ValueError, match=r"mlp/down/kernel.*36 over 8 parts"):
        param_shardings(device_mesh, params)


def test_parameter_without_a_rule_is_refused():
    device_mesh = mesh.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    with pytest.raises(ValueError, match="no partition rule matches parameter 'router/kernels'"):
        param_shardings(device_mesh, {"router": {"kernels": np.zeros((8, 8))}})
