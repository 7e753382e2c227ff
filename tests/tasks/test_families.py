import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberjax.tasks import FAMILIES, VERIFIERS, CharVocabulary, make_family
from fiberjax.tasks.examples import SPLITS, draw_examples, example_rng, split_of
from fiberjax.tasks.families import Brackets

WORKED = ("addition", "running_sum", "selection")
NAMES = tuple(FAMILIES)

# One digest per family over its first training examples at seed 0. If one changes for another
# reason than a knob's default, raise `builders.VERSION`: files of the old examples must not be
# reused.
GOLDEN = {
    "reverse": "16a870c1590ba527",
    "sort": "d89204b484ce6276",
    "brackets": "b8c88a4fff68185b",
    "modular": "472d46225b935089",
    "countdown": "9b8138dee6ca5eea",
    "addition": "42a21df19dffabd6",
    "running_sum": "7d39e2d9774876ed",
    "selection": "4c5f52bc8961bfa9",
    "calculation": "fd599f29fcaaf39d",
}


def drawn(name, count=60, *, split="train", difficulty=0, seed=0):
    return list(draw_examples(make_family(name), split, count, seed=seed, difficulty=difficulty))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("difficulty", (0, 1))
def test_solutions_verify_and_are_in_the_default_vocabulary(name, difficulty):
    vocabulary, family = CharVocabulary(), make_family(name)
    for example in drawn(name, difficulty=difficulty):
        assert example.domain == name
        assert family.verify(example.prompt, example.answer, example.solution) == 1.0
        assert VERIFIERS[name](example.prompt, example.answer, example.solution) == 1.0
        for text in (example.prompt, example.solution):
            assert vocabulary.decode(vocabulary.encode(text)) == text


@pytest.mark.parametrize("name", [n for n in NAMES if n != "countdown"])
def test_an_answer_wrong_by_one_character_earns_nothing(name):
    family = make_family(name)
    for example in drawn(name, 20):
        for i in range(len(example.answer)):
            other = "0" if example.answer[i] != "0" else "1"
            wrong = example.answer[:i] + other + example.answer[i + 1 :]
            start = example.solution[: len(example.solution) - len(example.answer)]
            for completion in (
                start + wrong,
                start + example.answer[:i] + example.answer[i + 1 :],
                example.solution + other,
            ):
                assert family.verify(example.prompt, example.answer, completion) == 0.0


@pytest.mark.parametrize("name", WORKED)
def test_worked_answers_take_32_tokens_and_exactly_one_delimiter(name):
    family = make_family(name)
    for example in drawn(name):
        answer = example.answer
        assert len(example.solution) >= 32
        assert family.verify(example.prompt, answer, f"#{answer}") == 1.0
        for completion in (
            answer,
            f"#{answer}#",
            f"##{answer}",
            f"#{answer}#{answer}",
            f"#0#{answer}",
            f"#{answer} ",
            f"#{answer},{answer}",
        ):
            assert family.verify(example.prompt, answer, completion) == 0.0


def test_worked_steps_by_hand():
    by_prompt = {
        "addition": ("A:", lambda p: eval_sum(p)),
        "running_sum": ("T:", lambda p: eval_sum(p)),
    }
    for name, (tag, value) in by_prompt.items():
        for example in drawn(name, 20):
            assert example.prompt.startswith(tag)
            assert int(example.answer) == value(example.prompt)
            for step in example.solution.partition("#")[0].split(","):
                left, _, right = step.partition("=")
                assert sum(map(int, left.split("+"))) == int(right)


def eval_sum(prompt):
    return sum(map(int, prompt[2:-1].split("+")))


def test_answers_by_their_definition():
    for example in drawn("reverse"):
        assert "".join(reversed(example.prompt[2:-1])) == example.answer
    for name in ("sort", "selection"):
        for example in drawn(name):
            assert sorted(example.prompt[2:-1]) == list(example.answer)
    for example in drawn("modular"):
        a, b, c, m = map(
            int, example.prompt[3:-1].replace("*", " ").replace("+", " ").replace(")%", " ").split()
        )
        assert (a * b + c) % m == int(example.answer)
    for example in drawn("brackets"):
        text = example.prompt[2:-1] + example.answer
        for _ in text:
            for pair in ("()", "[]", "{}", "<>"):
                text = text.replace(pair, "")
        assert text == "" and example.answer


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_problem_whatever_the_seed_and_difficulty(name):
    family = make_family(name)
    train = {
        family.canonical(e.prompt)
        for seed in (0, 1)
        for difficulty in (0, 1)
        for e in drawn(name, 150, seed=seed, difficulty=difficulty)
    }
    test = {family.canonical(e.prompt) for e in drawn(name, 50, split="test")}
    assert train and test and not train & test


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_distinct_and_problems_hash_alike_however_written(name):
    family, prompts = make_family(name), [e.prompt for e in drawn(name, 200)]
    assert len(set(prompts)) == len(prompts)
    for prompt in prompts:
        assert family.canonical(family.canonical(prompt)) == family.canonical(prompt)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("sort", "S:3120=", "S:0123="),
        ("selection", "L:312045=", "L:543210="),
        ("addition", "A:1234+987=", "A:987+1234="),
        ("running_sum", "T:1+2+3=", "T:3+1+2="),
        ("modular", "M:(3*4+5)%7=", "M:(4*3+5)%7="),
        ("countdown", "C:3,7,8>24=", "C:8,3,7>24="),
        ("calculation", "calc:12*34=", "calc:34*12="),
    ],
)
def test_one_problem_written_twice_is_in_one_split(name, one, other):
    family = make_family(name)
    assert family.canonical(one) == family.canonical(other)
    assert split_of(family, one) == split_of(family, other)


