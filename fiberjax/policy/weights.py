"""Published checkpoints: reading and writing the Hugging Face layout of the Llama and Qwen family.

A checkpoint is a folder with `config.json` and one or more `model*.safetensors` files. Every name,
shape and option is checked before a tensor is read. Each device then reads its own part of each
tensor, so that no host ever holds the whole model. Nothing is downloaded, and nothing in the files
is code.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fiberjax.policy import transformer
from fiberjax.policy.config import TransformerConfig

# Path of a parameter -> name of the tensor, and whether it is stored transposed, [out, in]. `{}` is
# the layer.
TENSORS: Mapping[str, tuple[str, bool]] = {
    "embed/kernel": ("model.embed_tokens.weight", False),
    "layers/attention_norm/scale": ("model.layers.{}.input_layernorm.weight", False),
    **{
        f"layers/attention/{name}/{ours}": (f"model.layers.{{}}.self_attn.{name}_proj.{theirs}", t)
        for name in "qkvo"
        for ours, theirs, t in (("kernel", "weight", True), ("bias", "bias", False))
    },
    "layers/attention/q_norm/scale": ("model.layers.{}.self_attn.q_norm.weight", False),
    "layers/attention/k_norm/scale": ("model.layers.{}.self_attn.k_norm.weight", False),
    "layers/mlp_norm/scale": ("model.layers.{}.post_attention_layernorm.weight", False),
    **{
        f"layers/mlp/{name}/kernel": (f"model.layers.{{}}.mlp.{name}_proj.weight", True)
        for name in ("gate", "up", "down")
    },
    "final_norm/scale": ("model.norm.weight", False),
    "head/kernel": ("lm_head.weight", False),
}
MODEL_TYPES = ("llama", "qwen2", "qwen3")
# Tensors that say nothing that the config does not: the tied head, tables of rotary angles.
_IGNORED = ("lm_head.weight", ".rotary_emb.inv_freq")


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One tensor of a checkpoint: its file, shape and dtype."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def load(directory: str | Path, config: TransformerConfig, shardings: Any) -> transformer.Params:
    """The parameters of a published checkpoint, float32, on the devices of `shardings`.

    Args:
      directory: folder with `config.json` and `model*.safetensors` files, seen by every host.
      config: shape of the policy; must be that of the checkpoint.
      shardings: a sharding for each parameter, in the structure of `init`.

    Raises:
      ValueError: as `check`; nothing has been read then.
    """
    tensors = check(directory, config)
    shapes, structure = _parameters(config)
    with contextlib.ExitStack() as stack:
        files: dict[Path, Any] = {}

        def read(name: str) -> Any:
            file = tensors[name].file
            if file not in files:
                files[file] = stack.enter_context(_safetensors().safe_open(file, framework="np"))
            return files[file].get_slice(name)

        loaded = [
            jax.make_array_from_callback(shape, sharding, _reader(path, config.num_layers, read))
            for (path, shape), sharding in zip(
                shapes.items(), jax.tree.leaves(shardings), strict=True
            )
        ]
        # Read before the files close.
        return jax.block_until_ready(jax.tree.unflatten(structure, loaded))


def _reader(path: str, layers: int, read: Callable[[str], Any]) -> Callable[[Any], np.ndarray]:
    """Reads one part of a parameter, [L, in, out] for a stacked matrix, from tensors [out, in]."""
    name, transposed = TENSORS[path]

    def part(tensor: str, index: tuple[slice, ...]) -> np.ndarray:
        values = np.asarray(read(tensor)[index[::-1] if transposed else index], np.float32)
        return values.T if transposed else values

    def whole(index: tuple[slice, ...]) -> np.ndarray:
        if "{}" not in name:
            return part(name, index)
        chosen = range(*index[0].indices(layers))
        return np.stack([part(name.format(layer), index[1:]) for layer in chosen])

    return whole


def _parameters(config: TransformerConfig) -> tuple[dict[str, tuple[int, ...]], Any]:
    """Path and shape of every parameter, in order, and the structure of the tree."""
    abstract = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    flat, structure = jax.tree_util.tree_flatten_with_path(abstract)
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in flat}, structure


def check(directory: str | Path, config: TransformerConfig) -> dict[str, Any]:
    """Compares a checkpoint with the policy, from its config and the headers of its files.

    Returns:
      Where each tensor is, by name.

    Raises:
      ValueError: it is no checkpoint, or does not fit; the message lists what differs.
    """
    directory = Path(directory)
    _check_config(directory, config)
    tensors = _index(directory)
    _check_tensors(directory, tensors, _parameters(config)[0])
    return tensors


def read_shape(directory: str | Path) -> dict[str, Any]:
    """The fields of `TransformerConfig` that a checkpoint's `config.json` says, by name.

    Raises:
      ValueError: it cannot be read, is of another architecture, or asks for what the decoder does
        not have.
    """
    path = Path(directory) / "config.json"
    try:
        found = json.loads(path.read_text())
        kind = found["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(directory)!r} is no checkpoint: its config.json cannot be read "
            f"({type(error).__name__}: {error})"
        ) from None
    if kind not in MODEL_TYPES:
        raise ValueError(f"{path}: model_type is {kind!r}, expected one of {list(MODEL_TYPES)}")
    rope = found.get("rope_parameters") or {}
    scaling = found.get("rope_scaling") or rope
    refused = {
        "rope type": (scaling.get("rope_type", scaling.get("type", "default")), "default"),
        "hidden_act": (found.get("hidden_act", "silu"), "silu"),
        "use_sliding_window": (bool(found.get("use_sliding_window")), False),
        "mlp_bias": (bool(found.get("mlp_bias")), False),
        "attention_bias": (kind != "qwen2" and bool(found.get("attention_bias")), False),
    }
    heads = found.get("num_attention_heads")
    problems = [
        f"{name} is {value!r}, only {only!r} is supported"
        for name, (value, only) in refused.items()
        if value != only
    ]
    if problems:
        raise ValueError(f"{path} does not fit the policy: {'; '.join(problems)}")
    return {
        "vocab_size": found.get("vocab_size"),
        "embed_dim": found.get("hidden_size"),
        "num_layers": found.get("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": found.get("num_key_value_heads", heads),
        "head_dim": found.get("head_dim") or (found.get("hidden_size") or 0) // (heads or 1),
        "mlp_dim": found.get("intermediate_size"),
        "rope_theta": rope.get("rope_theta", found.get("rope_theta", 10_000.0)),
        "norm_epsilon": found.get("rms_norm_eps", 1e-6),
        "qk_norm": kind == "qwen3",
        "qkv_bias": kind == "qwen2",
        "tie_embeddings": bool(found.get("tie_word_embeddings", False)),
    }


def _check_config(directory: Path, config: TransformerConfig) -> None:
    """Compares a checkpoint's `config.json` with the policy's shape; names every difference."""
    differences = [
        f"config.policy.{name} is {getattr(config, name)!r}, the checkpoint has {value!r}"
        for name, value in read_shape(directory).items()
        if getattr(config, name) != value
    ]
    if differences:
        path = directory / "config.json"
        raise ValueError(f"{path} does not fit the policy: {'; '.join(differences)}")


def _index(directory: Path) -> dict[str, _Tensor]:
    """Every tensor of the folder's files, from their headers."""
    tensors: dict[str, _Tensor] = {}
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        raise ValueError(
            f"{str(directory)!r} is no checkpoint: it holds no model*.safetensors file"
        )
    for file in files:
        try:
            with _safetensors().safe_open(file, framework="np") as opened:
                for name in opened.keys():
                    part = opened.get_slice(name)
                    tensors[name] = _Tensor(file, tuple(part.get_shape()), part.get_dtype())
        except _safetensors().SafetensorError as error:
            raise ValueError(f"{file} is not a safetensors file: {error}") from None
    return tensors


