from fractions import Fraction

import numpy as np
import pytest
from tasks.answers import APART, NEAR_MISSES, REWRITINGS, written
from tasks.expressions import OTHER, PROMPT, SAME, pairs

from fiberjax import options
from fiberjax.tasks.rewards import Case, combine, extracted, final_answer, marked_answer
from fiberjax.tasks.rewards.base import form_of, rewards_of, verifier_of
from fiberjax.tasks.rewards.expressions import expression_of
from fiberjax.tasks.rewards.numbers import read_number
from fiberjax.tasks.rewards.own import table_of
from fiberjax.tasks.rewards.patterns import Pattern
from fiberjax.tasks.rewards.shaping import overlong, shaped
from fiberjax.tasks.rewards.strict import parse_number, strict_number
from fiberjax.tasks.rewards.texts import choice, exact, last_number, number, same_json


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
def test_strict_numbers_compare_the_number_after_the_last_marker(answer, completion, reward):
    assert strict_number("", answer, completion) == reward


def test_final_answer_wants_one_delimiter():
    assert final_answer("a#b") == "b"
    assert final_answer("#") == ""
    assert final_answer("ab") is None
    assert final_answer("a#b#b") is None


@pytest.mark.parametrize(("answer", "completion"), written(REWRITINGS))
def test_a_right_answer_is_paid_however_it_is_written(answer, completion):
    assert number("", answer, completion) == 1.0


@pytest.mark.parametrize(("answer", "completion"), written(NEAR_MISSES))
def test_near_misses_are_not_paid(answer, completion):
    assert number("", answer, completion) == 0.0


@pytest.mark.parametrize(("answer", "same", "other"), APART)
def test_words_that_are_no_unit_are_a_part_of_the_answer(answer, same, other):
    for text in same:
        assert all(paid("", answer, rf"\boxed{{{text}}}") == 1.0 for paid in (number, last_number))
    for text in other:
        assert not any(paid("", answer, rf"\boxed{{{text}}}") for paid in (number, last_number))


def test_the_last_number_has_the_words_beside_it():
    assert last_number("", "10 AM", "We meet at 10 a.m. then") == 1.0
    assert last_number("", "10 AM", "We meet at 10 PM.") == 0.0


