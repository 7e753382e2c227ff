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
        if "\n" in found or (words - _FUNCTIONS and not found.removesuffix(".").isalpha()):
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
