from fractions import Fraction

import pytest

from fiberjax.tasks.verifiers import exact, final_answer, numeric, parse_number


def test_exact_ignores_surrounding_white_space_only():
    assert exact("", "a b", " a b\n") == 1.0
    assert exact("", "a b", "a  b") == 0.0
    assert exact("", "a", "A") == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", Fraction(72)),
        ("-72", Fraction(-72)),
        ("+72.", Fraction(72)),
        ("$1,234.50", Fraction(2469, 2)),
        ("-$5", Fraction(-5)),
        ("$-5", Fraction(-5)),
        (".5", Fraction(1, 2)),
        ("1/3", Fraction(1, 3)),
        ("1,000/10", Fraction(100)),
        (" 007 ", Fraction(7)),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    ["", ".", "-", "$", "1,2", "1,23,456", ",1", "1/0", "1/2/3", "1e5", "0x1", "1_000", "--1",
     "$1$", "1 2", "12 apples", "\u0661", "/2", "1.5/2", "9" * 65, "+", "1/", "1..", "$$1"],
)  # fmt: skip
def test_what_is_no_number(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("answer", "completion", "reward"),
    [
        ("So 48/2=24.\n#### 72", "48+24\n#### 72", 1.0),
        ("#### 72", "72", 1.0),
        ("#### 1,250", "####1250.0", 1.0),
        ("145.0", "#### $145", 1.0),
        ("0.5", "#### 1/2", 1.0),
        ("#### 72", "#### 71\n#### 72", 1.0),
        ("#### 72", "#### 72\n#### 71", 0.0),
        ("#### 72", "#### 72 71", 0.0),
        ("#### 72", "the answer is 72", 0.0),
        ("#### 72", "#### ", 0.0),
        ("#### 72", "### 72", 0.0),
        ("0.1", "#### 0.1000000000000000055511151231257827", 0.0),
        ("no number", "no number", 0.0),
    ],
)
def test_numeric_compares_the_number_after_the_last_marker(answer, completion, reward):
    assert numeric("", answer, completion) == reward


def test_final_answer_wants_one_delimiter():
    assert final_answer("a#b") == "b"
    assert final_answer("#") == ""
    assert final_answer("ab") is None
    assert final_answer("a#b#b") is None
