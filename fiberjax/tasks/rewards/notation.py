r"""From the ways in which numbers are written to plain text, which `numbers` reads.

    \frac{1}{3}   \frac13   ½                1/3
    0.1\overline{6}   10³   2.5 × 10^{3}     15/90   1×10^3   2.5×10^3
    −72   72   1{,}000   \$5   5\text{ m}    -72   72   1,000   $5   5 m
    1.250,50   0,125   USD 5   5 m/s²        1250.50   0.125   $5   5 m/s
    **5**   `5`   $5$                        5   5   5

Nothing is decided here: what may be read in two ways stays as it is.
"""

import re
import unicodedata
from fractions import Fraction

_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f"
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys(_SPACES, " "),
        **dict.fromkeys("\u2212\u2012\u2013\u2014\u2010\u2011\ufe63\uff0d", "-"),
        **dict.fromkeys("\u22c5\u00b7\u2217", "\u00d7"),
        "\u2044": "/",
        "\u2215": "/",
        "\u2248": "=",
        "\u200b": "",
        "\ufeff": "",
        "\u2019": "'",
        "\uff0e": ".",
        "\uff0c": ",",
        "\uff04": "$",
        "\uff05": "%",
        "\uffe5": "¥",
        "\u066b": ".",
        "\u066c": ",",
        **dict.fromkeys("\u03a9\u2126", " \u03a9"),
    }
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_VULGAR = {
    **{"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5"},
    **{"⅗": "3/5", "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8"},
    **{"⅞": "7/8", "⅐": "1/7", "⅑": "1/9", "⅒": "1/10"},
}
_VULGAR_FRACTION = re.compile(f"[{''.join(_VULGAR)}]")

