"""Writes prompts that a small chat model is sometimes right about, in three domains.

python experiments/smollm2/make_prompts.py --output=numbers.jsonl

The larger of two numbers, the largest of three, the last of three; the answer is the number alone.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

# Of each domain: how many numbers, the question, its answer.
DOMAINS: dict[str, tuple[int, str, Callable[[Sequence[int]], int]]] = {
    "larger": (2, "Which is larger, {} or {}?", max),
    "largest": (3, "Which is the largest, {}, {} or {}?", max),
    "last": (3, "Which comes last, {}, {} or {}?", lambda numbers: numbers[-1]),
}


def main() -> None:
    """Draws different two-digit numbers, none twice in a domain."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=500, help="Of a domain.")
    given = parser.parse_args()
    rows = [row for domain in DOMAINS for row in made(domain, given.rows)]
    given.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


def made(domain: str, count: int) -> list[dict[str, str]]:
    """Rows of a domain, each with a prompt of its own."""
    size, question, answer = DOMAINS[domain]
    rng = random.Random(domain)
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < count:
        drawn.add(tuple(rng.sample(range(10, 100), size)))
    return [
        {"prompt": question.format(*numbers), "answer": str(answer(numbers)), "domain": domain}
        for numbers in sorted(drawn)
    ]


if __name__ == "__main__":
    main()
