"""Reads every adapter of `tests/data/adapters` and writes it again, for PEFT to read.

    PYTHONPATH=tests python tests/data/export_adapters.py exported

`make_adapters.py exported` then has PEFT compare.
"""

import sys
from pathlib import Path

from policy import adapters, published

from fiberjax.policy import lora, weights


def main() -> None:
    for kind in adapters.KINDS:
        config = published.config(kind)
        base = published.load(published.FOLDER / kind, config)
        chosen, trained = adapters.read(kind, config)
        folder = Path(sys.argv[1]) / kind
        weights.save_adapter(folder / "adapter", config, trained, lora=chosen, base=kind)
        merged = lora.merged(chosen, base, trained)
        weights.save(folder / "merged", config, merged, dtype="float32")


if __name__ == "__main__":
    main()
