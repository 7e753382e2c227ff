"""Flags of finite numbers, and the choice between two states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax.finite import choose, finite


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_number_of_any_array_is_enough(number, dtype):
    tree = {"a": jnp.ones((3, 4), dtype), "count": jnp.zeros((), jnp.int32), "b": jnp.ones(2)}
    assert bool(jax.jit(finite)(tree))
    tree["a"] = tree["a"].at[2, 1].set(number)
    assert not bool(jax.jit(finite)(tree))


def test_what_holds_no_floating_array_is_finite():
    assert bool(finite({})) and bool(finite([jnp.arange(3)]))


def test_the_old_tree_is_kept_bit_for_bit():
    old = {"a": jnp.array([-0.0, 1e-45, jnp.nan]), "n": jnp.int32(3)}
    new = {"a": jnp.array([1.0, jnp.inf, 2.0]), "n": jnp.int32(4)}
    for flag, expected in ((True, new), (False, old)):
        found = choose(jnp.array(flag), new, old)
        for name in old:
            bits = (np.asarray(of[name]).tobytes() for of in (found, expected))
            assert len(set(bits)) == 1