READ = {
    "72": 72, "-72": -72, "\u221272": -72, "+72.": 72, ".5": 0.5, "007": 7, "1,250": 1250,
    "1 000 000": 1e6, "1\u2009000": 1000, "1{,}000": 1000, r"3\,000": 3000, "1'000": 1000,
    r"\frac{1}{3}": "1/3", r"-\frac{3}{6}": -0.5, r"\dfrac{3}{4}": 0.75, "1 1/2": 1.5,
    "-1 1/2": -1.5, r"1\frac12": 1.5, "\u00bd": 0.5, "1\u00bd": 1.5, "1e6": 1e6, "1.5e-3": 0.0015,
    "2.5 \u00d7 10^3": 2500, r"2.5\times10^{3}": 2500, "3 million": 3e6, "12 dozen": 144,
    "18 \u20ac": 18, "-$5": -5, "$-5": -5, r"\$18": 18, "USD 18": 18, "$12.50 per hour": 12.5,
    "50 percent": 50, "5 km/h": 5, "$5/hour": 5, "5 cm\u00b2": 5, r"90^\circ": 90, "5km": 5,
    "minus 5": -5, "negative 5": -5, "2+3=5": 5, "$x=5$": 5, "(5)": 5, "\uff15": 5, "5.0": 5,
    "\u0661\u0660": 10, "\U0001d7cf": 1, "10,72,000": 1072000, "1.072,50 \u20ac": 1072.5,
    "\u20ac 1.072,00": 1072, "1.000.000": 1e6, "1 072,50": 1072.5, "1.072 x 10^3": 1072,
    "0,125": 0.125, "-0,125 kg": -0.125,
    "1.072\u00d710\u00b3": 1072, "1.072*10**3": 1072,
    "5\u00d710\u207b\u00b2": 0.05, r"\frac{-1}{2}": -0.5, r"\frac{1}{-2}": -0.5,
    r"\frac{{1}}{{2}}": 0.5, r"\frac{1.5}{2}": 0.75, r"\frac{1{,}000}{2}": 500,
    r"2 \dfrac{1}{2}": 2.5, "2 and 1/2": 2.5, r"5~\text{m}": 5, r"5 \mathrm{~cm}^2": 5, "5 m^2": 5,
    r"5\text{ cm}^{2}": 5, r"\underline{5}": 5, r"\color{red}{5}": 5, r"\left(5\right)": 5,
    "US$5": 5, "C$ 1,072": 1072, "~5": 5, "<b>5</b>": 5, r"$\$5$.": 5, "**5**!": 5,
    "x + y = 2 + 3 = 5": 5, "$1,000 + $72 = $1,072": 1072,
    "It is -$72": -72, "It is -\u20ac 72": -72, "3 hundred thousand": 300000, "x_1 = 5": 5,
    "f(2) = 5": 5, "AB = 5": 5, r"\theta = 5": 5, r"\angle ABC = 5": 5, "2 x 3 = 6": 6,
    "x + y, so the sum = 5": 5,
    "2 apples + 3 apples = 5 apples": 5, "area = l \u00d7 w = 5": 5, "y' = 5": 5,
    "the 2nd side = 5": 5, "P(A+B) = 5": 5, "I had 2 + 3 = 5": 5, r"a_{10} = 5": 5,
    "2 million apples": 2e6,
    r"\frac3{56}": "3/56", r"\dfrac3{56}": "3/56", r"\frac{12}5": 2.4, r"\frac{-1}2": -0.5,
    r"-\frac 1{2}": -0.5, "10^3": 1000, r"10^{3}": 1000, "10\u00b3": 1000, "-10^3": -1000,
    "10^{-2}": 0.01, r"0.1\overline{6}": "1/6", r"0.\overline{3}": "1/3", r"-.\bar{3}": "-1/3",
    r"12.3\overline{45}": "12222/990", r"5\mathrm{~m} / \mathrm{s}": 5, r"5\text{ m/s}^2": 5,
    "5 m/s\u00b2": 5, "5 mol/L": 5, "5 J": 5, "5 N": 5, "5 K": 5, r"5\,\Omega": 5,
    r"\textnormal{5}": 5, r"5 \text{ m s}^{-1}": 5, "5\u2126": 5, "5 N/m": 5,
    "72\u5143": 72, "72 \u5143": 72, "72\\text{\u5143}": 72, "72\u4e2a": 72, "72\u4eba": 72,
    "72\u5186": 72, "72\uac1c": 72, "7.2\u4e07\u5143": 72000, "3\u5343\u4e07": 3e7,
    "Rs.500": 500, "Rs500": 500, "Rs. 500": 500, "R$1000": 1000, "R$ 1.000,00": 1000,
    "Rp5000": 5000, "USD5": 5, "USD $5": 5, "3 lakh": 300000, "\u0663\u066b\u0665": 3.5,
    "\u0661\u066c\u0660\u0660\u0660": 1000, r"5 m\cdot s^{-1}": 5, "5 m\u00b7s\u207b\u00b9": 5,
    r"5\text{ kg}\cdot\text{m/s}^2": 5, r"$5\,\mathrm{N\cdot m}$": 5, "5 kW\u00b7h": 5,
}  # fmt: skip
UNREAD = (
    "", ".", "-", "$", "1,2", "1,23,45", "1/0", "1/2/3", "0x1", "--1", "1 2", "/2", "+",
    "1.5/2", "9" * 65, "1/", "7 hours 30 minutes", "1, 2, 3", "2x", "5\u00b2", "\u221a5", "x - 5",
    "2020-01-02", "5th", "5 and a half", "<5", "2\u03c0", "3i", "1_000", "5 x 3", "\u00b15", "5/x",
    "[1,2]", "1e99999", "1.2.3", r"\sqrt{5}", r"2^{5}", "5 mod 7", "7:30",
    ">= 5", "5 >= 5", "x != 5", "=/= 5", "x = 3, x = 5", "x = 3 or x = 5", "x = 3 and y = 5", "3,5",
    "1.072,5,0", "1072,5", "0.123,456", "0,5", "(0,125)", "0,125,000", "0 125", "0.123.456",
    "0'125", r"\frac{0,125}{2}", "5 pi", "log 5", "f(5)", "5 x", "anything but 5", "5 factorial",
    r"5\times", "5\u2026", r"5\ldots", r"\frac{5}{0}", "--1/2", "5,6,7", r"5\,6", "5 and 6",
    "2**3", "2`3", "2*3*", "2__3", "2***3", "**2*3",
    "2x=5", "x^2=5", "x+y=5", "2xy=5", "-x=5", r"\sqrt{x}=5", r"\frac{x}{2}=5", r"2\theta=5",
    "xy=5", "x/2 = 5", "x!=5", "|x|=5", "f(x)+1=5", "2(x+1)=5", "x\u00b2 = 5", "2 x = 5",
    "5 - x = 5",
    "72 - 5", "x% of 50 = 5", "3 hundred twenty", "3 hundred and five", "72 - $5", "x_1 + x_2 = 5",
    r"\frac{1}{2}3", r"\frac123", r"\frac12{3}", r"\frac{12}{5}6", "1/10^3", "1 / 10^3", "2^10^3",
    "10^3^2", "10^3x", "x10^3", "(2)10^3", r"2 0.\overline{3}", r"1,000.\overline{3}",
    r"0.\overline{3}4", r"0.\overline{}", "5/N", "5N", "5K", "5 k", "5 j", "5 s^x", "5 x/y",
    "72\u5143\u534a", "5\u500d", "5\u4ee5\u4e0a", "72\u591a\u4eba", "5\uc774\uc0c1", "XRs5",
    "5 \u03c9", "5s^2", "5 s^2", "5h^2", "5 K^2",
    "5 a\u00b7b", "5\u00b7m", "5 m\u00b7", "5\u00b7s^2", "5 m \u00b7 3 m", "5 apples \u00b7 m",
)  # fmt: skip