_PART = r"([+-]?)\s*\$?\s*([1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+(?:\.[0-9]+)?)"
_FRACTION = re.compile(rf"\\[dtc]?frac\s*\{{\s*{_PART}\s*\}}\s*\{{\s*{_PART}\s*\}}(?![0-9])")
_REPEATING = re.compile(
    r"(?<![0-9.,'])(?<![0-9] )([0-9]{1,12})?\.([0-9]{0,12})\\(?:overline|bar)\s*\{([0-9]{1,12})\}"
    r"(?![0-9.,])"
)
_LATEX = (
    (re.compile(r"\{\s*\{([^{}]*)\}\s*\}"), r"{\1}"),
    (re.compile(r"(\\[dtc]?frac)\s*([0-9])"), r"\1{\2}"),
    (re.compile(r"(\\[dtc]?frac\s*\{[^{}]*\})\s*([0-9])"), r"\1{\2}"),
    (re.compile(r"\\(?:text)?color\s*\{[a-zA-Z]*\}"), ""),
    (
        re.compile(
            r"\\(?:text(?:bf|rm|it|sf|tt|up|normal)?|math(?:rm|bf|it|sf)|boldsymbol|mbox|emph|bm|underline)"
            r"\s*\{([^{}]*)\}"
        ),
        r" \1 ",
    ),
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!()\[\]]"), ""),
    (re.compile(r"\\(?:[,;: ]|q?quad(?![A-Za-z]))"), " "),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\\(?:approx|simeq)(?![A-Za-z])"), "="),
    (re.compile(r"\\(?:circ|degree)(?![A-Za-z])|\^\s*\{?\s*\\circ\s*\}?"), "°"),
    (re.compile(r"\\Omega(?![A-Za-z])"), " Ω"),
    (re.compile(r"\\(?:ldots|dots)(?![A-Za-z])"), "…"),
    (re.compile(r"\\([$%#&_])"), r"\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\^\{\s*([+-]?[0-9]+)\s*\}"), r"^\1"),
)
_WRITTEN = (
    (re.compile(r"</?(?:b|i|u|em|strong)>"), ""),
    (re.compile(r"(?<=\n)[ \t]*[-+*•] +"), ""),
    (re.compile(r"\b(?:US|CA|AU|NZ|HK|C|A|S|R) ?\$"), "$"),
    (
        re.compile(
            r"(?<![^\W_])(?:Rs\.?|Rp\.?|USD|EUR|GBP|INR|JPY|CNY|RMB|IDR|BRL|KRW|CHF|CAD|AUD)"
            r" ?\$? ?(?=[+-]?[0-9])"
        ),
        "$",
    ),
    (re.compile(r"^ *~(?=[ $€£¥₹]{0,2}[0-9])"), ""),
    # Points as thousands, commas as decimals: where the one says that the other is so.
    (re.compile(r"(?<![0-9.,])([1-9][0-9]{0,2}(?: [0-9]{3})+),([0-9]{1,2})(?![0-9.,'])"), r"\1.\2"),
    (
        re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:\.[0-9]{3})+,[0-9]+(?![0-9]|[.,'][0-9])"),
        lambda found: found.group().replace(".", "").replace(",", "."),
    ),
    (
        re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}(?![0-9]|[.,'][0-9])"),
        lambda found: found.group().replace(".", ""),
    ),
    # No group of thousands begins with 0, and what stands in brackets is a pair.
    (re.compile(r"(?<![0-9.,'(\[{])0,([0-9]{3})(?![0-9]|[.,'][0-9])"), r"0.\1"),
    # Powers of ten, and those of units.
    (
        re.compile(r"(?:(?<=[×*xX ])|(?<![\w.,^/)]))10([⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)"),
        lambda found: "10^" + found[1].translate(_RAISED),
    ),
    (re.compile(r"(?<![0-9])10 ?\*\* ?(?=[+-]?[0-9])"), "10^"),
    (re.compile(r"(?<=[0-9]) ?[xX*×] ?(?=10\^)"), "×"),
    (re.compile(r"(?<![\w.,^×/*)])(?<![×/*^)] )10\^(?=[+-]?[0-9])"), "1×10^"),
    (
        re.compile(
            r"(?<![^\W\d_])(k?m|cm|mm|dm|mi|ft|in|yd|feet|foot|inch(?:es)?|yards?|miles?|units?"
            r"|(?:kilo|centi|milli)?met(?:er|re)s?"
            r"|(?:(?<=[/×])|(?<=[/×] )|(?<=[a-z] ))(?:s|sec|seconds?|h|hr|hours?|min|K))"
            r"(?: ?\^-?[1-3](?![0-9])| ?⁻?[¹²³])"
        ),
        r"\1",
    ),
    (re.compile(r"(?<=[0-9]) and (?=[0-9]+/[0-9])"), " "),
    (re.compile(r"(?<![^\W\d_])([AaPp])\. ?[Mm](?:\.|(?![^\W\d_]))"), r"\1m"),
    (re.compile(r"(?<=[*_`])!+$"), ""),
    (re.compile(r" {2,}"), " "),
)
_MARKS = re.compile(
    r"(?<![0-9*`])[*`]{1,3}(?=[^\s*`])|(?<=[^\s*`])[*`]{1,3}(?![0-9*`])"
    r"|(?<!\w)_{1,2}(?=\S)|(?<=[^\W_])_{1,2}(?!\w)"
)


def plain(text: str) -> str:
    r"""A text without LaTeX, Markdown and typographic forms; in time linear in it.

    >>> plain(r"$\frac{1}{3}$"), plain("**1.250,50 €**"), plain(r"10^{3}\text{ km}")
    ('1/3', '1250.50 €', '1×10^3 km')
    """
    text = text.translate(_CHARACTERS)
    if not text.isascii():
        text = "".join(_digit(character) for character in text)
        text = _VULGAR_FRACTION.sub(lambda match: " " + _VULGAR[match.group()], text)
    if "\\" in text:
        text = text.replace("~", " ")
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    text = _REPEATING.sub(_repeating, _FRACTION.sub(_fraction, text)).strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].strip()
    if len(text) > 1 and text.startswith("$") and text.endswith("$"):
        text = text.strip("$")
    for pattern, written in _WRITTEN:
        text = pattern.sub(written, text)
    text = _MARKS.sub("", text)
    return text.strip().removesuffix("$").strip()


def _digit(character: str) -> str:
    """A digit of any script as an ASCII one; another character as it is."""
    value = unicodedata.decimal(character, None)
    return character if value is None else str(value)


def _fraction(found: re.Match[str]) -> str:
    """A fraction of LaTeX on one line, its signs before it; decimals as whole numbers."""
    sign = "-" if (found[1] == "-") != (found[3] == "-") else ""
    above, below = Fraction(found[2].replace(",", "")), Fraction(found[4].replace(",", ""))
    if below == 0 or above == 0:
        return f" {sign}{found[2]}/{found[4]}"
    value = above / below
    return f" {sign}{value.numerator}/{value.denominator}"


def _repeating(found: re.Match[str]) -> str:
    """A decimal that repeats as a fraction."""
    whole, once, again = found[1] or "", found[2], found[3]
    above = int(whole + once + again) - int("0" + whole + once)
    return f"{above}/{10 ** len(once) * (10 ** len(again) - 1)}"
