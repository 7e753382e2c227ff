"""Writes `tests/data/adapters`: random adapters of two of the checkpoints, as PEFT saves them.

Beside each lie the logits of the model with it. To make them anew, in an environment of their own:

    pip install torch transformers peft && python tests/data/make_adapters.py

and to have PEFT read what fiberjax has written, and compare with the logits kept:

    python tests/data/make_adapters.py exported

where `exported` is what `python tests/data/export_adapters.py exported` writes in fiberjax's
environment: of each its adapter, and the model that it is merged into.
"""

import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

FOLDER = Path(__file__).parent
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ADAPTERS = {
    "qwen2": {"target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj"], "r": 3},
    "qwen3_moe": {"target_modules": ["q_proj", "o_proj"], "r": 2},
}


def base(name):
    folder = FOLDER / "checkpoints" / name
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def expected_tokens(name):
    return torch.from_numpy(
        np.load(FOLDER / "checkpoints" / name / "expected.npz")["tokens"]
    ).long()


@torch.no_grad()
def make(name, options, seed):
    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_alpha=5, **options)
    model = peft.get_peft_model(base(name), config).eval()
    for path, parameter in model.named_parameters():
        if "lora_" in path:
            parameter.copy_(0.3 * torch.randn_like(parameter))
    model.peft_config["default"].base_model_name_or_path = name
    folder = FOLDER / "adapters" / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    np.savez(folder / "expected.npz", logits=model(expected_tokens(name)).logits.numpy())


@torch.no_grad()
def verify(exported):
    """Raises where PEFT does not read a folder as the adapter that it was made from."""
    for name in ADAPTERS:
        expected = np.load(FOLDER / "adapters" / name / "expected.npz")["logits"]
        adapted = peft.PeftModel.from_pretrained(base(name), exported / name / "adapter").eval()
        merged = transformers.AutoModelForCausalLM.from_pretrained(
            exported / name / "merged", dtype=torch.float32
        ).eval()
        for kind, model in (("adapter", adapted), ("merged", merged)):
            difference = np.abs(model(expected_tokens(name)).logits.numpy() - expected).max()
            print(f"{name}, {kind}: logits differ by at most {difference:.1e}")
            assert difference < 1e-5, name


def main() -> None:
    if sys.argv[1:]:
        return verify(Path(sys.argv[1]))
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        make(name, options, seed)


if __name__ == "__main__":
    main()