@pytest.mark.parametrize(("text", "value"), READ.items())
def test_numbers_are_read_in_all_their_forms(text, value):
    assert read_number(text) == Fraction(str(value))


@pytest.mark.parametrize("text", UNREAD)
def test_what_names_no_number(text):
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("no mark: 5", None),
        ("a #### 5\n\nmore 6", "5"),
        ("####\n\n 5", "5"),
        ("#### 5. Then 6 of them.", "5"),
        ("#### 5 since 2 + 3", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{1}, \boxed{2}", ""),
        (r"\boxed{1", ""),
        ("<answer>a<answer>b</answer>", "b"),
        ("</answer> 5", None),
        ("the answer is unclear. The answer is 5!", "5"),
        ("The answer is $5!$", "$5!$"),
        ("\\boxed{72}\n\n#### Explanation\nblah", "72"),
        ("#### 72\n\n##### Why so\nblah 5", "72"),
        ("#### Step 1: add 5\n3\n#### **Final Answer**\n72", "72"),
        ("#### Step 2\nso it is\n#### Conclusion\nThe answer is 72.", "72."),
        ("#### Final Answer:\n$$\n72\n$$", "72"),
        ("#### Evelyn", "Evelyn"),
        ("#### B\nsince A is not", "B"),
        ("#### The total is 72\nDone", "The total is 72"),
        ("#### \\pi\nDone", "\\pi"),
        ("The answer is:\n$$\n72\n$$", "72"),
        ("The answer is:\n\\[\n72\n\\]\nas said", "72"),
        ("so #### of them\nmore", "of them"),
        ("The answer is 5. Now the answer is clear.", "5"),
        ("answer: (B)", "(B)"),
        (r"the answer is 4, #### 5", "5"),
        (r"\boxed{1} \boxed{1}", "1"),
        (r"so $\boxed 7$ it is", "7"),
        ("Answer\uff1a5", "5"),
        ("The answer to the question is 5.", "5."),
        ("the answer would be 5", "5"),
        ("### Answer\n\n5 apples", "5 apples"),
        ("**Final answer**\n5", "5"),
        ("The answer isn't 5", None),
        ("An answer\nis what I lack", None),
    ],
)
def test_marks_are_found(text, answer):
    assert marked_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("in all 72 clips.", 72),
        ("5 or 6", 6),
        ("", None),
        ("none", None),
        ("The change is -$72.", -72),
        ("So:\n- 72 apples", 72),
        ("77 - 5", 5),
        ("It costs 3 million.", 3000000),
        ("77 -5", -5),
    ],
)
def test_the_last_number_is_an_answer_where_that_is_asked_for(text, value):
    assert last_number("", "" if value is None else str(value), text) == float(value is not None)
    assert number("", str(value), text) == 0.0


