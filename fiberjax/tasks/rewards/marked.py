r"""Where a completion says what its answer is.

Four marks are looked for, the last of the first three counting before any of the fourth:

    #### 72                 the rest of its line, or the next line where that is empty or "Answer"
    \boxed{72}              what its braces hold, \fbox too; of `\boxed 7` what follows
    <answer>72</answer>     what stands between
    the answer is 72        the rest of its sentence; "answer:" too, and a heading "Answer"

Hashes before a line of words that more text follows are a heading, and mark nothing. A mark may
hold another, which is then the one that is read. Boxes that stand side by side with nothing but
"or", "and" or a comma between them are a list of guesses, and name nothing unless they hold the
same; nor does a box or an element that is not closed. Everything here takes time linear in the
text.
"""

import re

WORKED_DELIMITER = "#"

_HASHES = "####"
_HEADING = re.compile(
    r"[\s*_]*(?:[^\W\d_]{2}[^\d$\\{}<>=+/]*"
    r"|(?i:step|part|case|method|approach|example|question|problem|section)\s[\w\s]*[:.)*-].*"
    r"|(?i:step|part|case|method|approach|example|question|problem|section)\s+[^\W_]+[\s*]*)"
)
_ANSWER_HEADING = re.compile(
    r"[\s*_]*(?:(?:the|my|final|correct) ){0,3}answer[\s*_:]*", re.IGNORECASE
)
_DISPLAYED = re.compile(r"\A(?:\$\$|\\\[)[ \t]*\n\s*")
_OPEN_BOX = re.compile(r"\\f?box(?:ed)?\s*\{|\\boxed\s+([^\s{}$\\]+)")
_BRACE = re.compile(r"\\[{}]|[{}]")
_ELEMENT = re.compile(r"<(/?)answer>", re.IGNORECASE)
_PHRASE = re.compile(
    r"\banswer\b(?: to (?:the|this|your|our) [\w ]{1,40}?)?[*_`\"\s]{0,8}"
    r"(?:(?:is|was|equals|(?:would|will|should|must) be)\b|[=:：])[*_`:\s]{0,8}"
    r"|(?m:^[#*_ ]{0,8}(?:(?:the|my|final|correct) ){0,3}answer[*_ ]{0,8}$)\s{0,8}",
    re.IGNORECASE,
)
_SENTENCE = re.compile(
    r"[.!?][*_`)\"']{0,4}\s+(?=[^\W\d_])(?!or\b|and\b|maybe\b)|\n", re.IGNORECASE
)
_REASON = re.compile(r"\s(?:because|since)\s", re.IGNORECASE)
_BETWEEN_GUESSES = re.compile(r"(?:\s|[$,;/]|or|and|\\text\{|\})*", re.IGNORECASE)
_CHOSEN = re.compile(
    r"(?:\\(?:text|math)[a-z]{0,2}|(?i:option|choice|letter)\b|[^\w]){0,12}"
    r"(?:[A-Za-z](?:[^\w]{0,12}$)|(?<=\()[A-Za-z]\)|[A-Z][.):,]\s)"
)
_DEEPEST = 4


def marked_answer(text: str) -> str | None:
    r"""What the last mark of a text holds, white space aside; None without one.

    A sentence after the answer, and a reason that begins with "because" or "since", are left out.

    >>> marked_answer("2+70=72\n#### 72 apples\n\nI hope this helps!")
    '72 apples'
    >>> marked_answer(r"so <answer>\boxed{72}</answer>"), marked_answer(r"\boxed{3} or \boxed{4}")
    ('72', '')
    >>> marked_answer("72") is None
    True
    """
    found = None
    for _ in range(_DEEPEST):
        inner = _strict(text)
        if inner is None:
            break
        text = found = inner
    if found is None:
        found = _phrase(text)
    return None if found is None else _first_sentence(found)


def answer_element(text: str) -> str:
    """What the last `<answer>` of a text holds, else the whole text; white space aside.

    One that is not closed holds nothing.

    >>> answer_element("so <answer> 12 </answer>."), answer_element(" 12")
    ('12', '12')
    >>> answer_element("<answer>12")
    ''
    """
    _, opened, rest = text.rpartition("<answer>")
    if not opened:
        return text.strip()
    inside, closed, _ = rest.partition("</answer>")
    return inside.strip() if closed else ""


