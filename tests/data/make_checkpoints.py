"""Writes `tests/data/checkpoints`: tiny random models as transformers saves them, and their logits.

The files are kept, because transformers and torch are no dependencies of the tests. To make them
anew, in an environment of their own:

    pip install torch transformers && python tests/data/make_checkpoints.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers

SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
MODELS = {
    "llama": transformers.LlamaConfig(head_dim=4, tie_word_embeddings=False, **SHAPE),
    "qwen2": transformers.Qwen2Config(tie_word_embeddings=True, **SHAPE),
    "qwen3": transformers.Qwen3Config(head_dim=8, tie_word_embeddings=False, **SHAPE),
}


def main() -> None:
    for seed, (name, config) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # Scales and biases too: each must matter.
                parameter.add_(0.3 * torch.randn_like(parameter))
            tokens = torch.randint(SHAPE["vocab_size"], (3, 12))
            logits = model(tokens).logits
        folder = Path(__file__).parent / "checkpoints" / name
        # The last model in several files, as large ones are published.
        model.save_pretrained(folder, max_shard_size="8KB" if name == "qwen3" else "1GB")
        np.savez(folder / "expected.npz", tokens=tokens.int().numpy(), logits=logits.numpy())


if __name__ == "__main__":
    main()