def test_the_last_number_does_not_overrule_a_mark():
    assert last_number("", "6", "#### 5\n6") == 0.0
    assert last_number("", "5", "#### 5\n6") == 1.0


def test_texts_compare_composed():
    assert exact("", "caf\u00e9", "cafe\u0301") == 1.0
    assert exact("", "a\nb", "a\r\nb\r") == 1.0
    assert exact("", "", "") == 0.0 and exact("", "\u00b2", "2") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        *("B", "(b)", "B.", "B) Paris", "#### B", "**B**", "The answer is (B).", "answer: B"),
        *(r"\boxed{B}", r"\boxed{\text{B}}", "Option B", "The best option is B.", "\uff22", "'B'"),
        *(
            "The answer is option (B).",
            "The answer is B, Paris",
            "B - Paris",
            "B\nBecause",
            r"\(B\)",
            r"\boxed{\textbf{(B)}\ 5}",
            r"The answer is $\textbf{(B)}\ 12$.",
            r"\boxed{\textbf{(B) }\frac{1}{2}}",
            r"\boxed{\textbf{(B)}~x}",
            r"\boxed{\mathrm{(B)}\quad 5}",
        ),
        *(r"The answer is \(\textbf{(B)}\)", 'The answer is "B".', "Answer: (B) Paris", "B: Bath"),
        *("The answer is choice B, since A is wrong.", "B. John A. Roe"),
    ],
)
def test_a_choice_is_its_letter(text):
    assert choice("", "B", text) == 1.0 and choice("", "C", text) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "A or B",
            "AB",
            "Because",
            "B, C",
            "1",
            "A B",
            "(A)(B)",
            "B. C.",
            "B. or A",
            "B) (C)",
            r"\boxed{\textbf{(B)}\ 5, \textbf{(C)}\ 6}",
            r"\boxed{\textbf{B}\ 5}",
        ),
        *(
            "B) or C)",
            "B. C. D.",
            "B. Paris or C. Rome",
            "B) Paris C) Rome",
            "B: not",
            "B.\nC.\nD.",
        ),
        *("The answer isn't B", "B. and also C."),
    ],
)
def test_what_chooses_nothing(text):
    assert choice("", "B", text) == 0.0


def test_json_is_compared_as_values():
    gold = '{"a": [1, true], "b": null}'
    assert same_json("", gold, '```json\n{"b": null, "a": [1.0, true]}\n```') == 1.0
    assert same_json("", gold, f"so <answer>{gold}</answer>") == 1.0
    assert same_json("", '{"\u00e9": "\u00e9"}', '```JSON {"e\u0301": "e\u0301"}```') == 1.0
    assert same_json("", "1e999", "1e400") == 0.0 and same_json("", "{}", '{"a":1,"a":2}') == 0.0
    for wrong in (
        gold[:-1] + ', "b": null}',
        '{"a": [1, 1], "b": null}',
        '{"a": [true, 1]}',
        "",
        "[" * 10**5,
        "NaN",
        "{}",
    ):
        assert same_json("", gold, wrong) == 0.0


