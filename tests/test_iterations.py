"""A choice of iterations, as a text."""

import pytest

from fiberjax import iterations, options


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", []),
        ("3, 5,40", [3, 5]),
        ("every 4", [4, 8, 12]),
        ("every 4 from 1", [1, 5, 9]),
        (" every  5 from 10 ", [10]),
        ("last 2", [11, 12]),
        ("2, every 6, last 1, last 3", [2, 6, 10, 11, 12]),
    ],
)
def test_a_text_says_which_iterations(text, chosen):
    some = iterations.parse(text)
    assert [n for n in range(1, 13) if some.chosen(n, 12)] == chosen
    if "last" in text:  # Each is the newest when it comes.
        assert all(some.chosen(n) for n in range(1, 13))


@pytest.mark.parametrize(
    "text", ["all", "0", "every 0", "last 0", "1,,2", "-1", "every 4 from 0", "1.5", "9" * 10, "١"]
)
def test_other_texts_are_refused_by_the_path(text):
    values = {"samples": 1, "every": 0, "show_every": 0, "megabytes": 1.0}
    values |= {"rollouts": text, "rollouts_megabytes": 1.0}
    with pytest.raises(ValueError, match=r"config.keep: rollouts must be parts such as .*; got "):
        options.parse(options.Keep, values, "config.keep")
