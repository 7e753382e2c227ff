"""Rotary positions: the frequencies of each published kind, and the rotation.

The frequencies of a kind are constants of a program, computed on the host in float32, in the order
of operations of the published implementations: at position 100,000 a last bit of a frequency is
already a hundredth of a radian.

    default   f_i = θ^(−2i/K)
    linear    f_i / factor
    llama3    wavelengths above original / low_freq_factor divided by factor, those below
              original / high_freq_factor left alone, a blend between
    yarn      the same with a blend that is linear in i, and cosine and sine times attention_factor
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from fiberjax.bounds import as_float32

# Kind -> its numbers in `rope_scaling`, and their types. `original_max_position_embeddings` is the
# length before scaling, in tokens; betas are turns over that length.
ROPE_TYPES: Mapping[str, Mapping[str, type]] = {
    "default": {},
    "linear": {"factor": float},
    "llama3": {
        "factor": float,
        "low_freq_factor": float,
        "high_freq_factor": float,
        "original_max_position_embeddings": int,
    },
    "yarn": {
        "factor": float,
        "original_max_position_embeddings": int,
        "attention_factor": float,
        "beta_fast": float,
        "beta_slow": float,
        "truncate": bool,
    },
}


def canonical_scaling(rope_type: str, scaling: Sequence[Any]) -> tuple[tuple[str, Any], ...]:
    """The numbers of a kind as pairs, in one order and of one type, so that equal ones are equal.

    Raises:
      ValueError: the kind is unknown, or its numbers are not exactly those of `ROPE_TYPES`.

    >>> canonical_scaling("linear", [["factor", 8]])
    (('factor', 8.0),)
    """
    if rope_type not in list(ROPE_TYPES):
        raise ValueError(f"rope_type must be one of {list(ROPE_TYPES)}, got {rope_type!r}")
    expected = ROPE_TYPES[rope_type]
    shown = f"pairs of {', '.join(expected)}" if expected else "empty"
    refusal = ValueError(
        f"rope_scaling must be {shown} for rope_type {rope_type!r}, got {scaling!r}"
    )
    try:
        given: dict[str, Any] = dict(scaling)
    except (TypeError, ValueError):
        raise refusal from None
    if given.keys() != expected.keys() or len(given) != len(scaling):
        raise refusal
    for name, kind in expected.items():
        value = given[name]
        if kind is float and type(value) is int:
            value = given[name] = float(value)
        positive = isinstance(value, int | float) and 0 < as_float32(value) < math.inf
        if type(value) is not kind or not (kind is bool or positive):
            wanted = "a bool" if kind is bool else f"a positive {kind.__name__}"
            raise ValueError(f"rope_scaling: {name} must be {wanted}, got {value!r}")
    if rope_type == "llama3" and given["low_freq_factor"] >= given["high_freq_factor"]:
        raise ValueError(
            "rope_scaling: low_freq_factor must be below high_freq_factor, got "
            f"{given['low_freq_factor']} and {given['high_freq_factor']}"
        )
    return tuple((name, given[name]) for name in expected)


def frequencies(
    head_dim: int,
    theta: float,
    rope_type: str = "default",
    scaling: Sequence[tuple[str, Any]] = (),
) -> tuple[np.ndarray, float]:
    """Radians a position of each pair, float32[K/2], and what cosine and sine are multiplied by.

    Args:
      head_dim: K, even.
      theta: base of the wavelengths.
      rope_type: a key of `ROPE_TYPES`.
      scaling: its numbers, as `canonical_scaling` gives them.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    period = np.float32(theta) ** exponent
    plain = np.float32(1.0) / period
    values = dict(scaling)
    if rope_type == "default":
        return plain, 1.0
    factor = np.float32(values["factor"])
    if rope_type == "linear":
        return plain / factor, 1.0
    if rope_type == "llama3":
        return _llama3(plain, values), 1.0
    # Yarn: pairs that turn fast keep their frequency, slow ones are stretched.
    ramp = _ramp(head_dim, theta, values)
    kept = np.float32(1.0) - ramp
    stretched = np.float32(1.0) / (factor * period)
    return stretched * (np.float32(1.0) - kept) + plain * kept, values["attention_factor"]


def check_frequencies(
    head_dim: int, theta: float, rope_type: str, scaling: Sequence[tuple[str, Any]]
) -> None:
    """Refuses numbers that give a frequency which is not finite.

    Raises:
      ValueError: names them.
    """
    try:
        with np.errstate(all="ignore"):
            found, scale = frequencies(head_dim, theta, rope_type, scaling)
        fine = bool(np.isfinite(found).all()) and math.isfinite(scale)
    except ArithmeticError:
        fine = False
    if not fine:
        raise ValueError(
            f"rope_theta = {theta!r} and rope_scaling = {dict(scaling)!r} must give finite "
            f"frequencies of rope_type {rope_type!r}"
        )


def _llama3(plain: np.ndarray, values: Mapping[str, Any]) -> np.ndarray:
    original = values["original_max_position_embeddings"]
    low, high = values["low_freq_factor"], values["high_freq_factor"]
    factor = np.float32(values["factor"])
    wavelength = np.float32(2 * math.pi) / plain
    longest, shortest = np.float32(original / low), np.float32(original / high)
    scaled = np.where(wavelength > longest, plain / factor, plain)
    smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    blend = (np.float32(1.0) - smooth) * scaled / factor + smooth * scaled
    between = ~(wavelength < shortest) & ~(wavelength > longest)
    return np.where(between, blend, scaled)


def _ramp(head_dim: int, theta: float, values: Mapping[str, Any]) -> np.ndarray:
    """From 0 at pairs that turn `beta_fast` times over the original length to 1 at `beta_slow`."""
    original = values["original_max_position_embeddings"]

    def pair(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(values["beta_fast"]), pair(values["beta_slow"])
    if values["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    index = np.arange(head_dim // 2, dtype=np.float32)
    return np.clip((index - np.float32(low)) / np.float32(width), 0, 1)


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """What yarn multiplies cosine and sine by where a folder does not say it.

    0.1 m ln(factor) + 1, with m = 1; given both, the quotient of those of `mscale` and
    `mscale_all_dim`; 1 for factors up to 1.
    """

    def of(m: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0

    return of(mscale) / of(mscale_all_dim) if mscale and mscale_all_dim else of(1.0)


def table(positions: Array, frequency: np.ndarray, scale: float = 1.0) -> tuple[Array, Array]:
    """Cosines and sines of the rotary angles, times `scale`; each float32[B, T, 1, K/2].

    Args:
      positions: int32[B, T].
      frequency: float32[K/2], radians a position.
      scale: as `frequencies` gives it.
    """
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if scale == 1.0 else (cos * scale, sin * scale)


def rotate(x: Array, rope: tuple[Array, Array]) -> Array:
    """`x` [B, T, heads, K] with entries i and i + K/2 rotated by the angles of `rope`."""
    cos, sin = rope
    # Converted in halves: whole heads in float32 would be written to be cut up.
    first, second = (half.astype(jnp.float32) for half in jnp.split(x, 2, axis=-1))
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate([half.astype(x.dtype) for half in rotated], axis=-1)
