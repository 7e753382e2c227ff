"""Agreement with stored gates, objectives and gradients of 80-bit arithmetic."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import gates, objective
from fiberjax.layout import make_layout

VECTORS = np.load(pathlib.Path(__file__).parents[1] / "data" / "gates.npz")
LEVELS = ("trajectory", "group", "domain")


@pytest.mark.parametrize("case", sorted({name.split("/")[0] for name in VECTORS.files}))
@pytest.mark.parametrize("width", [32, 64])
def test_stored_gates(case, width):
    v = {k.split("/")[1]: VECTORS[k] for k in VECTORS.files if k.startswith(case)}
    depth = int(v["levels"])
    tables = [v["group_of_trajectory"], v["domain_of_group"]] if depth > 1 else []
    parents = dict(zip(LEVELS[1:depth], tables, strict=False))
    layout = make_layout(np.ones(v["trajectory"].shape, bool), parents, cell_id=v["trajectory"])
    config = {
        "name": "fgh",
        "epsilon": float(v["epsilon"]),
        "order": LEVELS[:depth],
        "levels": {
            level: {"budget": tuple(b.tolist())}
            for level, b in zip(LEVELS, v["budgets"], strict=False)
        },
    }
    gate, budgets = gates.from_config(config, LEVELS[:depth])
    dtype = f"float{width}"
    with jax.enable_x64(width == 64):
        if width == 64:
            budgets["epsilon"] = v["epsilon"]
            budgets["budgets"] = dict(zip(LEVELS, v["budgets"], strict=False))
        advantage = jnp.asarray(v["advantage"].astype(dtype))

        def value(log_ratio):
            gated = gate(log_ratio, advantage, layout, budgets)
            return objective.surrogate(gated, advantage, layout).value, gated

        (total, gated), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(
            jnp.asarray(v["log_ratio"].astype(dtype))
        )
    tolerance = 1e-11 if width == 64 else 2e-5
    checked = v["gradient_checked"]
    np.testing.assert_allclose(gated, v["gated_ratio"], rtol=tolerance)
    np.testing.assert_allclose(total, v["objective"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(gradient[checked], v["gradient"][checked], rtol=0, atol=tolerance)
