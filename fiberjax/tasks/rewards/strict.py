"""Numbers in one strict form: alone after the last `####`, or alone.

What this project's first runs were paid by, kept for them and as a measure of `numbers`.
"""

import re
from fractions import Fraction

_MARK = "####"

# ASCII digits only: `\d` and `int` accept the digits of every script.
_NUMBER = re.compile(
    r"[$]?(?P<sign>[+-]?)[$]?"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?"
    r"(?:[.](?P<decimals>[0-9]*)|/(?P<denominator>[0-9]+))?"
)
_LONGEST_NUMBER = 64


def parse_number(text: str) -> Fraction | None:
    """Returns the exact value of an integer, decimal or fraction, or None.

    Takes an optional sign, `$`, commas that group thousands, and one closing full stop. No
    exponents, no words, no digits outside ASCII, at most 64 characters.

    Example:
      >>> parse_number("$1,250.50"), parse_number("-3/6"), parse_number("12 apples")
      (Fraction(2501, 2), Fraction(-1, 2), None)
    """
    text = text.strip()
    if not text or len(text) > _LONGEST_NUMBER:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None or text.count("$") > 1:
        return None
    whole, decimals, denominator = match["whole"], match["decimals"], match["denominator"]
    if whole is None and not decimals:
        return None
    value = Fraction(whole.replace(",", "")) if whole is not None else Fraction(0)
    if decimals:
        value += Fraction(int(decimals), 10 ** len(decimals))
    if denominator is not None:
        if whole is None or int(denominator) == 0:
            return None
        value /= int(denominator)
    return -value if match["sign"] == "-" else value


def strict_answer(text: str) -> Fraction | None:
    """Returns the number after the last `####`, or the whole text where there is no `####`."""
    return parse_number(text.rsplit(_MARK, 1)[-1])


def strict_number(prompt: str, answer: str, completion: str) -> float:
    """Returns 1.0 if both texts end in the same number, compared exactly.

    The number of a text is what follows its last `####`; a text without one must be a number as
    a whole. So `#### 0.5`, `#### 1/2` and `.50` agree, and only the last of several counts.
    """
    del prompt
    expected, found = strict_answer(answer), strict_answer(completion)
    return float(expected is not None and expected == found)
