r"""Verifiers of texts: the same text, the same number, the letter of a choice, the same JSON.

Texts are compared composed (Unicode NFC) and with line ends as `\n`. Where a completion marks its
answer (`marked`), that is what is read; a gold answer may be marked as well, as GSM8K's are.
"""

import json
import math
import re
import unicodedata
from typing import Any, NoReturn

from fiberjax.tasks.rewards.base import extracts
from fiberjax.tasks.rewards.marked import answer_element, marked_answer
from fiberjax.tasks.rewards.numbers import Named, last_number_of, named_number

_CHOICE = re.compile(
    r"(?:(?:option|choice|letter)\s+)?[(\[]?([A-Z])"
    r"(?:[)\].:,!]+(?=\s|$)|\s+[-\u2013\u2014](?=\s)|(?=\s*\n)|\s*$)(.*)",
    re.DOTALL | re.IGNORECASE,
)
# What is said behind a letter where others are chosen too.
_FURTHER = re.compile(
    r"(?:^|\n)\s*[(\[]?[A-Z](?:[)\].:,;/]|\s*$)|(?<![^\W_])[(\[]?[A-Z][)\]]"
    r"|\b(?:or|and)\s+(?:\w{1,12}\s+)?[(\[]?[A-Z](?![\w'])|^\s*(?:not?|or|nor)\b"
)
_OPTION = re.compile(r".*\b(?:option|choice)\s+(?:is|would be)\b:?", re.DOTALL | re.IGNORECASE)
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_LATEX_MATH = re.compile(r"\\[()\[\]]")
_LATEX_SPACE = re.compile(r"\\(?:[ ,;:]|q?quad(?![A-Za-z]))|~")
_FENCED = re.compile(r"```(?:json)?\s(.*?)```", re.DOTALL | re.IGNORECASE)


def composed(text: str) -> str:
    r"""A text in Unicode's composed form, its lines ended by `\n`, white space around it left off.

    >>> composed("cafe\u0301\r\n") == "caf\u00e9"
    True
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text).strip()


def exact(prompt: str, answer: str, completion: str) -> float:
    """1.0 if completion and answer are the same text; see `composed`. Nothing is not an answer."""
    del prompt
    expected = composed(answer)
    return float(expected != "" and composed(completion) == expected)


@extracts(marked_answer)
def number(prompt: str, answer: str, completion: str) -> float:
    r"""1.0 if both texts name the same number, compared exactly; see `numbers` and `marked`.

    The completion marks its answer (`#### 72`, `\boxed{72}`, `<answer>72</answer>`, "the answer is
    72") or is a number as a whole. The last mark counts, and may be followed by more text.

    >>> number("", "#### 1,072", "So 1000+72: the answer is **1072** clips.")
    1.0
    >>> number("", "72", "#### 72 or 73"), number("", "72", "first 72, then 73")
    (0.0, 0.0)
    """
    del prompt
    return _same(number_of(answer), number_of(completion))


@extracts(marked_answer)
def last_number(prompt: str, answer: str, completion: str) -> float:
    """As `number`; a text that is no number and marks none names the last that stands in it.

    >>> last_number("", "72", "Half is 24, so in all 72 clips.")
    1.0
    """
    del prompt
    found = number_of(completion)
    if found is None and marked_answer(completion) is None:
        found = last_number_of(completion)
    return _same(number_of(answer), found)


def number_of(text: str) -> Named | None:
    """The number of a text's marked answer, or of a text that is a number; None where it has none.

    Args:
      text: an answer of the data, or a completion.
    """
    found = marked_answer(text)
    if found is not None:
        return named_number(found)
    text = text.strip()
    # Without a mark, words that lead to a number are a sentence and no answer.
    return None if "\n" in text or text[:1].isalpha() else named_number(text)


def _same(expected: Named | None, found: Named | None) -> float:
    """1.0 for the same number, and the same words about it where the answer has some."""
    if expected is None or found is None or expected.value != found.value:
        return 0.0
    return float(not expected.words or expected.words == found.words)


@extracts(lambda completion: choice_of(completion))
def choice(prompt: str, answer: str, completion: str) -> float:
    r"""1.0 if both name the same letter of a multiple choice: `B`, `(b)`, `B. Paris`, `\boxed{B}`.

    >>> choice("", "(B)", "The answer is B."), choice("", "B", "A or B")
    (1.0, 0.0)
    """
    del prompt
    expected, found = choice_of(answer), choice_of(completion)
    return float(expected is not None and expected == found)


def choice_of(text: str) -> str | None:
    """The capital letter that a text chooses; None where it chooses none."""
    found = marked_answer(text)
    text = (_OPTION.sub("", text[-1_000:]) if found is None else found)[:1_000]
    text = _LATEX_TEXT.sub(r"\1 ", unicodedata.normalize("NFKC", text))
    text = _LATEX_SPACE.sub(" ", _LATEX_MATH.sub("", text))
    text = text.strip().strip("*`$_.!\"'\u2018\u2019\u201c\u201d ")
    chosen = _CHOICE.fullmatch(text)
    return None if chosen is None or _FURTHER.search(chosen[2]) else chosen[1].upper()


def same_json(prompt: str, answer: str, completion: str) -> float:
    r"""1.0 if both are the same JSON value, whatever the order of its keys; a fenced block counts.

    >>> same_json("", '{"a": 1, "b": [2]}', 'Here:\n```json\n{"b": [2], "a": 1.0}\n```')
    1.0
    """
    del prompt
    expected, found = json_of(answer), json_of(completion)
    return float(expected is not None and found is not None and _equal(expected[0], found[0]))


def json_of(text: str) -> tuple[Any] | None:
    """The JSON value of a text, of its `<answer>` or last fenced block; None where it is none.

    A key that stands twice in an object names two values, and a number beyond float64 none.
    """
    text = answer_element(text).removeprefix("\ufeff")
    blocks = _FENCED.findall(text)
    try:
        value = json.loads(
            blocks[-1] if blocks else text,
            parse_constant=_refuse,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
    except (ValueError, RecursionError):
        return None
    return (value,)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse(text)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = {unicodedata.normalize("NFC", key): of for key, of in pairs}
    if len(value) < len(pairs):
        _refuse("a key that stands twice")
    return value


def _equal(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same; `true` is no number."""
    pending = [(a, b)]
    while pending:
        a, b = pending.pop()
        if isinstance(a, bool) != isinstance(b, bool):
            return False
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            pending += [(a[key], b[key]) for key in a]
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            pending += list(zip(a, b, strict=True))
        elif isinstance(a, str) and isinstance(b, str):
            if unicodedata.normalize("NFC", a) != unicodedata.normalize("NFC", b):
                return False
        elif a != b:
            return False
    return True