def _strict(text: str) -> str | None:
    """What the last of the hashes, boxes and elements holds; "" where that names nothing."""
    marks = (_hashes(text), _box(text), _element(text))
    last = max((mark for mark in marks if mark is not None), default=None)
    return None if last is None else last[1].strip()


def _hashes(text: str) -> tuple[int, str] | None:
    """Where the last hashes stand that are no heading's, and the line that they mark."""
    place, written = text.rfind(_HASHES), len(text.rstrip())
    while place >= 0:
        start, end = text.rfind("\n", 0, place) + 1, text.find("\n", place)
        line = text[place + len(_HASHES) : len(text) if end < 0 else end]
        heads = not text[start:place].strip("# ") and -1 < end < written
        if not heads or not _HEADING.fullmatch(line):
            break
        if _ANSWER_HEADING.fullmatch(line):
            return place, _first_line(text[end:])
        place = text.rfind(_HASHES, 0, start)
    return None if place < 0 else (place, _first_line(text[place + len(_HASHES) :]))


def _first_line(text: str) -> str:
    """The first line that says something, up to where an element begins or ends."""
    return _ELEMENT.split(_DISPLAYED.sub("", text.lstrip()).partition("\n")[0], maxsplit=1)[0]


def _box(text: str) -> tuple[int, str] | None:
    """Where the last box begins, and what it holds."""
    boxes = list(_OPEN_BOX.finditer(text))[-2:]
    if not boxes:
        return None
    inside, end = _in_box(text, boxes[-1])
    if end is None:
        return boxes[-1].start(), ""
    if len(boxes) == 2:
        first, closed = _in_box(text[: boxes[-1].start()], boxes[0])
        if closed is not None:
            listed = _BETWEEN_GUESSES.fullmatch(text, closed, boxes[-1].start())
            if listed and first.strip() != inside.strip():
                return boxes[-1].start(), ""
        elif _in_box(text, boxes[0])[1] is None:
            return boxes[0].start(), ""
    return boxes[-1].start(), inside


def _in_box(text: str, box: re.Match[str]) -> tuple[str, int | None]:
    """What a box holds and where it ends; None for one that is not closed."""
    return _in_braces(text, box.end()) if box[1] is None else (box[1], box.end())


def _in_braces(text: str, start: int) -> tuple[str, int | None]:
    """What stands up to the brace that closes one before `start`, and where it ends; or None."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start : brace.start()], brace.end()
    return "", None


def _element(text: str) -> tuple[int, str] | None:
    """Where the last element begins, and what it holds."""
    tags = list(_ELEMENT.finditer(text))
    opening = [k for k, tag in enumerate(tags) if not tag[1]]
    if not opening:
        return None
    last = opening[-1]
    if last + 1 == len(tags):
        return tags[last].start(), ""
    return tags[last].start(), text[tags[last].end() : tags[last + 1].start()]


def _phrase(text: str) -> str | None:
    """What follows the last "answer is" whose sentence has a digit, or begins with a choice."""
    phrases = list(_PHRASE.finditer(text))
    for k in reversed(range(len(phrases))):
        end = phrases[k + 1].start() if k + 1 < len(phrases) else len(text)
        said = _first_sentence(text[phrases[k].end() : end].strip())
        if any(character.isdigit() for character in said) or _CHOSEN.match(said):
            return said if said.endswith("!!") else said.removesuffix("!")
    return None


def _first_sentence(text: str) -> str:
    """A text up to its first sentence's end or its reason."""
    sentence = _SENTENCE.split(_DISPLAYED.sub("", text, count=1), maxsplit=1)[0]
    return _REASON.split(sentence, maxsplit=1)[0].strip()


def final_answer(completion: str, *, delimiter: str = WORKED_DELIMITER) -> str | None:
    """Returns what follows the delimiter, or None unless the delimiter occurs exactly once.

    A completion that names several answers names none, so listing guesses earns nothing.

    Example:
      >>> final_answer("7+9+0=16,1#16")
      '16'
      >>> final_answer("#15#16") is None
      True
    """
    parts = completion.split(delimiter, 2)
    return parts[1] if len(parts) == 2 else None
