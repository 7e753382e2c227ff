"""Rotary frequencies against those that transformers computes, and how folders spell them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax.policy import rope, weights

from . import published, shapes

FREQUENCIES = published.FOLDER.parent / "ropes.npz"
LLAMA3 = dict(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=8192)
YARN = dict(factor=4.0, original_max_position_embeddings=32768, beta_fast=32.0, beta_slow=1.0)
YARN |= dict(truncate=True, attention_factor=rope.yarn_attention_factor(4.0))
MSCALE = dict(factor=40.0, original_max_position_embeddings=4096, beta_fast=16.0, beta_slow=2.0)
MSCALE |= dict(truncate=False, attention_factor=rope.yarn_attention_factor(40.0, 1.0, 0.707))


@pytest.mark.parametrize(
    ("name", "head_dim", "theta", "numbers"),
    [
        ("default", 64, 1e6, {}),
        ("linear", 256, 1e6, dict(factor=8.0)),
        ("llama3", 64, 5e5, LLAMA3),
        ("yarn", 128, 1e6, YARN),
        ("yarn_mscale", 64, 1e4, MSCALE),
    ],
)
def test_frequencies_are_those_of_transformers(name, head_dim, theta, numbers):
    kind = name.partition("_")[0]
    scaling = rope.canonical_scaling(kind, tuple(numbers.items()))
    found, scale = rope.frequencies(head_dim, theta, kind, scaling)
    expected = np.load(FREQUENCIES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[f"{name}/frequency"], rtol=3e-7)
    assert scale == expected[f"{name}/scale"]


def test_every_kind_is_stretched_where_it_should_be():
    """Fast pairs keep their frequency and slow ones are divided by the factor."""
    plain, _ = rope.frequencies(64, 5e5)
    for kind, numbers in (("llama3", LLAMA3), ("yarn", YARN)):
        found, _ = rope.frequencies(64, 5e5, kind, rope.canonical_scaling(kind, [*numbers.items()]))
        np.testing.assert_allclose(found[0], plain[0])
        np.testing.assert_allclose(found[-1], plain[-1] / numbers["factor"], rtol=1e-6)
        assert np.all(found <= plain * (1 + 1e-6))


def test_scores_depend_on_distance_alone():
    query, key = (jax.random.normal(jax.random.key(i), (1, 1, 1, 8)) for i in range(2))
    frequency, _ = rope.frequencies(8, 100.0)

    def score(at, distance):
        angles = [rope.table(jnp.array([[p]]), frequency) for p in (at + distance, at)]
        return jnp.sum(rope.rotate(query, angles[0]) * rope.rotate(key, angles[1]))

    for distance in (0, 1, 5):
        np.testing.assert_allclose(score(0, distance), score(13, distance), rtol=1e-5)
    assert abs(score(0, 0) - score(0, 5)) > 1e-2


def test_rotation_pairs_the_halves():
    """Entry i turns with entry i + K/2, by position · theta^(−2i/K), as in the checkpoints."""
    frequency, _ = rope.frequencies(4, 9.0)
    got = rope.rotate(jnp.eye(4)[None, :, None, :], rope.table(jnp.full((1, 4), 3), frequency))
    turns = np.array([3.0, 3.0 * 9.0**-0.5])
    expected = np.zeros((4, 4))
    for i, angle in enumerate(turns):
        expected[i, i], expected[i, i + 2] = np.cos(angle), np.sin(angle)
        expected[i + 2, i], expected[i + 2, i + 2] = -np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(got[0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rope_type="dynamic"), r"rope_type must be one of \['default', 'linear', 'llama3'"),
        (dict(rope_scaling=(("factor", 2.0),)), "must be empty for rope_type 'default'"),
        (dict(rope_type="linear"), "must be pairs of factor for rope_type 'linear', got ()"),
        (dict(rope_type="linear", rope_scaling=("factor", 2)), "must be pairs of factor"),
        (
            dict(rope_type="linear", rope_scaling=(("factor", 0.0),)),
            "factor must be a positive float, got 0.0",
        ),
        (
            dict(rope_type="yarn", rope_scaling=tuple((YARN | {"truncate": 1}).items())),
            "truncate must be a bool, got 1",
        ),
        (
            dict(
                rope_type="llama3",
                rope_scaling=tuple((LLAMA3 | {"low_freq_factor": 4.0}).items()),
            ),
            "low_freq_factor must be below high_freq_factor, got 4.0 and 4.0",
        ),
    ],
)
def test_bad_numbers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        shapes.config(**changes)


def test_numbers_are_equal_however_they_are_written():
    """As JSON gives them, in another order, and as integers."""
    listed = [["high_freq_factor", 4], ["factor", 32], ["low_freq_factor", 1]]
    listed += [["original_max_position_embeddings", 8192]]
    first = shapes.config(rope_type="llama3", rope_scaling=tuple(LLAMA3.items()))
    second = shapes.config(rope_type="llama3", rope_scaling=listed)
    assert first == second and hash(first) == hash(second)


def described(tmp_path, **changes):
    """What is read of a Llama folder whose config says this of its rotary positions."""
    values = json.loads((published.FOLDER / "llama" / "config.json").read_text())
    del values["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(values | changes))
    found = weights.read_shape(tmp_path)
    return found["rope_type"], found["rope_theta"], dict(found["rope_scaling"])


def test_both_spellings_are_read(tmp_path):
    expected = "llama3", 5e5, LLAMA3
    older = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    oldest = {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    newer = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}
    for spelling in (older, oldest, newer):
        assert described(tmp_path, **spelling) == expected
    assert described(tmp_path) == ("default", 1e4, {})
    assert described(tmp_path, rope_scaling=None, rope_theta=7) == ("default", 7.0, {})


def test_yarn_numbers_that_are_left_out_are_inferred(tmp_path):
    """The length from the longest sequence, the factor from both, cosines from the factor."""
    said = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert described(tmp_path, rope_scaling=said) == ("yarn", 1e4, YARN)
    del said["original_max_position_embeddings"]
    found = described(tmp_path, rope_scaling=said, max_position_embeddings=32768)
    assert found == ("yarn", 1e4, YARN)
    scales = {"mscale": 1.0, "mscale_all_dim": 0.707}
    said = {"type": "yarn", "original_max_position_embeddings": 4096, **scales, "beta_fast": 16}
    said |= {"beta_slow": 2, "truncate": False}
    found = described(tmp_path, rope_scaling=said, max_position_embeddings=40 * 4096)
    assert found == ("yarn", 1e4, MSCALE)
    found = described(tmp_path, rope_scaling=said | {"factor": 3.0, "attention_factor": 1.5})
    assert found[2]["attention_factor"] == 1.5


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"type": "dynamic", "factor": 2.0}, "rope type is 'dynamic', expected one of"),
        ({"type": "linear"}, "factor is missing, expected a positive number"),
        ({"type": "linear", "factor": "2"}, "factor is '2', expected a positive number"),
        ({"type": "linear", "factor": 2, "finetuned": True}, "finetuned of rope type 'linear' is"),
        ({"type": "default", "mrope_section": [1]}, "mrope_section of rope type 'default' is not"),
        ("linear", "rope_scaling is 'linear', expected a section"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, said, message):
    with pytest.raises(ValueError, match=message):
        described(tmp_path, rope_scaling=said)
