import dataclasses

import numpy as np
import pytest

from fiberjax.train.engine import Completion, Draws, problem, table

DRAWS = Draws(
    *(4, 11, (3, 5), 0),
    temperature=1.0,
    top_k=0,
    top_p=1.0,
)
GOOD = Completion([7, 8, 3], [-0.5, -0.25, 0.0], stopped=True)


def test_good_completions_become_tables():
    whole = Completion([1, 2, 4, 6], [-1, -2.0, -3.0, 5e-5], stopped=False)
    assert problem(GOOD, DRAWS) == problem(whole, DRAWS) == ""
    samples = table([GOOD, whole], DRAWS)
    np.testing.assert_array_equal(samples.tokens, [[7, 8, 3, 0], [1, 2, 4, 6]])
    np.testing.assert_array_equal(samples.log_prob, [[-0.5, -0.25, 0, 0], [-1, -2, -3, 0]])
    np.testing.assert_array_equal(samples.length, [3, 4])
    np.testing.assert_array_equal(samples.finished, [True, False])
    assert (samples.log_kept == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(tokens=[], log_probs=[]), "0 tokens; expected 1 to 4"),
        (dict(tokens=[1, 1, 1, 1, 3], log_probs=[-1] * 5), "5 tokens; expected 1 to 4"),
        (dict(log_probs=[-1.0]), "1 log-probabilities for 3 tokens"),
        (dict(tokens=[7, 11, 3]), r"token 1 is 11; expected an id in [0, 11)"),
        (dict(tokens=[7, -1, 3]), "token 1 is -1"),
        (dict(tokens=[7, True, 3]), "token 1 is True"),
        (dict(tokens=[7, 1.0, 3]), "token 1 is 1.0"),
        (dict(log_probs=[-1.0, float("nan"), -1.0]), "log-probability 1 is nan"),
        (dict(log_probs=[-1.0, float("-inf"), -1.0]), "log-probability 1 is -inf"),
        (dict(log_probs=[-1.0, 0.01, -1.0]), "log-probability 1 is 0.01"),
        (dict(log_probs=[-1.0, None, -1.0]), "log-probability 1 is None"),
        (dict(tokens=[7, 5, 3]), "token 1 of 3 ends a completion, but others follow"),
        (dict(tokens=[7, 8, 9]), "its last token, 9, is not one of [3, 5]"),
        (dict(tokens=[7, 8, 9], stopped=False), "3 tokens without an end; expected 4"),
    ],
    ids=str,
)
def test_what_cannot_be_believed_is_named(changes, message):
    assert message in problem(dataclasses.replace(GOOD, **changes), DRAWS)
