"""Adapters that PEFT wrote: see `tests/data/make_adapters.py`."""

import json
import pathlib

import numpy as np
import safetensors.numpy

from fiberjax.policy import TransformerConfig, lora

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "adapters"
KINDS = sorted(path.name for path in FOLDER.iterdir())


def read(kind: str, config: TransformerConfig):
    """Which adapters a folder holds, and the adapters."""
    said = json.loads((FOLDER / kind / "adapter_config.json").read_text())
    chosen = lora.make_lora(
        config,
        rank=said["r"],
        alpha=float(said["lora_alpha"]),
        targets=said["target_modules"],
        base_dtype="float32",
    )
    tensors = safetensors.numpy.load_file(FOLDER / kind / "adapter_model.safetensors")
    layers: dict = {}
    for target in chosen.targets:
        part, name = lora.TARGETS[target].split("/")
        block = {"attention": "self_attn"}.get(part, part)
        layers.setdefault(part, {})[name] = {
            ours: np.stack(
                [
                    tensors[f"base_model.model.model.layers.{i}.{block}.{target}.{theirs}.weight"].T
                    for i in range(config.num_layers)
                ]
            )
            for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B"))
        }
    return chosen, {"layers": layers}
