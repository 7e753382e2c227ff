r"""What a text gives as a mathematical expression, before anything reads it as one.

An expression is what the last mark holds (`marked`), or a text of one line that is one as a whole.
It is short and its braces close; what it says is compared in `symbolic`. Everything here takes time
linear in the text.
"""

import re
import unicodedata

from fiberjax.tasks.rewards.marked import marked_answer

LONGEST = 500
"""Characters of an expression."""

_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_WORD = re.compile(r"(?<!\\)(?<![^\W\d_])[^\W\d_]{2,}")
_FUNCTIONS = frozenset(
    "sqrt pi sin cos tan cot sec csc log ln exp inf infty frac cdot times".split()
)
_HEDGES = frozenset("or not nor never either neither maybe perhaps possibly except unless".split())

_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_NO_WORDS = re.compile(_TEXT.pattern + r"|\\(?:begin|end)\s*\{[a-z]*\*?\}")
_SPELLINGS = (
    (re.compile(r"\\\\"), ";;"),  # The end of a row.
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])"), ""),
    (re.compile(r"\\frac\s*\{\s*([0-9a-zA-Z]+)\s*\}\s*\{\s*([0-9a-zA-Z]+)\s*\}"), r"\1/\2"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\1/\2"),
    (re.compile(r"\\sqrt\s*([0-9a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"([\^_])\{([0-9a-zA-Z])\}"), r"\1\2"),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\[,;:! ()\[\]]|\\q?quad(?![A-Za-z])|[\s$~]"), ""),
)
_DASHES = str.maketrans(
    {**dict.fromkeys("\u2212\u2012\u2013\u2014\ufe63\uff0d", "-"), "\u00d7": "*", "\u00f7": "/"}
)
_SEVERAL_UNITS = re.compile(r"[0-9](?!and|or)[A-Za-z]{3,}[0-9]")
_NAMED = re.compile(r"([A-Za-z](?:_[A-Za-z0-9])?)=([^=]+)")
_COMMA = re.compile(r"[,;]|\\(?:text|mbox|mathrm)\s*\{\s*,?\s*and\s*\}|(?<=\s)and(?=\s)")
_PLAIN_NUMBER = re.compile(r"[-+]?[0-9][0-9,.]*%?")


def expression_of(text: str) -> str | None:
    r"""The expression that a text gives; None where it gives none, or a sentence.

    >>> expression_of(r"so it is $\boxed{x^2 + 1}$."), expression_of(r"$\frac{\pi}{2}$")
    ('x^2 + 1', '$\\frac{\\pi}{2}$')
    >>> expression_of(r"I think \pi or e"), expression_of(r"\boxed{}"), expression_of(r"#### x}")
    (None, None, None)
    """
    found = marked_answer(text)
    if found is None:
        found = text.strip()
        words = {word.lower() for word in _WORD.findall(_NO_WORDS.sub("", found))}
        # Without a mark, more than one word is a sentence.
        if "\n" in found or (
            words - _FUNCTIONS and not found.removesuffix(".").strip("$").isalpha()
        ):
            return None
    found = found.removesuffix(".")
    return found if 0 < len(found) <= LONGEST and _closes(found) else None


def spelled(text: str) -> str:
    r"""An expression in one spelling: without spaces, dollars, `\text`, `\left`, `\dfrac`.

    >>> spelled(r"$ \left( \dfrac{1}{2}, \text{Even} \right) $")
    '(1/2,Even)'
    """
    text = unicodedata.normalize("NFC", text).translate(_DASHES)
    text = _TEXT.sub(r"\1", text)
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    return text


def is_text(expression: str) -> bool:
    r"""Whether an expression is letters alone, or numbers with words between them.

    >>> is_text(r"\text{BDAC}"), is_text("2 hours 30 minutes"), is_text("x"), is_text("x+y")
    (True, True, False, False)
    """
    text = spelled(expression)
    return (len(text) > 1 and text.isalpha()) or _SEVERAL_UNITS.search(text) is not None


def same_text(expected: str, found: str) -> bool:
    r"""Whether two texts are spelled the same; a word may begin with a capital or not.

    >>> same_text("true", r"\text{True}"), same_text("AB", "ab"), same_text("xy", r"x \cdot y")
    (True, False, True)
    """
    texts = [spelled(text).replace("*", "") for text in (expected, found)]
    words = [text[:1].lower() + text[1:] for text in texts if text[1:].islower()]
    return texts[0] == texts[1] or (len(words) == 2 and words[0] == words[1])


def kind_of_bracket(expression: str) -> str:
    r"""What a whole expression begins with: the brace of a set, another bracket, or nothing.

    >>> kind_of_bracket(r"\left\{1,2\right\}"), kind_of_bracket("(1,2]"), kind_of_bracket("1,2")
    ('{', '(', '')
    """
    text = spelled(expression)
    if text.startswith("\\{") and text.endswith("\\}"):
        return "{"
    return "(" if text[:1] in ("(", "[") and text[-1:] in (")", "]") else ""


def in_order(expected: str, found: str) -> tuple[str, str]:
    """Two expressions; where one alone names its values, the values of both in their order.

    >>> in_order("x=1, y=2", "2,1"), in_order("x=3, x=5", "5,3")
    (('(1,2)', '(2,1)'), ('x=3, x=5', '5,3'))
    """
    named = [_named(text) for text in (expected, found)]
    if (named[0] is None) == (named[1] is None):
        return expected, found
    plain = spelled(found if named[1] is None else expected)
    plain = plain if kind_of_bracket(plain) else f"({plain})"
    values = f"({','.join(named[0] or named[1] or ())})"
    return (values, plain) if named[1] is None else (plain, values)


def _named(text: str) -> list[str] | None:
    """The values of different names; None where there are not several."""
    found = [_NAMED.fullmatch(spelled(part)) for part in _COMMA.split(text)]
    names = {each[1] for each in found if each is not None}
    if len(names) < max(2, len(found)):
        return None
    return [each[2] for each in found if each is not None]


def hedges(text: str) -> frozenset[str]:
    """The words in a text that leave open what is meant."""
    return _HEDGES & {word.lower() for word in _WORD.findall(text)}


def repeats(prompt: str, expression: str) -> bool:
    r"""Whether an expression, more than a number, stands in the prompt: nothing was worked out.

    >>> repeats(r"Expand $(x+1)^2$.", "(x + 1)^2"), repeats("Is 3 or 5 prime?", "3")
    (True, False)
    """
    expression = spelled(expression)
    plain = _PLAIN_NUMBER.fullmatch(expression) is not None or len(expression) < 3
    return not plain and expression in spelled(prompt)


def _closes(text: str) -> bool:
    """Whether all braces close."""
    depth = 0
    for brace in _BRACES.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth < 0:
            return False
    return depth == 0
