r"""The one number that a text names, read exactly.

    72   -72   −72   +72.   .5   007        signs, typographic ones too, and a closing full stop
    1,250   1 000 000   1{,}000   10,72,000 thousands
    1.250,50 €   1.000.000                  points as thousands, where they can be nothing else
    0,125                                   a comma that cannot group
    1/3   \frac{1}{3}   1 1/2   1\frac12 ½  fractions and mixed numbers
    0.1\overline{6}                         decimals that repeat
    1e6   2.5 × 10^3   10³   3 million 3万  powers of ten and their words
    $18   18 €   50%   72 apples 72元 5 m/s² currencies, percent signs, words and units
    **5**   `5`   $5$   \text{5}   x = 5    Markdown, LaTeX, and what a name is said to equal

Digits of any script are digits. A text with two numbers, a comparison, an operation or an
alternative names none: neither `7 hours 30 minutes` nor `1, 2, 3`, `5 or 6`, `x = 3, x = 5`, `2x`,
`5^2`, `more than 5`, `x != 5`, `3:4`, nor what may be read in two ways, as `3,5`.

Units and what is counted are left out. Words before the number are a part of the answer, and so are
halves of the day, months, days of the week and directions: `10 AM` is not `10 PM`.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from fiberjax.tasks.rewards.notation import plain

_LONGEST = 1_000  # Characters of a text that is read.
_LONGEST_NUMBER = 64
_LARGEST_EXPONENT = 64

# ASCII digits only: `\d` and `int` accept the digits of every script.
_WHOLE = (
    r"[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}"
    r"|[1-9][0-9]{0,2}(?: [0-9]{3})+|[1-9][0-9]{0,2}(?:'[0-9]{3})+|[0-9]+"
)
_NUMBER = re.compile(
    r"(?P<sign>(?<![0-9A-Za-z)])(?:[+-](?! )|(?<![0-9A-Za-z)%$] )[+-] ))?"
    r"[$€£¥₹₩]? ?(?P<inner>[+-])?(?=[.]?[0-9])"
    rf"(?:(?P<mixed>[0-9]+) (?=[0-9]+/[0-9]))?(?P<whole>{_WHOLE})?"
    r"(?:[.](?P<decimals>[0-9]+)|(?P<point>[.](?![0-9]))| ?/ ?(?P<denominator>[0-9]+))?"
    r"(?:[eE](?P<exponent>[+-]?[0-9]+)|×10\^(?P<power>[+-]?[0-9]+))?"
)
_START = re.compile(r"[0-9]|[.][0-9]")

_SCALES = {
    **{"dozen": 12, "hundred": 100, "thousand": 1_000, "million": 10**6},
    **{"billion": 10**9, "trillion": 10**12, "lakh": 10**5, "crore": 10**7},
}
_SCALE_LETTERS = {
    **dict.fromkeys("十십", 10),
    **dict.fromkeys("百백", 100),
    **dict.fromkeys("千천", 1_000),
    **dict.fromkeys("万萬만", 10**4),
    **dict.fromkeys("亿億억", 10**8),
}
_NO_COUNTER = re.compile("[半倍多余餘以未超兆조成折割반배여]|分之|분의|이상|이하|미만|초과")
_NEGATIVE = ("minus", "negative")
_REFUSED = frozenset(
    "not no isn't never or nor between than least most up plus times over divided half halves "
    "quarter quarters third thirds double twice triple squared cubed sqrt root if unless except "
    "from nearly almost factorial choose mod modulo log ln exp sin cos tan pi".split()
)
_REFUSED_BEFORE = frozenset("but any anything everything either maybe perhaps possibly".split())
_UNITS = frozenset(
    "km m cm mm kg g mg lb lbs oz l ml h hr hrs min mins s sec secs mph kph ft in yd mi am pm "
    "cents c f usd eur gbp kb mb gb w kw kwh v a hz "
    "mol kj ev pa kpa kn mw khz mhz ghz".split()
)
_SYMBOLS = frozenset("JNKTΩ")
"""Units of one letter that are written large, and apart from the number."""
_NUMERALS = frozenset(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty "
    "ninety".split()
)
_APART = {
    **{"am": "am", "pm": "pm", "noon": "noon", "midnight": "midnight"},
    **{
        short: name
        for name in "january february march april may june july august september october november "
        "december monday tuesday wednesday thursday friday saturday sunday".split()
        for short in (name, name[:3])
    },
    **{
        name + end: name
        for name in "north south east west northeast northwest southeast southwest clockwise "
        "counterclockwise anticlockwise".split()
        for end in ("", "ward", "wards", "bound")
    },
}
"""Words behind a number that tell it from others, by their short forms."""
_UNTOLD = frozenset(
    "a an the of in on at by to for about approximately around roughly exactly only just total "
    "there it we he she they you i have has had get so then therefore thus hence and minus "
    "negative us dollar dollars euro euros".split()
)
_SAID = re.compile(r".*(?:\b(?:is|are|was|were|equals?)\b|:)", re.DOTALL | re.IGNORECASE)
# An equation says one thing; comparisons are none, nor are several equations.
_NO_EQUATION = re.compile(r"[<>!≠~/]=|=[<>!/]|=\s*/\s*=")
_FUNCTION_OF = re.compile(r"(?<=[^\W\d_])\([^()]*\)|_(?:\w|\{[^{}]*\})|(?<=[^\W\d_])'")
_SENTENCE = re.compile(r"[,;:]|\b(?:so|then|thus|hence|therefore|get|have|is)\b", re.IGNORECASE)
_GREEK = re.compile(
    r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|phi|omega|sigma|rho)(?![A-Za-z])"
)
_UNKNOWN = re.compile(
    r"[0-9)](?! ?[xX] ?[$0-9(])(?:[^\W\d_](?!\w)|(?!(?:st|nd|rd|th)\b)[a-z]{2}(?!\w)| [a-zθ](?!\w))"
    r"|(?<!\w)[^\W\d_] ?(?:[+*×/^²³÷!|%]|-(?!th))"
    r"|(?<!\w)[+*×/^÷|√-] ?[^\W\d_](?!\w)|[0-9)] ?[+*×/^÷√-] ?[^\W\d_](?!\w)"
    r"|\\[a-z]+\W*[^\W\d_](?!\w)|^[a-z]{2}$"
)
"""A letter that something is done to."""
_SEVERAL = re.compile(r"\b(?:or|and)\b|[;|]|,(?![0-9]{3}(?![0-9]))|[0-9] +[^\W\d_]\s*$")
_WORD_OVER_WORD = re.compile(r"([^\W\d_]*) ?/ ?([^\W\d_]+)")
_TIMES_WORD = re.compile(r"([^\W\d_]+) ?× ?(?=([^\W\d_]+))")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
# What is left of a plain text beside its number and its words.
_OPERATORS = re.compile(r"[*×+/^<>≤≥≠±√∛!|~&\\÷]|(?<![^\W\d_])-|-(?![^\W\d_])|[:;,](?=\s*\S*[0-9])")


class Named(NamedTuple):
    """A number, and the words that tell it from others of its value."""

    value: Fraction
    words: frozenset[str] = frozenset()


def read_number(text: str) -> Fraction | None:
    r"""The one number of a text; None where it names none, several, or more than a number.

    Args:
      text: a whole answer, such as what a mark holds.

    Returns:
      Its exact value. Percent signs, currencies and units are left out, not converted: `50%` is 50.

    >>> read_number("$1,250.50"), read_number(r"-\frac{3}{6}"), read_number("12 apples")
    (Fraction(2501, 2), Fraction(-1, 2), Fraction(12, 1))
    >>> read_number("7 hours 30 minutes") is None
    True
    """
    named = named_number(text)
    return None if named is None else named.value


def named_number(text: str) -> Named | None:
    """As `read_number`, with the words that tell the number from others.

    >>> named_number("10 a.m.") == named_number("10 AM"), named_number("July 20").words
    (True, frozenset({'july'}))
    """
    if len(text) > _LONGEST:
        return None
    said = _equated(plain(text))
    return None if said is None else _alone(said)


def _alone(text: str) -> Named | None:
    """The number of a plain text that has one and nothing against it."""
    starts = _START.search(text)
    if starts is None:
        return None
    found = next((match for match in _NUMBER.finditer(text) if match.end() > starts.start()), None)
    if found is None or len(found.group()) > _LONGEST_NUMBER:
        return None
    value = _value(found)
    begin = found.end() - len(found.group().lstrip())
    before, after = text[:begin], text[found.end() :]
    if value is None or not _stands_alone(before, after):
        return None
    value = _in_words(value, before, after)
    return None if value is None else Named(value, _words_apart(before, after))


def last_number_of(text: str) -> Named | None:
    """The last number that stands in a text, whatever is around it; None without one.

    >>> last_number_of("Half of 48 is 24, so 72.").value
    Fraction(72, 1)
    """
    text = plain(text[-_LONGEST:])
    matches = [match for match in _NUMBER.finditer(text) if _START.search(match.group())]
    if not matches or len(matches[-1].group()) > _LONGEST_NUMBER:
        return None
    before, after = text[: matches[-1].start()], text[matches[-1].end() :]
    value = _in_words(_value(matches[-1]), before, after)
    beside = {word.lower() for word in _WORD.findall(before)[-1:] + _WORD.findall(after)}
    words = frozenset(_APART[word] for word in beside & _APART.keys())
    return None if value is None else Named(value, words)


def _equated(text: str) -> str | None:
    """What a text says that something is; None where it compares, or says two things.

    An equation of unknowns that is still to be solved, as `2x = 5`, does not say what anything is.
    """
    said, equals, value = text.rpartition("=")
    if not equals:
        return text
    if all(_UNKNOWN.search(_side(side)) for side in said.split("=")):
        return None
    hedged = {word.lower() for word in _WORD.findall(said)} & (_REFUSED | _REFUSED_BEFORE)
    several = any(_SEVERAL.search(part) for part in said.split("=")[1:])
    return None if hedged or several or _NO_EQUATION.search(text) else value.strip()


def _side(text: str) -> str:
    """The last words of a side of an equation, what functions and indices are of left out."""
    text = _FUNCTION_OF.sub("", _GREEK.sub("θ", text).replace("\\angle", ""))
    return _SENTENCE.split(text)[-1].strip()


def _value(found: re.Match[str]) -> Fraction | None:
    """The value of a matched number."""
    whole, decimals = found["whole"], found["decimals"]
    if whole is None and decimals is None:
        return None
    value = Fraction(int(re.sub(r"[ ,']", "", whole))) if whole is not None else Fraction(0)
    if decimals is not None:
        value += Fraction(int(decimals), 10 ** len(decimals))
    if found["denominator"] is not None:
        if whole is None or int(found["denominator"]) == 0:
            return None
        value /= int(found["denominator"])
    if found["mixed"] is not None:
        value += int(found["mixed"])
    exponent = found["exponent"] or found["power"]
    if exponent is not None:
        if abs(int(exponent)) > _LARGEST_EXPONENT:
            return None
        value *= Fraction(10) ** int(exponent)
    sign = (found["sign"] or "").strip()
    if sign and found["inner"]:
        return None
    return -value if "-" in (sign, found["inner"]) else value


def _stands_alone(before: str, after: str) -> bool:
    """Whether what stands around a number leaves it one: words, units and marks alone."""
    if any(character.isdecimal() for character in before + after) or "$" in before:
        return False
    if before and (before[-1].isalnum() or before[-1] in "_.,/^"):
        return False
    if after and (after[0].isdigit() or after[0] in "_…"):  # Of digits, those that are raised.
        return False
    if before.endswith("(") and before[-2:-1].isalpha():
        return False
    if after[:1] == "." and after[1:2].strip():
        return False
    unit = _WORD.match(after)
    if unit is not None and unit.group().lower() not in _UNITS and not _counter(unit.group()):
        return False
    if _NO_COUNTER.search(after):
        return False
    if _OPERATORS.search(before) or _OPERATORS.search(after.replace("%", " ")):
        return _of_units(before, after)
    first = {word.lower() for word in _WORD.findall(before)}
    words = first | {word.lower() for word in _WORD.findall(after)}
    return not (words & _REFUSED or first & _REFUSED_BEFORE or _variable(after))


def _variable(after: str) -> bool:
    """Whether one letter, which is no unit, is all that follows."""
    letter = after.strip()
    return len(letter) == 1 and letter.isalpha() and not _unit(letter) and not _counter(letter)


def _counter(word: str) -> bool:
    """Whether a word is of a script without large and small letters, whose letters name nothing."""
    return word.lower() == word.upper()


def _unit(word: str) -> bool:
    """Whether a word is a unit by its sign."""
    return word in _SYMBOLS or word.lower() in _UNITS


def _of_units(before: str, after: str) -> bool:
    """Whether the only operations are of units, as in `5 km/h`, `$5/hour` or `5 kg·m/s`."""
    words = {word.lower() for word in _WORD.findall(before + " " + after)}
    rest = _TIMES_WORD.sub(_units_beside, after)
    slash = _WORD_OVER_WORD.search(rest)
    if slash is not None:
        if not all(len(of) > 2 or _unit(of) for of in slash.groups() if of):
            return False
        if not slash[1] and slash[2] in _SYMBOLS:
            return False
        rest = rest[: slash.start()] + rest[slash.end() :]
    return not (words & _REFUSED or _OPERATORS.search(before) or _OPERATORS.search(rest))


def _units_beside(found: re.Match[str]) -> str:
    """Two units side by side for their product; what else is multiplied stays."""
    return f"{found[1]} " if _unit(found[1]) and _unit(found[2]) else found[0]


def _words_apart(before: str, after: str) -> frozenset[str]:
    """The words around a number that are no unit and nothing that is counted."""
    first = {word.lower() for word in _WORD.findall(_SAID.sub("", before))}
    behind = {word.lower() for word in _WORD.findall(after)} & _APART.keys()
    return frozenset(_APART.get(word, word) for word in first - _UNTOLD - _UNITS | behind)


def _in_words(value: Fraction | None, before: str, after: str) -> Fraction | None:
    """The value with the words that change it: minus before it, thousand behind it."""
    if value is None:
        return None
    behind = [word.lower() for word in _WORD.findall(after)] if after.strip()[:1].isalpha() else []
    for word in behind:
        scale = _SCALES.get(word.removesuffix("s"))
        if scale is None:
            if word in _NUMERALS and behind[0] != word:
                return None
            if word != "and":
                break
        value *= scale or 1
    for letter in behind[0] if behind else "":
        if letter not in _SCALE_LETTERS:
            break
        value *= _SCALE_LETTERS[letter]
    words = _WORD.findall(before)
    return -value if words and words[-1].lower() in _NEGATIVE else value
