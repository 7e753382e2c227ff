from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberjax.tasks.countdown import Countdown, evaluate
from fiberjax.tasks.examples import draw_examples


@pytest.mark.parametrize(
    "completion",
    ["3*8*1", "8*3*1", "(8*3)*1", "1*(3*8)", "8/1*3", "3*8/1", "((3))*8*1", "3 * 8 * 1", "8/(1/3)"],
)
def test_every_right_answer_counts(completion):
    assert Countdown().verify("C:3,8,1>24=", "24", completion) == 1.0


@pytest.mark.parametrize(
    "completion",
    ["3*8", "3*8*1*1", "4*6*1", "3*8+1", "24", "24*1", "3*8*1=24", "(3*8*1", "3*8*1)", "3*8*",
     "3*8**1", "+3*8*1", "3*8*-1", "3*8*1.0", "3*8*1#24", "", "3*8*1\n", "38*1", "3*8*01*1",
     "3*8*1//1", "3(8)1"],
)  # fmt: skip
def test_wrong_numbers_values_and_grammar_do_not(completion):
    assert Countdown().verify("C:3,8,1>24=", "24", completion) == 0.0


def test_a_number_given_twice_is_used_twice():
    verify = Countdown().verify
    assert verify("C:6,6>36=", "36", "6*6") == 1.0
    assert verify("C:6,6>6=", "6", "6") == 0.0
    assert verify("C:12>12=", "12", "12") == 1.0
    assert verify("C:1,2>12=", "12", "12") == 0.0


@pytest.mark.parametrize("prompt", ["", "C:", "C:a,b>3=", ">", ":::>>>", "C:,>="])
def test_a_malformed_prompt_is_not_an_error(prompt):
    assert Countdown().verify(prompt, "3", "1+2") == 0.0


def test_bounds():
    assert evaluate("(" * 16 + "1" + ")" * 16) == (1, [1])
    assert evaluate("(" * 17 + "1" + ")" * 17) is None
    assert evaluate("+".join("1" * 64)) == (64, [1] * 64)
    assert evaluate("+".join("1" * 65)) is None
    assert evaluate("999999") == (999999, [999999])
    assert evaluate("1000000") is None
    assert evaluate("1/(2-2)") is None
    assert evaluate("1/3*3") == (1, [1, 3, 3])
    assert evaluate("8-3-2") == (3, [8, 3, 2])
    assert evaluate("8/4/2") == (1, [8, 4, 2])


@given(st.text(alphabet="0123456789+-*/() ", max_size=40))
@settings(max_examples=300, deadline=None)
def test_agrees_with_python_on_its_own_grammar(text):
    result = evaluate(text)
    if result is not None:
        # Exact rationals for every literal; safe here, the text is digits and operators alone.
        import re

        source = re.sub(r"[0-9]+", lambda m: f"Fraction({int(m[0])})", text.replace(" ", ""))
        assert eval(source, {"Fraction": Fraction}) == result[0]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_problems_use_the_wanted_count_of_numbers(count):
    family = Countdown(min_numbers=count, max_numbers=count)
    for example in draw_examples(family, "train", 100):
        assert len(example.prompt[2:].partition(">")[0].split(",")) == count
        assert family.verify(example.prompt, example.answer, example.solution) == 1.0
        assert 1 <= int(example.answer) <= family.max_target
