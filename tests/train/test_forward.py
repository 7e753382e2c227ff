"""The policy over the rows of a batch on a mesh: the same outputs, and nothing sent by blocks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax.parallel import mesh
from fiberjax.parallel.shardings import param_shardings
from fiberjax.plans import costs, hlo
from fiberjax.policy import TransformerConfig, init
from fiberjax.train.batch import Rows
from fiberjax.train.forward import make_forward

POLICY = TransformerConfig(
    vocab_size=64, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=4, mlp_dim=16
)
ROWS, COLUMNS, WINDOW = 4, 12, 8


def compiled(shape, chunk):
    """Outputs and gradient of all rows' log-probabilities on a mesh, and their arguments."""
    names = ("data", "fsdp", "sequence", "tensor")
    devices = jax.devices()[: int(np.prod(shape))]
    device_mesh = mesh.make_mesh(dict(zip(names, shape, strict=True)), devices)
    forward = make_forward(
        POLICY, device_mesh, WINDOW, jnp.float32(0.8), chunk, entropy_gradient=True
    )
    params = init(POLICY, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (ROWS, COLUMNS), 0, POLICY.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(COLUMNS), tokens.shape)
    rows = Rows(tokens, positions, jnp.ones_like(tokens))

    def loss(params, rows):
        out = forward(params, rows)
        return jnp.sum(out.log_prob * jnp.arange(WINDOW)) + jnp.sum(out.entropy**2), out

    placed = (
        jax.device_put(params, param_shardings(device_mesh, params)),
        mesh.place(device_mesh, jax.tree.map(np.asarray, rows), mesh.ROWS),
    )
    program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*placed).compile()
    return program, placed


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 2, 1, 2), (2, 2, 1, 1), (2, 1, 2, 1)])
def test_blocks_on_a_mesh_are_those_of_one_device(shape):
    alone, arguments = compiled((1, 1, 1, 1), WINDOW)
    expected = jax.device_get(alone(*arguments))
    for chunk in (1, 3):
        program, arguments = compiled(shape, chunk)
        got = jax.device_get(program(*arguments))
        chex.assert_trees_all_close(got, expected, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 2, 1, 2), (2, 2, 1, 1), (2, 1, 2, 1)])
def test_as_much_is_sent_for_many_blocks_as_for_few(shape):
    few, many = (
        costs.collectives(hlo.parse(compiled(shape, chunk)[0].as_text())) for chunk in (4, 1)
    )
    assert few and sum(c.times for c in few) == sum(c.times for c in many)
