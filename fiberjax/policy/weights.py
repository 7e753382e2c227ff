"""Published checkpoints: reading and writing the Hugging Face layout of `families.FAMILIES`.

A checkpoint is a folder with `config.json` and one or more `model*.safetensors` files. Every name,
shape and option is checked before a tensor is read. Each device then reads its own part of each
tensor, so that no host ever holds the whole model. Nothing is downloaded, and nothing in the files
is code.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fiberjax import storage
from fiberjax.bounds import shown
from fiberjax.policy import families, transformer
from fiberjax.policy.config import TransformerConfig
from fiberjax.policy.lora import LoRA

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
    names = families.FAMILIES[_description(storage.local(directory))[0]].tensors
    shapes, structure = _parameters(config)
    with contextlib.ExitStack() as stack:
        files: dict[Path, Any] = {}

        def read(name: str) -> Any:
            file = tensors[name].file
            if file not in files:
                files[file] = stack.enter_context(_safetensors().safe_open(file, framework="np"))
            return files[file].get_slice(name)

        loaded = [
            jax.make_array_from_callback(shape, sharding, _reader(path, shape, names[path], read))
            for (path, shape), sharding in zip(
                shapes.items(), jax.tree.leaves(shardings), strict=True
            )
        ]
        # Read before the files close.
        return jax.block_until_ready(jax.tree.unflatten(structure, loaded))


def where_not_finite(directory: str | Path, config: TransformerConfig, paths: Sequence[str]) -> str:
    """Names the first tensor that holds a NaN or an infinity, and its file.

    Args:
      directory: of a checkpoint that `check` takes.
      config: shape of the policy.
      paths: of the parameters to look in, such as "layers/mlp/up/kernel"; one of them holds one.
    """
    tensors = check(directory, config)
    names = families.FAMILIES[_description(storage.local(directory))[0]].tensors
    shapes, _ = _parameters(config)
    for name, _ in _tensor_shapes(names, {path: shapes[path] for path in paths}):
        file = tensors[name].file
        with _safetensors().safe_open(file, framework="np") as opened:
            if not np.isfinite(np.asarray(opened.get_tensor(name), np.float32)).all():
                return f"{name} in {file}"
    return f"one of {', '.join(paths)}"  # As float32 alone, where the file has it wider.


def _reader(
    path: str, shape: tuple[int, ...], tensor: tuple[str, bool], read: Callable[[str], Any]
) -> Callable[[Any], np.ndarray]:
    """Reads one part of a parameter, [L, in, out] for a stacked matrix, from tensors [out, in]."""
    del path  # For those who watch what is read.
    name, transposed = tensor
    stacked = name.count("{}")

    def part(name: str, index: tuple[slice, ...]) -> np.ndarray:
        values = np.asarray(read(name)[index[::-1] if transposed else index], np.float32)
        return values.T if transposed else values

    def whole(index: tuple[slice, ...]) -> np.ndarray:
        if not stacked:
            return part(name, index)
        chosen = [range(*index[axis].indices(shape[axis])) for axis in range(stacked)]
        parts = [part(name.format(*at), index[stacked:]) for at in itertools.product(*chosen)]
        return np.stack(parts).reshape(*map(len, chosen), *parts[0].shape)

    return whole


def _parameters(config: TransformerConfig) -> tuple[dict[str, tuple[int, ...]], Any]:
    """Path and shape of every parameter, in order, and the structure of the tree."""
    abstract = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    flat, structure = jax.tree_util.tree_flatten_with_path(abstract)
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in flat}, structure


def read_shape(directory: str | Path) -> dict[str, Any]:
    """The fields of `TransformerConfig` that a folder's `config.json` decides, each with its value.

    What is left is how the policy is computed: `families.COMPUTED`.

    Args:
      directory: of a published checkpoint; `config.json` alone is read.

    Raises:
      ValueError: it cannot be read, is of no known family, or says what is not understood; each
        such thing is named.
    """
    directory = storage.local(directory)
    kind, values = _description(directory)
    try:
        return families.read(families.FAMILIES[kind], values)
    except ValueError as error:
        path = storage.origin(directory / "config.json")
        raise ValueError(f"{path} ({kind}): {error}") from None


def _description(directory: Path) -> tuple[str, dict[str, Any]]:
    """The `model_type` of a folder, one of `FAMILIES`, and all that its `config.json` says."""
    path = directory / "config.json"
    try:
        found = json.loads(path.read_text())
        kind = found["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{storage.origin(directory)!r} is no checkpoint: its config.json cannot be read "
            f"({type(error).__name__}: {error})"
        ) from None
    if not isinstance(kind, str) or kind not in families.FAMILIES:
        raise ValueError(
            f"{storage.origin(path)}: model_type is {shown(kind)}, expected one of "
            f"{list(families.FAMILIES)}"
        )
    return kind, found


def check(directory: str | Path, config: TransformerConfig) -> dict[str, Any]:
    """Compares a checkpoint with the policy, from its config and the headers of its files.

    Returns:
      Where each tensor is, by name.

    Raises:
      ValueError: it is no checkpoint, or does not fit; the message lists what differs.
    """
    directory = storage.local(directory)
    differences = [
        f"config.policy.{name} is {getattr(config, name)!r}, the checkpoint has {value!r}"
        for name, value in read_shape(directory).items()
        if not _same(name, getattr(config, name), value)
    ]
    if differences:
        path = storage.origin(directory / "config.json")
        raise ValueError(f"{path} does not fit the policy: {'; '.join(differences)}")
    tensors = _index(directory)
    names = families.FAMILIES[_description(directory)[0]].tensors
    _check_tensors(directory, tensors, dict(_tensor_shapes(names, _parameters(config)[0])))
    if config.tie_embeddings:
        _check_tied(tensors)
    return tensors


def _same(name: str, ours: Any, theirs: Any) -> bool:
    """Whether two values of a field are one; epsilons are, where they are as float32."""
    if name == "norm_epsilon":
        return bool(np.float32(ours) == np.float32(theirs))
    return bool(ours == theirs)


def _index(directory: Path) -> dict[str, _Tensor]:
    """Every tensor of the folder's files, from their headers."""
    tensors: dict[str, _Tensor] = {}
    files = _files(directory)
    for file in files:
        try:
            with _safetensors().safe_open(file, framework="np") as opened:
                for name in opened.keys():
                    part = opened.get_slice(name)
                    tensors[name] = _Tensor(file, tuple(part.get_shape()), part.get_dtype())
        except _safetensors().SafetensorError as error:
            raise ValueError(f"{file} is not a safetensors file: {error}") from None
    return tensors


