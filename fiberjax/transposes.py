"""Pairs of linear maps that are each other's transposes, with a form for each platform.

JAX derives the transpose of a map from its code, and what it derives from the fastest form of a map
is rarely the fastest form of the transpose. Here both are written down: the gradient of one is the
other, in forward and in reverse mode, of any order, under `vmap` and inside `shard_map`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Form = Callable[..., jax.Array]
"""`(moved, *fixed, **static) -> array`, linear in `moved`; `fixed` are integers, such as ids."""

Maps = tuple[tuple[int | None, ...], ...]
"""The axes over which `vmap` maps the operands, innermost first; the result's is axis 0."""


def pair(
    names: tuple[str, str],
    forms: tuple[Form, Form],
    platforms: Mapping[str, tuple[Form, Form]],
) -> tuple[Form, Form]:
    """Two maps of which each is the transpose of the other.

    Args:
      names: of the two, as programs show them.
      forms: the two maps, `first(x, *fixed, **static)` and `second(y, *fixed, **static)`, with
        `⟨first(x), y⟩ = ⟨x, second(y)⟩` for all `x` and `y`.
      platforms: other forms of the same two, by platform ("cpu", "tpu", "cuda").

    Returns:
      The two as functions of arrays. Which form runs is chosen when a program is compiled, so one
      that is lowered for several platforms has the form of each.

    >>> double = pair(("double", "back"), (lambda x: 2 * x, lambda y: 2 * y), {})[0]
    >>> jax.jit(jax.value_and_grad(double))(3.0)
    (Array(6., dtype=float32, weak_type=True), Array(2., dtype=float32, weak_type=True))
    """
    first, second = (_primitive(name, form) for name, form in zip(names, forms, strict=True))
    for platform, others in ((None, forms), *platforms.items()):
        for primitive, form in zip((first, second), others, strict=True):
            lowered = mlir.lower_fun(functools.partial(_mapped, form), multiple_results=False)
            mlir.register_lowering(primitive, lowered, platform=platform)
    _make_transposes(first, second)
    _make_transposes(second, first)
    return functools.partial(_call, first), functools.partial(_call, second)


def _call(primitive: Primitive, moved: jax.Array, *fixed: jax.Array, **static: Any) -> jax.Array:
    """The map of arrays, as users see it."""
    operands = _varying_alike(*map(jnp.asarray, (moved, *fixed)))
    return primitive.bind(*operands, maps=(), **static)


def _mapped(form: Form, *operands: jax.Array, maps: Maps, **static: Any) -> jax.Array:
    """A form under all the `vmap`s that its operands have gone through."""
    function = functools.partial(form, **static)
    for axes in maps:
        function = jax.vmap(function, in_axes=axes)
    return function(*operands)


def _primitive(name: str, form: Form) -> Primitive:
    """A primitive that has the shape of a form's result, and goes through `vmap`."""
    primitive = Primitive(name)

    def run(*operands: jax.Array, **static: Any) -> jax.Array:
        return jax.jit(functools.partial(primitive.bind, **static))(*operands)

    def shape_of(*operands: Any, **static: Any) -> Any:
        traced = jax.make_jaxpr(functools.partial(_mapped, form, **static))(*operands)
        return traced.out_avals[0]

    def over(operands: Any, axes: Any, *, maps: Maps, **static: Any) -> tuple[jax.Array, int]:
        (moved, *fixed), (axis, *others) = operands, axes
        if axis is None:
            sizes = (x.shape[i] for x, i in zip(fixed, others, strict=True) if i is not None)
            moved = jnp.broadcast_to(moved, (next(sizes), *moved.shape))
        else:
            moved = jnp.moveaxis(moved, axis, 0)
        return primitive.bind(moved, *fixed, maps=(*maps, (0, *others)), **static), 0

    primitive.def_impl(run)
    primitive.def_abstract_eval(shape_of)
    batching.primitive_batchers[primitive] = over
    return primitive


def _make_transposes(primitive: Primitive, other: Primitive) -> None:
    """Makes `other` what reverse mode runs for a primitive; forward mode runs the primitive."""

    def along(operands: Any, tangents: Any, **static: Any) -> tuple[Any, Any]:
        value, (tangent, *_) = primitive.bind(*operands, **static), tangents
        if type(tangent) is ad.Zero:
            return value, ad.Zero.from_primal_value(value)  # type: ignore[attr-defined]
        return value, primitive.bind(tangent, *operands[1:], **static)

    def back(cotangent: Any, moved: Any, *fixed: Any, **static: Any) -> tuple[Any, ...]:
        del moved
        nothing = type(cotangent) is ad.Zero
        given = None if nothing else other.bind(cotangent, *fixed, **static)
        return given, *(None for _ in fixed)

    ad.primitive_jvps[primitive] = along
    ad.primitive_transposes[primitive] = back


def _varying_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays, each varying over all mesh axes that one of them varies over in `shard_map`.

    What does not vary is sent to all devices; its gradient is then a sum over them, as it is for
    JAX's own operations. Adding a zero of the others says so without naming axes, and compiles to
    nothing.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return arrays
    with_zeros = []
    for i, array in enumerate(arrays):
        for j, other in enumerate(arrays):
            if i != j:
                zero = 0 * jnp.sum(other.ravel()[:1]).astype(jnp.int32)
                array = array + zero.astype(array.dtype)
        with_zeros.append(array)
    return tuple(with_zeros)