def test_rewards_are_added_by_weight():
    table = {"one": lambda *_: 1.0, "half": lambda *_: 0.5}
    assert combine("one", table) is table["one"]
    assert combine("one + 0.1*half", table)("", "", "") == 1.05
    path = "/x/my-project/rewards.py:score"
    assert combine(f"one + 2*{path}", {**table, path: table["half"]})("", "", "") == 2
    assert combine("-2*half+0.5*one", table)("", "", "") == -0.5
    for wrong in ("", "one +", "nan*one", "x*one", "one*2", "inf * one", "one-half"):
        with pytest.raises(ValueError, match=r"expected a name, or a sum|unknown verifier"):
            combine(wrong, table)
    with pytest.raises(ValueError, match="unknown verifier 'two', expected one of one, half"):
        combine("one + two", table)


def test_verifiers_say_what_they_took_for_the_answer():
    assert extracted(number, "so #### 72 clips") == extracted(last_number, "#### 72 clips")
    assert extracted(number, "so #### 72 clips") == "72 clips"
    assert extracted(number, "72 clips") is None and extracted(exact, "72") is None
    assert extracted(choice, "the answer is (b)") == "B"
    both = combine("exact + 0.1*number", {"exact": exact, "number": number})
    assert extracted(both, "#### 72") == "72"


@pytest.fixture(scope="module")
def math():
    """The function itself, in this process."""
    pytest.importorskip("math_verify")
    from fiberjax.tasks.rewards.symbolic import math

    return math


def test_expressions_are_paid_for_what_they_say(math):
    unpaid = [case for case in pairs(SAME) if math(*case) != 1.0]
    assert unpaid == []


def test_near_misses_of_expressions_are_not_paid(math):
    paid = [case for case in pairs(OTHER) if math(*case) != 0.0]
    assert paid == []


def test_where_the_answer_is_a_number_math_is_number(math):
    assert all(math("", *case) == 1.0 for case in written(REWRITINGS)[::7])
    assert not any(math("", *case) for case in written(NEAR_MISSES)[::7])
    assert math("", "408", r"\boxed{12 \times 34}") == 0.0
    for answer, same, other in APART:
        assert all(math("", answer, f"#### {text}") == 1.0 for text in same)
        assert not any(math("", answer, f"#### {text}") for text in other)


def test_a_prompt_said_again_is_no_answer(math):
    assert math(PROMPT, r"2\sqrt{3}", r"\boxed{\sqrt{12}}") == 0.0
    assert math("", r"2\sqrt{3}", r"\boxed{\sqrt{12}}") == 1.0
    for text in ("", PROMPT, rf"\boxed{{{PROMPT}}}", "I do not know", r"\boxed{}"):
        assert not any(math(PROMPT, answer, text) for answer, _ in SAME)


def test_an_answer_alone_is_an_expression_and_a_sentence_is_none(math):
    assert all(math("", answer, answer) == 1.0 for answer, _ in SAME)
    assert all(math("", answer, f"${answer}$.") == 1.0 for answer, _ in SAME)
    for text in ("I got 2", "x\ny", "the total of x", "x}", "x" * 501, "#### "):
        assert expression_of(text) is None


def test_a_pattern_is_of_the_whole_completion():
    form = Pattern(r"<think>[^<]*</think>\s*<answer>.+</answer>")
    right = "<think>1\n+1</think>\n<answer>2</answer>"
    cases = [Case("", "", text) for text in (right, right + "!", "", "\ud800", "a" * 10**6)]
    assert form.many(cases) == [1.0, 0.0, 0.0, 0.0, 0.0] and form("", "", right) == 1.0
    assert Pattern("a|b")("", "", "ab") == 0.0
    with pytest.raises(ValueError, match="no regular expression of RE2"):
        Pattern("(?=a)")


@pytest.mark.parametrize(
    ("length", "cost"), [(12, 0.0), (13, -0.25), (15, -0.75), (16, -1.0), (99, -1.0)]
)
def test_long_completions_cost_as_in_dapo(length, cost):
    assert overlong(np.array([length]), 12, 4).tolist() == [cost]


def test_cut_completions_count_as_asked():
    reward, length = np.array([1, 1, 0], np.float32), np.array([9, 12, 12])
    finished = np.array([True, False, False])

    def of(truncated, cache=0):
        found = shaped(reward, length, finished, truncated=truncated, start=10, cache=cache)
        return [each.tolist() for each in found]

    assert of("score") == [[1, 1, 0], [True, True, True]]
    assert of("zero") == [[1, 0, 0], [True, True, True]]
    assert of("mask") == [[1, 1, 0], [True, False, False]]
    assert of("zero", cache=4) == [[1, -0.5, -0.5], [True, True, True]]


