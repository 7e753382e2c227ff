"""What the readers of answers pay, and whether any text breaks them.

    python benchmarks/rewards.py                      # the tables of docs/rewards.md
    python benchmarks/rewards.py --strings=1000000    # random and hostile texts, none of them right
    python benchmarks/rewards.py --math --strings=20000 --limit=1    # of `math`, in workers
    python benchmarks/rewards.py --golds gsm8k/train.jsonl gsm8k/test.jsonl
                                                      # a data set's own answers, in seven forms

There are lines for `math`, and for math-verify with its defaults, where that is installed. Texts
are drawn from a seed; a text that raises, takes longer than --limit seconds or earns anything ends
the program with the text. What runs in workers is ended after --limit seconds, and counted.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fiberjax.tasks.rewards import SHIPPED, Case, Isolated, Limits, close_all
from fiberjax.tasks.rewards.base import Failed, values_of

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tasks.answers import NEAR_MISSES, REWRITINGS, written
from tasks.expressions import OTHER, SAME, pairs

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

ATOMS = ("0", "1", "9", "99999", "1.5", "x", "y", "n", "i", "e", r"\pi", r"\infty", "-1")
GROWN = (
    *("{}+{}", "{}-{}", r"{}\cdot {}", "{}{}", "{}/{}", r"\frac{{{}}}{{{}}}", "{}^{{{}}}", "{}={}"),
    *(r"\sqrt{{{}}}", r"\sqrt[{}]{{{}}}", "({})", r"\left|{}\right|", "{}!", r"\log {}", "[{},{})"),
    *(
        r"\sin {}",
        r"\sum_{{n=1}}^{{{}}} {}",
        r"\int_0^{{{}}} {} dx",
        r"\binom{{{}}}{{{}}}",
        "{},{}",
    ),
    *(r"\lim_{{x \to {}}} {}", r"\begin{{pmatrix}}{}&{}\\{}&{}\end{{pmatrix}}", r"{} \cup {}"),
    *(
        r"{} \le {}",
        r"\pm {}",
        r"\{{{},{}\}}",
        r"{} \bmod {}",
        r"\text{{ or }}{}",
        r"\prod_{{n}} {}",
    ),
)
EXPRESSION = r"918273\sqrt{645546371}+\pi"


def math_verify() -> Verifier | None:
    """The verifier of math-verify with its defaults; None where it is not installed.

    It finds LaTeX within dollars or a box, so answers with a backslash are given dollars.
    """
    try:
        from math_verify import parse, verify
    except ImportError:
        return None
    return lambda prompt, answer, completion: float(
        verify(parse(f"${answer}$" if set(answer) & set("\\^,(") else answer), parse(completion))
    )


def paid(verify: Verifier, cases: list[tuple[str, str, str]]) -> int:
    """How many of some triples of prompt, answer and completion are paid."""
    values = values_of(verify, [Case(*case) for case in cases])
    return sum(int(value) for value in values if not isinstance(value, Failed))


def table(names: tuple[str, ...], right: list, wrong: list) -> str:
    """Right answers and near misses that each verifier pays, as Markdown."""
    verifiers: dict[str, Verifier | None] = {name: SHIPPED[name] for name in names}
    verifiers["math-verify"] = math_verify()
    if verifiers["math-verify"] is None:
        verifiers.pop("math", None)
    lines = [
        f"| verifier | paid of {len(right)} right answers | paid of {len(wrong)} near misses |",
        "|---|---|---|",
    ]
    for name, verify in verifiers.items():
        if verify is not None:
            lines.append(f"| {name} | {paid(verify, right)} | {paid(verify, wrong)} |")
    return "\n".join(lines)


def tables() -> str:
    """The tables of numbers and of expressions."""
    numbers = ("number", "math", "last_number", "strict_number", "exact")
    right, wrong = ([("", *case) for case in written(of)] for of in (REWRITINGS, NEAR_MISSES))
    expressions = ("math", "number", "exact")
    return f"{table(numbers, right, wrong)}\n\n{table(expressions, pairs(SAME), pairs(OTHER))}"


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
    here = {name: verify for name, verify in SHIPPED.items() if not isinstance(verify, Isolated)}
    for index in range(strings):
        said = text(rng, index)
        for name, verify in here.items():
            began = time.process_time()
            assert verify("prompt", ANSWER, said) == 0.0, f"{name} pays {said!r}"
            took = time.process_time() - began
            assert took <= limit, f"{name} took {took:.1f} s for {said[:100]!r}…"
            slowest = max(slowest, took)
    return f"{strings} texts, {len(here)} verifiers: nothing earned, {slowest:.3f} s at most"


def grown(rng: random.Random, depth: int) -> str:
    """A random expression that reads well, of so many forms within each other at most."""
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(ATOMS)
    form = rng.choice(GROWN)
    return form.format(*(grown(rng, depth - 1) for _ in range(form.count("{}"))))


def attack_math(strings: int, limit: float, seed: int, workers: int) -> str:
    """Gives `math` that many texts, half of them expressions in a box; what was seen, in a line.

    Raises:
      AssertionError: a text earned something.
    """
    rng = random.Random(seed)
    said = [
        f"\\boxed{{{grown(rng, 4)}}}" if index % 2 else text(rng, index) for index in range(strings)
    ]
    shipped = SHIPPED["math"]
    assert isinstance(shipped, Isolated)
    verify = shipped.limited(Limits(seconds=limit, workers=workers))
    began = time.monotonic()
    values = verify.many([Case("prompt", EXPRESSION, of) for of in said])
    took = time.monotonic() - began
    failures: dict[str, int] = {}
    for of, value in zip(said, values, strict=True):
        if isinstance(value, Failed):
            failures[value.why] = failures.get(value.why, 0) + 1
        else:
            assert value == 0.0, f"math pays {of!r}"
    close_all()
    failed = ", ".join(f"{count} {why}" for why, count in failures.items()) or "none failed"
    return f"{strings} texts through math in {took:.0f} s: nothing earned; {failed}"


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
    parser.add_argument("--math", action="store_true", help="`math` alone, in workers.")
    parser.add_argument("--workers", type=int, default=2, help="Of --math.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--golds", nargs="+", default=[], help="JSONL files with answers.")
    given = parser.parse_args()
    if given.golds:
        print(golds(given.golds))
    elif given.math:
        print(attack_math(given.strings, given.limit, given.seed, given.workers))
    elif given.strings:
        print(attack(given.strings, given.limit, given.seed))
    else:
        print(tables())
        close_all()


if __name__ == "__main__":
    main()
