"""Pictures of a batch and of one trajectory: their numbers are those of `tokens.look`."""

import numpy as np
import pytest

from fiberjax.analysis import token_pictures
from fiberjax.analysis.tokens import FATES, look
from fiberjax.run.kept import from_arrays

MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], bool)
DRIFT = np.array([[0.3, 0.2, 0.1, 0], [0, 0.4, 0, 0], [-0.1, 0, -0.2, 0], [0.02, 0, 0, 0]])


@pytest.fixture(scope="module")
def kept():
    old = np.full(MASK.shape, -1.0)
    return from_arrays(
        log_prob=old + DRIFT,
        old_log_prob=old,
        mask=MASK,
        advantage=np.array([1.0, -1.0, 1.0, -1.0]),
        parents={"group": np.array([0, 0, 1, 1])},
    )


@pytest.fixture(scope="module")
def tokens(kept):
    return look(kept, ("fiberpo_group", {"trajectory": 0.05, "group": 0.05, "epsilon": 0.1}))


def test_a_batch_counts_every_tokens_fate(tokens):
    left, middle, fates, *bars = token_pictures.batch(tokens).axes
    assert left.images[0].get_array().shape == (4, 3)  # No column without a token.
    shown = left.images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(shown[MASK[:, :3]], DRIFT[MASK], atol=1e-6)
    np.testing.assert_allclose(
        middle.images[0].get_array().filled(0)[MASK[:, :3]], tokens.coefficient[MASK], atol=1e-7
    )
    assert [line.get_ydata()[0] for line in left.lines] == [1.5]  # Between the prompts' groups.
    counted = sum(int(bar.get_width()) for bar in fates.patches)
    assert counted == int((MASK & (tokens.fate != 0)).sum())
    assert [text.get_text() for text in fates.get_yticklabels()] == list(FATES[1:])
    assert fates.get_legend() and [bar.get_ylabel() for bar in bars] == [
        "log ratio, nats",
        "∂J/∂ log π",
    ]


def test_a_trajectory_shows_what_its_gradient_is_made_of(tokens):
    upper, middle, lower = token_pictures.trajectory(tokens, 0, ["a", "$b$", "c"]).axes
    heights = np.array([bar.get_height() for bar in middle.patches]).reshape(-1, 3)
    np.testing.assert_allclose(heights, [of[0, :3] for of in tokens.parts.values()])
    left = middle.lines[0].get_ydata()
    np.testing.assert_allclose(left, tokens.coefficient[0, :3])
    np.testing.assert_allclose(heights.sum(axis=0), left, atol=1e-6)
    assert [text.get_text() for text in upper.get_xticklabels()] == ["a", r"\$b\$", "c"]
    level = tokens.levels["trajectory"]
    assert lower.patches[0].get_width() == pytest.approx(
        level.held[0, 0, 0] / level.budget[0, 0, 0], rel=1e-6
    )
    assert [text.get_text() for text in lower.get_yticklabels()] == ["trajectory", "group"]
    assert all(ax.get_legend() for ax in (upper, middle, lower))


def test_of_a_silent_hierarchy_only_the_side_that_can_close_is_drawn(kept):
    levels = {"trajectory": 0.05, "group": 0.05}
    silent = look(kept, ("silent_domain", {"levels": levels}))
    for row, side in ((0, "drift up"), (1, "drift down")):
        *_, lower = token_pictures.trajectory(silent, row).axes
        labels = [text.get_text() for text in lower.get_legend().get_texts()]
        assert labels == ["the budget", f"{side}, as the advantage asks"] or labels == [
            f"{side}, as the advantage asks",
            "the budget",
        ]
    ungrouped = look(kept, "ppo")
    assert len(token_pictures.trajectory(ungrouped, 3).axes) == 2  # No levels, no budgets.


def test_a_row_without_tokens_is_refused(tokens):
    for row in (4, -1):
        with pytest.raises(ValueError, match=rf"row {row} has no token that counts; 4 of 4"):
            token_pictures.trajectory(tokens, row)


def test_the_most_changed_token_is_one_that_the_gate_changes_most(kept):
    # PPO closes the first two tokens of row 0 alone; row 1's token drifted back.
    assert token_pictures.most_changed(look(kept, "ppo")) == (0, 0)
    assert token_pictures.most_changed(look(kept, ("ppo", {"clip_high": 0.3}))) == (0, 0)