def _check_tensors(
    directory: Path, tensors: Mapping[str, _Tensor], leaves: Mapping[str, tuple[int, ...]]
) -> None:
    """Every parameter has its tensors, of its shape, in floating point; nothing is left over."""
    expected = dict(_tensor_shapes(leaves))
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [
        f"{name} is not of this policy"
        for name in tensors
        if name not in expected and not name.endswith(_IGNORED)
    ]
    for name, shape in expected.items():
        found = tensors.get(name)
        if found is not None and found.shape != shape:
            problems.append(f"{name} is {list(found.shape)}, expected {list(shape)}")
        elif found is not None and found.dtype not in ("F32", "F16", "BF16"):
            problems.append(f"{name} is {found.dtype}, expected F32, F16 or BF16")
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"the tensors of {str(directory)!r} do not fit the policy: "
            f"{'; '.join(problems[:8])}{more}"
        )


def _tensor_shapes(leaves: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that hold these parameters."""
    for path, shape in leaves.items():
        name, transposed = TENSORS[path]
        stacked = "{}" in name
        own = shape[1:] if stacked else shape
        for layer in range(shape[0] if stacked else 1):
            yield name.format(layer), own[::-1] if transposed else own


def save(
    directory: str | Path,
    config: TransformerConfig,
    params: transformer.Params,
    *,
    dtype: str = "bfloat16",
) -> None:
    """Writes a checkpoint that other libraries read: `config.json` and `model.safetensors`.

    Args:
      directory: made if missing; a checkpoint in it is replaced.
      config: shape of the policy.
      params: its parameters, all on this process; the whole model passes through its memory.
      dtype: "float32" or "bfloat16", of the tensors.

    Raises:
      ValueError: no model type of the family has this combination of options.
    """
    kinds = {(False, False): "llama", (False, True): "qwen2", (True, False): "qwen3"}
    kind = kinds.get((config.qk_norm, config.qkv_bias))
    if kind is None:
        raise ValueError("no model type of the family has both qk_norm and qkv_bias")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name, transposed = TENSORS["/".join(key.key for key in path)]
        values = np.asarray(leaf).astype(jax.numpy.dtype(dtype))
        for layer in range(len(values) if "{}" in name else 1):
            one = values[layer] if "{}" in name else values
            tensors[name.format(layer)] = np.ascontiguousarray(one.T if transposed else one)
    described = {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "torch_dtype": dtype,
    }
    _safetensors().numpy.save_file(
        tensors, directory / "model.safetensors", metadata={"format": "pt"}
    )
    (directory / "config.json").write_text(json.dumps(described, indent=2) + "\n")


def fingerprint(directory: str | Path) -> str:
    """A digest of a checkpoint's tensors: of every byte of its files."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(directory).glob("model*.safetensors")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, hashlib.blake2b).digest())
    return digest.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ValueError("reading weights needs the `hf` extra: safetensors") from error
    return safetensors
