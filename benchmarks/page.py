r"""How long a page of kept rollouts takes to make and to open; prints a line.

    python -m benchmarks.page --trajectories=1024 --tokens=820

Made-up words and numbers, under the gate of the shipped configs. It is opened three times in a
Chromium of its own, without a window, where there is one: until the page's first colour, until the
first completions stand there, and from a choice of another order until that is drawn.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from fiberjax.analysis import page, tokens
from fiberjax.run.kept import from_arrays
from tests import browser

WORDS = (" the", " quick", " brown", " fox", " 12", " +", " 7", " =", " 19", ".", "\n", " so")


def made(trajectories: int, columns: int) -> tuple[str, int]:
    """The page, and how many tokens it is of."""
    random, row = np.random.default_rng(0), np.arange(trajectories)
    mask = np.arange(columns) < random.integers(columns // 3, columns + 1, trajectories)[:, None]
    old = -random.exponential(size=mask.shape)
    drift = random.normal(0, 0.06, mask.shape) + random.normal(0, 0.03, (trajectories, 1))
    ids = np.where(mask, random.integers(0, len(WORDS), mask.shape) + 1, 0)
    kept = from_arrays(
        log_prob=old + drift,
        old_log_prob=old,
        mask=mask,
        advantage=random.normal(size=trajectories),
        parents={"group": row // 4, "domain": row // 4 % 3},
        reward=random.integers(0, 2, trajectories).astype(float),
        tokens=ids,
    )
    looked = tokens.look(kept, "silent_sequence", entropy=random.exponential(size=mask.shape))
    texts = [[WORDS[of - 1] for of in row[row > 0]] for row in ids]
    return page.page(looked, title="made up", texts=texts), int(mask.sum())


def opened(path: Path) -> tuple[float, float, float]:
    """Seconds until the first paint, until completions stand there, and of another order."""
    with tempfile.TemporaryDirectory() as profile:
        window = browser.Browser(profile)
        begin = time.monotonic()
        window.open(path.as_uri())
        window.wait("document.documentElement?.dataset.drawn", 300)
        drawn = time.monotonic() - begin
        paint = window.evaluate("performance.getEntriesByType('paint')[0].startTime / 1000")
        begin = time.monotonic()
        window.evaluate(
            "byId('sort').value = 'push';"
            "byId('sort').dispatchEvent(new Event('input', {bubbles: true}))"
        )
        window.wait("document.documentElement.dataset.drawn === '2'", 300)
        sorted_ = time.monotonic() - begin
        window.close()
    return paint, drawn, sorted_


def main() -> None:
    """Makes the page, opens it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=820, help="of the longest")
    arguments = parser.parse_args()
    begin = time.process_time()
    text, count = made(arguments.trajectories, arguments.tokens)
    seconds = time.process_time() - begin
    print(f"{count} tokens: {len(text) / 1e6:.1f} MB, made in {seconds:.0f} CPU-seconds")
    if browser.path() is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = page.write(Path(folder) / "page.html", text)
        for _ in range(3):
            paint, drawn, again = opened(path)
            print(f"paint {paint:.2f} s, completions {drawn:.2f} s, another order {again:.2f} s")


if __name__ == "__main__":
    main()
