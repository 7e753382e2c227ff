"""Writes prompts that a small chat model is sometimes right about: the larger of two numbers.

python experiments/smollm2/make_prompts.py --output=larger.jsonl
"""

import argparse
import json
import random
from pathlib import Path


def main() -> None:
    """Draws pairs of different three-digit numbers, none twice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=400)
    given = parser.parse_args()
    rng = random.Random(0)
    pairs: set[tuple[int, int]] = set()
    while len(pairs) < given.rows:
        pairs.add(tuple(rng.sample(range(100, 1000), 2)))  # type: ignore[arg-type]
    rows = [
        {"prompt": f"Which is larger, {a} or {b}?", "answer": str(max(a, b))}
        for a, b in sorted(pairs)
    ]
    given.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
