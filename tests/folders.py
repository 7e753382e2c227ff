"""Folders as models are published in, of a tiny random policy and a tokenizer of bytes."""

import json
import pathlib

import jax
import tokenizers

from fiberjax.policy import TransformerConfig, init, weights
from fiberjax.tasks import chat, render

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # Ids 256 to 258.
PAD, START, END, THINK = 256, 257, 258, 259
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPE = TransformerConfig(
    vocab_size=264, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24
)


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Bytes, as published byte-level tokenizers have them; `<think>` is a token, and no control."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens(["<think>"])
    return tokenizer


def write(folder, *, template=CHATML, tokenizer=None, generation=None, config=None, **said):
    """Writes a whole folder; what is None is as it should be. Gives its path as text."""
    folder = pathlib.Path(folder)
    weights.save(folder, SHAPE, init(SHAPE, jax.random.key(5)), dtype="float32")
    described = json.loads((folder / "config.json").read_text())
    described |= {"max_position_embeddings": 128, "eos_token_id": PAD} | (config or {})
    (folder / "config.json").write_text(json.dumps(described))
    write_tokenizer(folder, template=template, tokenizer=tokenizer, generation=generation, **said)
    return str(folder)


def write_tokenizer(folder, *, template=CHATML, tokenizer=None, generation=None, **said):
    """Writes the tokenizer's files alone; gives the folder as text."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (byte_tokenizer() if tokenizer is None else tokenizer).save(str(folder / "tokenizer.json"))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        **({} if template is None else {"chat_template": template}),
        **said,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    ends = {"eos_token_id": [PAD, END]} if generation is None else generation
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return str(folder)


def model(folder, **values):
    """`options.Model` of a folder."""
    from fiberjax import options

    plain = {"tokenizer": "auto", "overrides": {}, "chat": "auto", "system": "", "examples": ()}
    plain |= {"thinking": "auto", "stop": (), "warm_start": False}
    return options.Model(**{"folder": str(folder), **plain, **values})


def frame_here(template, variables, *, system="", examples=(), thinking="auto", roles=("user",)):
    """`chat.make_frame` in this process, which saves a second: for templates that are trusted."""
    compiled = render.compiled(template, dict(variables))
    return chat.frame_of(render.pieces(compiled, system, examples, thinking, roles))