def _files(directory: Path) -> list[Path]:
    """The files of a folder's tensors, as transformers takes them: one, or those of its index.

    What lies beside them, of an earlier save for one, is not the model.
    """
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        files = [whole] if whole.is_file() else sorted(directory.glob("model*.safetensors"))
        if not files:
            raise ValueError(
                f"{str(directory)!r} is no checkpoint: it holds no model*.safetensors file"
            )
        return files
    try:
        named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [directory / name for name in named]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} cannot be read ({type(error).__name__}: {error})") from None
    for file in files:
        if file.parent != directory or not file.is_file():
            raise ValueError(f"{index} names {file.name}, which is not in the folder")
    return files


def _check_tied(tensors: Mapping[str, _Tensor]) -> None:
    """Where a tied head is there too, it must be the table.

    Raises:
      ValueError: it differs.
    """
    names = ("lm_head.weight", "model.embed_tokens.weight")
    if names[0] not in tensors:
        return
    values = []
    for name in names:
        with _safetensors().safe_open(tensors[name].file, framework="np") as opened:
            values.append(np.asarray(opened.get_tensor(name)))
    head, table = values
    if not np.array_equal(head, table):
        raise ValueError(
            f"{tensors[names[0]].file}: {names[0]} differs from {names[1]}, to which "
            "tie_word_embeddings = true ties it: one of them is not of this model"
        )


def _check_tensors(
    directory: Path, tensors: Mapping[str, _Tensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Every tensor is there, of its shape, in floating point; nothing is left over."""
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


def _tensor_shapes(
    names: families.Tensors, leaves: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that hold these parameters."""
    for path, shape in leaves.items():
        name, transposed = names[path]
        stacked = name.count("{}")
        own = shape[stacked:]
        for at in itertools.product(*map(range, shape[:stacked])):
            yield name.format(*at), own[::-1] if transposed else own


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
      ValueError: no published family has a policy of this shape.
    """
    kind, described = families.family_of(config)
    family = families.FAMILIES[kind]
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name, transposed = family.tensors["/".join(key.key for key in path)]
        values = np.asarray(leaf).astype(jax.numpy.dtype(dtype))
        for at in np.ndindex(values.shape[: name.count("{}")]):
            one = values[at].T if transposed else values[at]
            tensors[name.format(*at)] = np.ascontiguousarray(one)
    described = {
        "model_type": kind,
        "architectures": [family.architecture],
        **described,
        "torch_dtype": dtype,
    }
    _safetensors().numpy.save_file(
        tensors, directory / "model.safetensors", metadata={"format": "pt"}
    )
    (directory / "config.json").write_text(json.dumps(described, indent=2) + "\n")


def save_adapter(
    directory: str | Path,
    config: TransformerConfig,
    adapters: transformer.Params,
    *,
    lora: LoRA,
    base: str,
    dtype: str = "float32",
) -> None:
    """Writes adapters as PEFT has them: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
      directory: made if missing; an adapter in it is replaced.
      config: shape of the policy.
      adapters: as `lora.init` makes them, all on this process.
      lora: which they are.
      base: what the model that they adapt is called: a folder, or a name on a hub.
      dtype: "float32" or "bfloat16", of the tensors.

    Raises:
      ValueError: no published family has a policy of this shape.
    """
    names = families.FAMILIES[families.family_of(config)[0]].tensors
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(adapters)[0]:
        *where, side = (key.key for key in path)
        theirs = {"lora_a": "lora_A", "lora_b": "lora_B"}[side]
        matrix = names["/".join([*where, "kernel"])][0].removesuffix(".weight")
        values = np.asarray(leaf).astype(jax.numpy.dtype(dtype))
        for layer, one in enumerate(values):
            name = f"base_model.model.{matrix}.{theirs}.weight".format(layer)
            tensors[name] = np.ascontiguousarray(one.T)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "target_modules": list(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    _safetensors().numpy.save_file(
        tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"}
    )
    (directory / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")


def fingerprint(directory: str | Path) -> str:
    """A digest of a checkpoint's tensors: of every byte of its files, whatever they are called."""
    digest = hashlib.blake2b(digest_size=8)
    directory = storage.local(directory)
    for file in sorted({*directory.glob("model*.safetensors"), *_files(directory)}):
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
