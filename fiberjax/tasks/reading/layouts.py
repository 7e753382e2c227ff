"""Data sets as they are published, by name: which columns they have, and how an answer is told.

A layout says where a row's prompt stands and what of its answer is the answer; which file is
trained on and which is held out, a folder's names say.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from fiberjax.tasks.reading.columns import Columns
from fiberjax.tasks.reading.formats import shown

_DELIMITER = "####"
_COUNTDOWN = (
    "Write an expression that equals the target, with the given numbers, each exactly once, and "
    "+ - * / ( ). Answer with the expression alone.\nNumbers and target:"
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the rows of a published data set are read.

    Attributes:
      describes: the data set, where it is published, and what is particular about it.
      columns: field -> column; a field that is not named is not read.
      verifier: a name of `tasks.VERIFIERS`, which `config.tasks.verifier = "auto"` stands for.
      prepare: (row, where) -> the row with what its columns hold told apart; None leaves it.
      reads: further columns that `prepare` reads.
      spelling: the columns by other names, where copies differ; taken if the first row has them.
    """

    describes: str
    columns: Columns
    verifier: str
    prepare: Callable[[Mapping[str, Any], str], dict[str, Any]] | None = None
    reads: tuple[str, ...] = ()
    spelling: Columns | None = None


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` of a text holds, or `\boxed ` brings; None without one.

    Braces are balanced.

    Example:
      >>> boxed(r"so $x = \boxed{\frac{1}{2}}$.")
      '\\frac{1}{2}'
      >>> boxed(r"\boxed{1") is None, boxed(r"so $\boxed 7$ it is")
      (True, '7')
    """
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    bare = text.rpartition("\\boxed ")
    if bare[1] and len(bare[0]) > start:  # As MATH has a few: what follows, up to the dollar.
        return bare[2].partition("$")[0].strip() or None
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip()
    return None


def _after_delimiter(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The answer is what follows the last `####`, and the whole is the solution."""
    whole = row.get("answer")
    if not isinstance(whole, str):
        return dict(row)
    _, delimiter, answer = whole.rpartition(_DELIMITER)
    if not delimiter or not answer.strip():
        raise ValueError(f"{where}: answer is {shown(whole)}, expected one after ####")
    return {**row, "answer": answer.strip(), "solution": whole}


def _in_a_box(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The answer is what the solution's last box holds."""
    solution = row.get("solution")
    if not isinstance(solution, str):
        return dict(row)
    answer = boxed(solution)
    if not answer:
        raise ValueError(f"{where}: solution is {shown(solution)}, expected a \\boxed{{...}}")
    return {**row, "answer": answer}


def _countdown(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The prompt is written of the numbers and the target, as the verifier reads them."""
    numbers, target = row.get("nums"), row.get("target")
    if not isinstance(numbers, list) or not numbers or not all(map(_natural, numbers)):
        raise ValueError(f"{where}: nums is {shown(numbers)}, expected whole numbers from 0")
    if not _natural(target):
        raise ValueError(f"{where}: target is {shown(target)}, expected a whole number from 0")
    return {**row, "prompt": f"{_COUNTDOWN}{','.join(map(str, numbers))}>{target}="}


def _natural(value: object) -> bool:
    return type(value) is int and value >= 0


LAYOUTS: Mapping[str, Layout] = {
    "gsm8k": Layout(
        "GSM8K, openai/gsm8k: the answer stands after ####",
        {"prompt": "question", "answer": "answer", "solution": "solution"},
        "number",
        _after_delimiter,
    ),
    "svamp": Layout(
        "SVAMP, ChilleD/SVAMP: a body and a question, the answer a number",
        {"prompt": ("Body", "Question"), "answer": "Answer"},
        "number",
    ),
    "math": Layout(
        "MATH, EleutherAI/hendrycks_math: the answer stands in the solution's last box",
        {"prompt": "problem", "answer": "answer"},
        "math",
        _in_a_box,
        reads=("solution",),
    ),
    "math500": Layout(
        "MATH-500, HuggingFaceH4/MATH-500: the answer has a column of its own",
        {"prompt": "problem", "answer": "answer"},
        "math",
    ),
    "dapo": Layout(
        "DAPO-Math-17k, BytedTsinghua-SIA/DAPO-Math-17k: a chat, the answer within reward_model",
        {"prompt": "prompt", "answer": "reward_model.ground_truth"},
        "number",
    ),
    "aime": Layout(
        "AIME, HuggingFaceH4/aime_2024 and Maxwell-Jia/AIME_2024: whole numbers",
        {"prompt": "problem", "answer": "answer"},
        "number",
        spelling={"prompt": "Problem", "answer": "Answer"},
    ),
    "open_r1": Layout(
        "open-r1/OpenR1-Math-220k and its kin: a chat under messages, the answer beside it",
        {"prompt": "messages", "answer": "answer"},
        "math",
    ),
    "countdown": Layout(
        "Countdown, Jiayi-Pan/Countdown-Tasks-3to4: numbers and a target, any right expression",
        {"prompt": "prompt", "answer": "target"},
        "countdown",
        _countdown,
        reads=("nums",),
    ),
}
"""Name -> layout; `config.tasks.layout` chooses one."""
