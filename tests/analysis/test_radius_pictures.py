"""Pictures of classical radii: the numbers in them are the library's."""

import numpy as np
import pytest

from fiberjax import trust_region
from fiberjax.analysis import radius_pictures


def test_radii_are_drawn_as_they_are():
    left, right = radius_pictures.radii(mark=8192, clip=0.2).axes
    lines = {line.get_label(): line for line in left.lines}
    limit = lines["H tokens at γ = 1: limit"]
    np.testing.assert_allclose(
        limit.get_ydata(), trust_region.horizon_tv_limit(limit.get_xdata()), rtol=1e-5
    )
    assert lines["PPO's clip of 0.2"].get_ydata()[0] == 0.1
    assert [text.get_text() for text in left.texts] == ["H = 8192: 1.2e-04"]
    best = [max(line.get_ydata()) for line in right.lines[:4]]
    np.testing.assert_allclose(best, 0.5, atol=0.08)  # The gain stays; the radius goes.
    where = [line.get_xdata()[np.argmax(line.get_ydata())] for line in right.lines[:4]]
    assert sorted(where, reverse=True) == where and where[-1] < 1e-4
    assert left.get_legend() and right.get_legend()


def test_the_shared_budgets_objective_is_largest_at_trpos_solution():
    advantage = np.array([-2.6, 2.2, -1.7, 1.2, 0.9, -0.8, 0.5, 0.4, -0.2, 0.1], np.float32)
    left, right = radius_pictures.shared_budget(advantage, delta=0.25).axes
    lines = {line.get_label(): line.get_ydata() for line in right.lines}
    way = right.lines[0].get_xdata()
    apc = lines["APC, δ 0.25"]
    assert way[np.argmax(apc)] == pytest.approx(1, abs=0.02)
    assert apc.max() == pytest.approx(np.interp(1, way, lines["no gate"]), rel=0.02)
    assert lines["PPO, clip 0.2"].max() < apc.max() / 2 and apc[-1] < apc.max()
    moved = [bar.get_height() for bar in left.patches[len(advantage) :]]
    assert np.abs(moved).sum() == pytest.approx(2.5, rel=1e-5) and min(moved) == -1
