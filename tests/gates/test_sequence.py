"""Gates on whole trajectories: what the loop-written references leave open."""

import numpy as np
import reference

import fiberjax as fj
from fiberjax import objective
from fiberjax.layout import make_layout

LENGTHS = np.array([3, 6, 1, 4])
LAYOUT = make_layout(np.arange(6) < LENGTHS[:, None])
_DRAWN = np.random.default_rng(0).normal(0, [[[0.02]], [[1.0]]], (2, 4, 6))
DRIFT, ADVANTAGE = _DRAWN.astype(np.float32)


def tokens(values):
    return values[LAYOUT.mask]


def test_luspo_is_gspo_whose_trajectories_weigh_by_their_length():
    advantage = np.repeat(ADVANTAGE[:, :1], 6, axis=1)
    gated = fj.gate("luspo")(DRIFT, advantage, LAYOUT)
    got = objective.surrogate(gated, advantage, LAYOUT, weighting="constant", constant_length=1)
    ratio = [np.exp(DRIFT[y, :length].mean()) for y, length in enumerate(LENGTHS)]
    want = 0.0
    for s, a, length in zip(ratio, advantage[:, 0], LENGTHS, strict=True):
        want += length * min(s * a, np.clip(s, 1 - 2e-3, 1 + 2.5e-3) * a)
    assert not np.allclose(ratio, np.clip(ratio, 1 - 2e-3, 1 + 2.5e-3))
    np.testing.assert_allclose(got.value, want / 4, rtol=1e-5)


def test_topr_takes_the_product_or_the_mean():
    trajectory = tokens(np.arange(4)[:, None] + np.zeros((4, 6), int))
    for form in ("product", "mean"):
        got = fj.gate("topr", form=form)(DRIFT, ADVANTAGE, LAYOUT)
        want = reference.topr(
            tokens(DRIFT), tokens(ADVANTAGE), trajectory, [], weight_cap=1.0, form=form
        )
        np.testing.assert_allclose(tokens(np.asarray(got)), want, rtol=1e-5)
    assert np.ptp(want) > 0.005
