"""Writes `tests/data/checkpoints`: tiny random models as transformers saves them.

Beside each lie its logits and the tokens that it would go on with.

The files are kept, because transformers and torch are no dependencies of the tests. To make them
anew, in an environment of their own:

    pip install torch transformers && python tests/data/make_checkpoints.py

and to have transformers read what fiberjax has written, and compare the logits with those kept:

    python tests/data/make_checkpoints.py exported

where `exported` holds folders by the same names, as `python tests/data/export_checkpoints.py
exported` writes them in fiberjax's environment.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent / "checkpoints"
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "rms_norm_eps": 1e-5,
    "rope_parameters": ROPE,
}


def scaled(**rope):
    """A Llama whose wavelengths lie on both sides of the thresholds, within a few tokens."""
    given = {"rope_theta": 500.0, "original_max_position_embeddings": 16, **rope}
    few = {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": given}
    return transformers.LlamaConfig(head_dim=16, tie_word_embeddings=True, **SHAPE | few)


MODELS = {
    "llama": transformers.LlamaConfig(head_dim=4, tie_word_embeddings=False, **SHAPE),
    "qwen2": transformers.Qwen2Config(tie_word_embeddings=True, **SHAPE),
    "qwen3": transformers.Qwen3Config(head_dim=8, tie_word_embeddings=False, **SHAPE),
    "llama_llama3": scaled(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0
    ),
    "llama_yarn": scaled(rope_type="yarn", factor=4.0, beta_fast=2.0, beta_slow=0.25),
    "mistral": transformers.MistralConfig(
        head_dim=4, sliding_window=5, tie_word_embeddings=False, **SHAPE
    ),
    "qwen2_window": transformers.Qwen2Config(
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
        tie_word_embeddings=True,
        **SHAPE | {"num_hidden_layers": 3},
    ),
    "gemma3": transformers.Gemma3TextConfig(
        head_dim=8,
        query_pre_attn_scalar=12,
        sliding_window=4,
        layer_types=[
            f"{kind}_attention" for kind in "sliding sliding full sliding sliding".split()
        ],
        **SHAPE
        | {
            "num_hidden_layers": 5,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        **SHAPE,
    ),
}
# Rotary positions of real sizes, whose frequencies alone are kept: width of a head, and the rest.
ROPES = {
    "default": (64, dict(rope_type="default", rope_theta=1e6)),
    "linear": (256, dict(rope_type="linear", rope_theta=1e6, factor=8.0)),
    "llama3": (
        64,
        dict(rope_type="llama3", rope_theta=5e5, factor=32.0, low_freq_factor=1.0)
        | dict(high_freq_factor=4.0, original_max_position_embeddings=8192),
    ),
    "yarn": (
        128,
        dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768),
    ),
    "yarn_mscale": (
        64,
        dict(rope_type="yarn", rope_theta=1e4, factor=40.0, original_max_position_embeddings=4096)
        | dict(beta_fast=16.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.707, truncate=False),
    ),
}
PROMPTS = (5, 9, 12)  # Tokens of each row that the greedy ones go on from.


def draw(config, seed):
    """A model with random parameters: scales and biases too, each must matter."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def greedy(model, prompt, count):
    """The likeliest `count` tokens after a prompt, each by a pass over the whole row."""
    row = prompt[None]
    for _ in range(count):
        row = torch.cat([row, model(row).logits[:, -1:].argmax(-1)], dim=1)
    return row[0, len(prompt) :].int().numpy()


@torch.no_grad()
def make(name, config, seed):
    model = draw(config, seed)
    tokens = torch.randint(SHAPE["vocab_size"], (3, 12))
    folder = FOLDER / name
    # One model in several files, as large ones are published.
    model.save_pretrained(folder, max_shard_size="8KB" if name == "qwen3" else "1GB")
    rows = zip(tokens, PROMPTS, strict=True)
    np.savez(
        folder / "expected.npz",
        tokens=tokens.int().numpy(),
        logits=model(tokens).logits.numpy(),
        prompts=np.array(PROMPTS, np.int32),
        greedy=np.stack([greedy(model, row[:n], 12) for row, n in rows]),
    )


@torch.no_grad()
def verify(exported):
    """Raises where transformers does not read a folder as the model that it was made from."""
    for name in MODELS:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            exported / name, dtype=torch.float32
        )
        expected = np.load(FOLDER / name / "expected.npz")
        found = model.eval()(torch.from_numpy(expected["tokens"]).long()).logits.numpy()
        difference = np.abs(found - expected["logits"]).max()
        print(f"{name}: logits differ by at most {difference:.1e}")
        assert difference < 1e-6, name


def make_ropes():
    """The frequencies of `ROPES` and their factors of cosine and sine."""
    kept = {}
    for name, (head_dim, given) in ROPES.items():
        config = transformers.LlamaConfig(
            hidden_size=head_dim, num_attention_heads=1, head_dim=head_dim, rope_parameters=given
        )
        rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        kept |= {f"{name}/frequency": rotary.inv_freq, f"{name}/scale": rotary.attention_scaling}
    np.savez(FOLDER.parent / "ropes.npz", **kept)


def main() -> None:
    if sys.argv[1:]:
        return verify(Path(sys.argv[1]))
    for seed, (name, config) in enumerate(MODELS.items()):
        make(name, config, seed)
    make_ropes()


if __name__ == "__main__":
    main()