@pytest.mark.parametrize("name", NAMES)
def test_examples_depend_on_seed_and_index_alone(name):
    family = make_family(name)
    assert drawn(name) == drawn(name)
    assert drawn(name)[:20] == drawn(name, 20)
    assert drawn(name) != drawn(name, seed=1)
    assert family.generate(example_rng(0, name, 7)) == family.generate(example_rng(0, name, 7))


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_those_of_the_published_version(name):
    fields = ("prompt", "answer", "solution", "domain")  # What the files hold.
    rows = [", ".join(f"{of}={getattr(e, of)!r}" for of in fields) for e in drawn(name, 20)]
    text = "[" + ", ".join(f"Example({row})" for row in rows) + "]"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == GOLDEN[name], "new examples: see the comment at GOLDEN"


@pytest.mark.parametrize("name", NAMES)
def test_difficulty_makes_problems_longer(name):
    def mean_length(difficulty):
        return np.mean([len(e.prompt) for e in drawn(name, 100, difficulty=difficulty)])

    assert mean_length(1) > mean_length(0)


HOSTILE = (
    "",
    "\0",
    "#",
    "####",
    "=" * 100,
    "#" * 1_000_000,
    "9" * 1_000_000,
    "(" * 1_000_000,
    "-" * 100_000 + "1",
    "9**9**9**9",
    "1/0",
    "0/0",
    "\u0663+\u0664",
    "\uff11#\uff11",
    "#\u00b2",
    "nan",
    "inf",
    "1e999",
    "__import__('os')",
    "\ud800",
    "#\ud800",
    "####" + "1," * 100_000,
    "#### " + "$" * 100_000,
    "####1/" + "0" * 50,
    " " * 1_000_000,
)


# Those of reasoning-gym read the row of a problem: tests/tasks/test_reasoning.py.
OF_TEXTS = [name for name in VERIFIERS if not name.startswith("reasoning_gym")]


@pytest.mark.parametrize("verifier", OF_TEXTS)
@pytest.mark.parametrize("completion", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_completions_earn_nothing_and_never_raise(verifier, completion):
    prompt, answer = ("C:3,7,8>24=", "24") if verifier == "countdown" else ("x", "2024")
    assert VERIFIERS[verifier](prompt, answer, completion) == 0.0


@pytest.mark.parametrize("verifier", OF_TEXTS)
@given(text=st.text())
@settings(max_examples=50, deadline=None)
def test_any_text_is_judged(verifier, text):
    # A nine-digit answer is not found by accident.
    assert VERIFIERS[verifier]("C:3,7,8>24=", "123456789", text) == 0.0
    assert VERIFIERS[verifier](text, text, "123456789") in (0.0, 1.0)


def test_too_few_distinct_prompts_is_one_clear_error():
    tiny = make_family("reverse", {"min_length": 1, "max_length": 1})
    with pytest.raises(ValueError, match="reverse at difficulty 0 has too few distinct prompts"):
        list(draw_examples(tiny, "train", 100))


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="unknown domain 'sorting', expected one of reverse"):
        make_family("sorting")
    with pytest.raises(ValueError, match="'sort' has no knob 'length', expected one of min_length"):
        make_family("sort", {"length": 3})
    with pytest.raises(ValueError, match=r"knob sort\.max_length is '8', expected int"):
        make_family("sort", {"max_length": "8"})
    with pytest.raises(ValueError, match=r"sort: sizes 4\.\.8 at difficulty -4"):
        drawn("sort", difficulty=-4)
    with pytest.raises(ValueError, match=r"sizes 9\.\.3"):
        list(draw_examples(Brackets(min_length=9, max_length=3), "train", 1))
    with pytest.raises(ValueError, match="split is 'dev', expected one of train, test"):
        list(draw_examples(make_family("sort"), "dev", 1))
    assert SPLITS == ("train", "test")
