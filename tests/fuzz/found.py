"""Inputs that were once a traceback, a hang, a crash or an error that named nothing."""

import json
import math
from typing import Any

from .kinds import CHECKPOINTS, DATA, ROWS, _saved, _tokenizer, _written
from .mutate import applied


def _model(name: str, **values: Any) -> Any:
    tree = json.loads((DATA / "checkpoints" / name / "config.json").read_text()) | values
    return name, "config.json", json.dumps(tree).encode()


def _arrow() -> Any:
    """A stream whose offsets lead out of its buffers: read unchecked, it ends the interpreter."""
    data = bytearray(_written(ROWS, ".arrow"))
    start = data.index(b"1+2=")
    offsets = data.rindex((4).to_bytes(4, "little"), 0, start)
    data[offsets : offsets + 4] = (2**30).to_bytes(4, "little")
    return ".arrow", bytes(data)


def _ids(number: int, token: str = "a") -> bytes:
    edits = [("set", ("model", "vocab", token), number)]
    return json.dumps(applied(_tokenizer(), edits)).encode()


def _saved_with(name: str) -> bytes:
    return json.dumps(applied(_saved()[1], [("add", ("policy",), name, 1)])).encode()


def _set(*edits: Any) -> Any:
    return 0, [("set", *edit) for edit in edits]


FOUND: dict[str, list[Any]] = {
    "config": [
        _set((("policy", "layer_pattern"), [[[]]])),
        _set((("policy", "vocab_size"), {"a": 1})),
        _set((("curriculum", "domain_probability"), {"a": 1})),
        _set((("curriculum", "domain_probability"), {"sort": 2.0})),
        _set((("curriculum", "domain_probability"), {"sort": True})),
        _set((("tasks", "file"), "nan"), (("tasks", "columns", "answer"), 1e-320)),
        _set((("tasks", "file"), "/")),
        _set((("tasks", "file"), "a" * 5000)),
        _set((("tasks", "data_dir"), "")),
        _set((("tasks", "domains", "modular"), {"moduli": (-3,)})),
        _set((("tasks", "domains", "countdown"), {"max_target": 0})),
        _set((("tasks", "domains", "countdown"), {"max_number": 999_999, "max_target": 1})),
        _set((("tasks", "domains", "sort", "symbols"), "01x234")),
        _set((("tasks", "domains", "sort", "max_length"), 10**9)),
        _set((("tasks", "num_train"), 2**31)),
        _set((("mesh", "tensor"), 2)),
        _set((("rollout", "prompts"), 4_993_000)),
        _set((("rollout", "temperature"), math.inf)),
        _set((("optimizer", "clip_norm"), math.nan)),
        _set((("optimizer", "weight_decay"), math.nan)),
        _set((("levels", 0, 1), "a" * 5000)),
    ],
    "gate": [
        {"name": ["ppo"]},
        {"name": "fipo", "dual_clip": "a" * 5000},
        {"name": "ppo", "clip_high": 1e-50},
        {"name": "ppo", "clip_high": 10**400},
        {"name": "fgh", "order": (["group"],), "levels": {}},
    ],
    "data file": [
        _arrow(),
        (".parquet", _written(ROWS, ".parquet").replace(b"unused", b"unus\xf2d")),
        (".jsonl", b'{"prompt": "\\ud800", "answer": "1"}\n'),
        (
            ".jsonl",
            b'{"prompt": "1", "answer": 1%s, "domain": "a"}\n' % (b"0" * 400)
            + b'{"prompt": "2"}\n',
        ),
    ],
    "tokenizer": [
        _ids(2**31),
        _ids(2**31, "</s>"),  # Which is among the added tokens too, with another id.
        _ids(-1),
        json.dumps(applied(_tokenizer(), [("del", ("model", "vocab", "b"))])).encode(),
    ],
    "model folder": [
        _model("qwen3", tie_word_embeddings=True),
        _model("qwen2", model_type=[["group", ""]]),
        _model("qwen2_window", num_hidden_layers=2**31 - 1),
        _model("gemma3", layer_types=[[], "full_attention"]),
        _model("llama", rope_theta=10**400),
        _model("llama", rope_theta=1e-320),
        _model("llama", rope_parameters={"rope_type": "default", "rope_theta": 1.0}),
        (CHECKPOINTS[0], "config.json", b"[" * 100_000),
    ],
    "written checkpoint": [
        (True, "_CHECKPOINT_METADATA", b'{"commit_timestamp_nsecs": 1795914644784885212000}'),
        (True, "_CHECKPOINT_METADATA", b'{"metrics": 5}'),
        (True, "_CHECKPOINT_METADATA", b"[" * 100_000),
        (False, "state/_METADATA", b'{"tree_metadata": 1}'),
        (False, "state/_METADATA", b"{}"),
        (False, "host/metadata", b"[]"),
    ],
    "saved config": [_saved_with("a.b"), b"[" * 100_000, b"\xff\xfe", b'{"version": true}'],
}