def test_how_a_function_is_called_is_read_once():
    def lists(prompts, answers, completions, row):
        return [len(completions) + len(of) for of in row]

    lists.batched = True
    assert form_of(lists).row and form_of(lists).batched
    cases = [Case("", "", "", {"a": 1}), Case("", "", "")]
    assert rewards_of(verifier_of(lists), "d", cases).reward.tolist() == [3.0, 2.0]
    plain = lambda prompt, answer, completion: 1.0  # noqa: E731
    assert verifier_of(plain) is plain
    lists.__dict__["batched"] = False
    for wrong in (lambda a: 1, lambda a, b: 1, lambda a, b, c, d, e: 1, lambda *, a: 1):
        with pytest.raises(ValueError, match="expected \\(prompt, answer, completion"):
            form_of(wrong)
    assert form_of(lambda a, b, c, weight=2: 1).row is False


def test_a_list_of_another_length_is_refused():
    short = lambda prompts, answers, completions: [1.0]  # noqa: E731
    short.batched = True
    with pytest.raises(ValueError, match="gave 1 values for 2 completions"):
        verifier_of(short).many([Case("", "", "")] * 2)


def rewards(**values):
    from configs import quickstart

    chosen = quickstart.get_config().rewards
    chosen.update(values)
    return options.parse(options.Rewards, chosen, "config.rewards")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 0}, "workers must be positive"),
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"failed": "skip"}, "failed must be one of zero, stop"),
        ({"truncated": "drop"}, "truncated must be one of score, zero, mask"),
        ({"golds": "no"}, "golds must be one of refuse, tell, skip"),
        ({"shown": -1}, "shown must be at least 0"),
        ({"overlong_from": 3}, "overlong_from = 3 is given without an overlong_cache"),
    ],
)
def test_options_of_rewards_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        rewards(**values)


def test_the_punishment_begins_within_the_window():
    assert rewards(overlong_cache=4).overlong_start(16) == 12
    assert rewards(overlong_cache=4, overlong_from=9).overlong_start(16) == 9
    for values in ({"overlong_cache": 17}, {"overlong_cache": 2, "overlong_from": 16}):
        with pytest.raises(ValueError, match=r"punish nothing or everything of config\.window"):
            rewards(**values).overlong_start(16)


def test_the_table_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def paid(prompt, answer, completion):\n    return 0.5\n")
    chosen = rewards(format="a+", seconds=2.0)
    table = table_of({}, (), ("0.5*mine:paid + format", "mine.py:paid"), chosen)
    assert table.verifiers.keys() == {"format", "mine:paid", "mine.py:paid"}
    assert table.digests.keys() == {"mine", "mine.py"} and len(set(table.digests.values())) == 1
    assert table.verifiers["mine:paid"].limits.seconds == 2.0
    verify = combine("0.5*mine:paid + format", table.verifiers)
    assert verify("", "", "aa") == 1.25
    with pytest.raises(ValueError, match=r"config\.tasks\.verifier: gone:paid does not exist"):
        table_of({}, (), ("gone:paid",), rewards())
    with pytest.raises(ValueError, match=r"whose pattern config\.rewards\.format is empty"):
        table_of({}, (), ("number + format",), rewards())
    with pytest.raises(ValueError, match=r"config\.rewards\.format: '\('"):
        table_of({}, (), (), rewards(format="("))
    with pytest.raises(ValueError, match=r"format = 'a\+' is read by the verifier 'format' alone"):
        table_of({}, (), ("mine:paid",), rewards(format="a+"))
    with pytest.raises(ValueError, match=r"the reward 'f' takes \(a\)"):
        table_of({"f": lambda a: 1.0}, (), (), rewards())


def test_an_extra_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    from fiberjax.tasks.rewards import SHIPPED

    with pytest.raises(ValueError, match=r"'math' needs the extra 'math', .* --extra math"):
        combine("number + math", SHIPPED)
