"""What the readers of answers pay, and whether any text breaks them.

    python benchmarks/rewards.py                      # the table of docs/rewards.md
    python benchmarks/rewards.py --strings=1000000    # random and hostile texts, none of them right
    python benchmarks/rewards.py --golds gsm8k/train.jsonl gsm8k/test.jsonl
                                                      # a data set's own answers, in seven forms

The table has a line for math-verify where it is installed. Texts are drawn from a seed; a text that
raises, takes longer than --limit seconds or earns anything ends the program with the text.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fiberjax.tasks.rewards import SHIPPED

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tasks.answers import NEAR_MISSES, REWRITINGS, written

Verifier = Callable[[str, str, str], float]

PIECES = (
    *("####", "\\boxed{", "}", "{", "<answer>", "</answer>", "answer is", "answer:", "because"),
    *("72", "1,000", "1 000", "-", "\u2212", "/", "\\frac{", "\\text{", "$", "\u20ac", "%", "**"),
    *(
        "`",
        "e9",
        "10^",
        "*",
        "=",
        "or",
        "and",
        "\n",
        " ",
        ".",
        ",",
        "(",
        ")",
        "\\",
        "\u00bd",
        "\u00b2",
    ),
    *("\uff15", "\u0661", "\ud800", "\x00", "\u00e9", "e\u0301", "minus", "thousand", "\\times"),
    *("{,}", "'", "B", "(b)", "[", "]", '"', "```json\n", "```", "null", "true", "0x", "_"),
)
ANSWER = "918273645546372"
"""Nothing finds it by accident."""


def math_verify() -> Verifier | None:
    """The verifier of math-verify with its defaults; None where it is not installed."""
    try:
        from math_verify import parse, verify
    except ImportError:
        return None
    return lambda prompt, answer, completion: float(verify(parse(answer), parse(completion)))


def table() -> str:
    """Right answers and near misses that each verifier pays, as Markdown."""
    verifiers: dict[str, Verifier | None] = {
        name: SHIPPED[name] for name in ("number", "last_number", "strict_number", "exact")
    }
    verifiers["math-verify"] = math_verify()
    right, wrong = written(REWRITINGS), written(NEAR_MISSES)
    lines = [
        f"| verifier | paid of {len(right)} right answers | paid of {len(wrong)} near misses |",
        "|---|---|---|",
    ]
    for name, verify in verifiers.items():
        if verify is not None:
            paid = [int(sum(verify("", a, text) for a, text in of)) for of in (right, wrong)]
            lines.append(f"| {name} | {paid[0]} | {paid[1]} |")
    return "\n".join(lines)


def text(rng: random.Random, index: int) -> str:
    """A random text of pieces that mean something; every five hundredth a piece many times."""
    if index % 500 == 0:
        return rng.choice(PIECES) * rng.randrange(1, 20_000)
    return "".join(
        rng.choice(PIECES) if rng.random() < 0.8 else chr(rng.randrange(0x11000))
        for _ in range(rng.choice((1, 3, 8, 20, 60)))
    )


def attack(strings: int, limit: float, seed: int) -> str:
    """Gives every verifier that many texts; what was seen, in a line.

    Raises:
      AssertionError: a text earned something, or took too long.
    """
    rng, slowest = random.Random(seed), 0.0
    for index in range(strings):
        said = text(rng, index)
        for name, verify in SHIPPED.items():
            began = time.process_time()
            assert verify("prompt", ANSWER, said) == 0.0, f"{name} pays {said!r}"
            took = time.process_time() - began
            assert took <= limit, f"{name} took {took:.1f} s for {said[:100]!r}…"
            slowest = max(slowest, took)
    return f"{strings} texts, {len(SHIPPED)} verifiers: nothing earned, {slowest:.3f} s at most"


FORMS = (
    *("#### {}", "\\boxed{{{}}}", "The answer is {}.", "**{}**", "<answer>{}</answer>", "${}$"),
    "So it is:\n#### ${}\nDone in 3 steps.",
)
"""How a completion may give an answer."""


def golds(files: list[str]) -> str:
    """How many answers of JSONL files are paid as they stand, and in every one of `FORMS`."""
    answers = []
    for file in files:
        rows = map(json.loads, Path(file).read_text(encoding="utf-8").splitlines())
        answers += [str(row["answer"] if "answer" in row else row["Answer"]) for row in rows]
    number = SHIPPED["number"]
    short = [answer.rpartition("####")[2].strip() for answer in answers]
    stand = sum(number("", answer, answer) for answer in answers)
    written = sum(
        all(number("", answer, form.format(value)) == 1 for form in FORMS)
        for answer, value in zip(answers, short, strict=True)
    )
    return (
        f"{len(answers)} answers: {stand:.0f} paid as they stand, {written} in all "
        f"{len(FORMS)} forms"
    )


def main() -> None:
    """Prints the table, the count of golds, or attacks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--strings", type=int, default=0)
    parser.add_argument("--limit", type=float, default=5.0, help="CPU-seconds a text may take.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--golds", nargs="+", default=[], help="JSONL files with answers.")
    given = parser.parse_args()
    if given.golds:
        print(golds(given.golds))
    elif given.strings:
        print(attack(given.strings, given.limit, given.seed))
    else:
        print(table())


if __name__ == "__main__":
    main()
