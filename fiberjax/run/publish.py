"""A run's policy as a folder that other libraries serve: weights, config, tokenizer, chat template.

What the source folder said stays as it was: its `config.json` but for the type of the tensors, and
its tokenizer's files, byte by byte. A policy that began at random, or was trained with another
tokenizer than its source's, brings the tokenizer it has.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from fiberjax import storage
from fiberjax.experiment import Experiment
from fiberjax.policy import sample, token_outputs, weights
from fiberjax.policy.config import TransformerConfig
from fiberjax.tasks import CharVocabulary, Vocabulary
from fiberjax.tasks.tokenizer import PublishedVocabulary
from fiberjax.train.rollout import positions_of

TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("*.tiktoken", "tekken.json", "spiece.model", "sentencepiece*.model"),
    *("chat_template*", "additional_chat_templates", "generation_config.json"),
)
"""What of a folder is copied with its tokenizer; nothing of it is code."""

TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
"""What is copied with the weights."""

SHARD_BYTES = 5 * 10**9
"""The most bytes of tensors in a file, but for a tensor that is larger by itself."""


def publish(
    experiment: Experiment,
    params: Any,
    output: str | Path,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the folder.

    Args:
      experiment: of the run; `model.folder` is the source, if any.
      params: its parameters, all on this process.
      output: made if missing; a checkpoint in it is replaced.
      dtype: "float32" or "bfloat16", of the tensors.
      shard_bytes: the most bytes of tensors in a file.

    Raises:
      ValueError: the output is the source or its tokenizer's, or the policy is of no published
        family.
    """
    output, source = Path(output), experiment.model.folder
    _check_output(experiment, output)
    for old in output.glob("model*.safetensors*"):
        old.unlink()
    _remove_tokenizer(output, "config.json")
    weights.save(output, experiment.policy, params, dtype=dtype)
    path = output / "config.json"
    described = json.loads(path.read_text())
    if source:
        near = storage.local(source)
        described = _as_the_source(json.loads((near / "config.json").read_text()), dtype)
        _copy(near, output, TERMS)
    else:
        window = experiment.window
        described |= {"max_position_embeddings": window.prompt + window.completion}
    if _of_the_source(experiment):
        _copy(storage.local(source), output, TOKENIZER)
    else:
        described |= _write_tokenizer(experiment, output)
    path.write_text(json.dumps(described, indent=2) + "\n")
    for file in output.glob("model*.safetensors"):
        shutil.copymode(path, file)  # It is written for its owner alone.
    split(output, shard_bytes)


def publish_adapter(
    experiment: Experiment, adapters: Any, base: Any, output: str | Path, *, dtype: str = "float32"
) -> Path:
    """Writes adapters as PEFT has them, to be served beside the model that they adapt.

    That is the folder that the run began with. A run that began with none, or whose supervised
    steps have changed it, has its base written too, float32, to `base` in the output. A tokenizer
    that is not the folder's lies beside the adapters.

    Args:
      experiment: of the run.
      adapters: of its checkpoint, all on this process.
      base: what they adapt, all on this process.
      output: made if missing; an adapter in it is replaced.
      dtype: "float32" or "bfloat16", of the adapters.

    Returns:
      Where the model is that they adapt.

    Raises:
      ValueError: the run has none, the output is the source or its tokenizer's, or the policy is
        of no published family.
    """
    if experiment.lora is None:
        raise ValueError(
            "the run has no adapters: it trained all parameters (config.lora.rank = 0)"
        )
    output, source = Path(output), storage.local(experiment.model.folder)
    _check_output(experiment, output)
    _remove_tokenizer(output, "adapter_config.json")
    if not experiment.model.folder or experiment.warm_start.steps > 0:
        source = output / "base"
        whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base)
        publish(experiment, whole, source, dtype="float32")
    elif not _of_the_source(experiment):
        output.mkdir(parents=True, exist_ok=True)
        _write_tokenizer(experiment, output)
    weights.save_adapter(
        *(output, experiment.policy, adapters),
        lora=experiment.lora,
        base=storage.origin(source),
        dtype=dtype,
    )
    # It is written for its owner alone.
    shutil.copymode(output / "adapter_config.json", output / "adapter_model.safetensors")
    return source


def _as_the_source(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A source's config, with the type that the tensors have now."""
    # Code that is not copied, and a quantisation that was undone.
    for name in ("auto_map", "quantization_config"):
        config.pop(name, None)
    named = [name for name in ("dtype", "torch_dtype") if name in config]
    return config | dict.fromkeys(named if named else ["torch_dtype"], dtype)


def _of_the_source(experiment: Experiment) -> bool:
    """Whether the run's tokenizer is that of the folder it began with."""
    model = experiment.model
    return bool(model.folder) and model.tokenizer in ("auto", model.folder)


def _check_output(experiment: Experiment, output: Path) -> None:
    """Refuses to write over what the run began with.

    Raises:
      ValueError: the output is a folder that is read.
    """
    model = experiment.model
    if model.folder and output.resolve() == storage.local(model.folder).resolve():
        raise ValueError(f"the output {str(output)!r} is the folder that the run began with")
    if model.tokenizer not in ("auto", "tasks"):
        path = storage.local(model.tokenizer)
        if output.resolve() == (path if path.is_dir() else path.parent).resolve():
            raise ValueError(f"the output {str(output)!r} is the folder of config.model.tokenizer")


def _remove_tokenizer(output: Path, described: str) -> None:
    """Removes what an earlier export left of a tokenizer; `described` says that there was one."""
    if not (output / described).is_file():
        return
    for pattern in TOKENIZER:
        for old in output.glob(pattern):
            if old.is_dir() and pattern == old.name:
                shutil.rmtree(old)
            elif old.is_file():
                old.unlink()


def _copy(source: Path, output: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for found in source.glob(pattern):
            if found.suffix == ".py":
                continue
            if found.is_dir():
                shutil.copytree(
                    found,
                    output / found.name,
                    ignore=shutil.ignore_patterns("*.py"),
                    dirs_exist_ok=True,
                )
            else:
                shutil.copyfile(found, output / found.name)


def _write_tokenizer(experiment: Experiment, output: Path) -> dict[str, Any]:
    """Writes the files of a tokenizer that is not the source's; gives what a config says of it."""
    vocabulary = experiment.vocabulary
    if isinstance(vocabulary, CharVocabulary):
        begin_ids: tuple[int, ...] = (vocabulary.bos_id,)
        _write_characters(vocabulary, output)
    else:
        begin_ids = cast(PublishedVocabulary, vocabulary).begin_ids
        path = storage.local(experiment.model.tokenizer)
        if path.is_dir():
            _copy(path, output, TOKENIZER)
        else:
            shutil.copyfile(path, output / "tokenizer.json")
            said = {"tokenizer_class": "PreTrainedTokenizerFast"}  # As it was read.
            (output / "tokenizer_config.json").write_text(json.dumps(said, indent=2) + "\n")
    tokens = {
        "bos_token_id": begin_ids[0] if begin_ids else None,
        "eos_token_id": list(vocabulary.end_ids),
        "pad_token_id": vocabulary.pad_id,
    }
    (output / "generation_config.json").write_text(json.dumps(tokens, indent=2) + "\n")
    return tokens


def _write_characters(vocabulary: CharVocabulary, output: Path) -> None:
    """A `tokenizer.json` that does what the vocabulary does."""
    import tokenizers

    special = {"<pad>": vocabulary.pad_id, "<s>": vocabulary.bos_id, "</s>": vocabulary.eos_id}
    ids = special | {c: 3 + i for i, c in enumerate(vocabulary.characters)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens(list(special))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary.bos_id)]
    )
    tokenizer.save(str(output / "tokenizer.json"))
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
    }
    (output / "tokenizer_config.json").write_text(json.dumps(said, indent=2) + "\n")


def split(folder: Path, shard_bytes: int) -> None:
    """Splits a folder's `model.safetensors` into files of at most so many bytes, with an index.

    Bytes are copied as they are, a file at a time; a file that is small enough stays.
    """
    whole = folder / "model.safetensors"
    with whole.open("rb") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(start - 8))
        metadata = header.pop("__metadata__", {})
        sizes = {
            name: described["data_offsets"][1] - described["data_offsets"][0]
            for name, described in header.items()
        }
        if sum(sizes.values()) <= shard_bytes:
            return
        groups = list(_groups(sizes, shard_bytes))
        weight_map: dict[str, str] = {}
        for number, names in enumerate(groups, start=1):
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            weight_map |= dict.fromkeys(names, file)
            own: dict[str, Any] = {"__metadata__": metadata}
            at = 0
            for name in names:
                own[name] = header[name] | {"data_offsets": [at, at + sizes[name]]}
                at += sizes[name]
            text = json.dumps(own).encode()
            text += b" " * (-len(text) % 8)
            with (folder / file).open("wb") as written:
                written.write(len(text).to_bytes(8, "little") + text)
                for name in names:
                    opened.seek(start + header[name]["data_offsets"][0])
                    _copy_bytes(opened, written, sizes[name])
    whole.unlink()
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _groups(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Names in order, as many at a time as fit."""
    names: list[str] = []
    held = 0
    for name, size in sizes.items():
        if names and held + size > limit:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def _copy_bytes(source: Any, target: Any, count: int) -> None:
    while count > 0:
        part = source.read(min(count, 2**24))
        if not part:
            raise OSError(f"{source.name} ended early")
        target.write(part)
        count -= len(part)


class Effect(NamedTuple):
    """How far rounded weights change the log-probabilities of what the policy itself says.

    Attributes:
      tokens: compared.
      mean: mean absolute difference, nats a token.
      largest: of any token, nats.
      kl: mean of log π(y) − log π′(y) over tokens y drawn from π, an estimate of KL(π‖π′); nats.
    """

    tokens: int
    mean: float
    largest: float
    kl: float


def rounding_effect(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Any,
    *,
    dtype: str = "bfloat16",
    prompt: str = "",
    rows: int = 4,
    columns: int = 32,
) -> Effect:
    """Rounds the parameters to a dtype and compares log-probabilities, both computed in float32.

    Args:
      config: shape of the policy.
      vocabulary: encodes the prompt.
      params: float32, all on this process.
      dtype: that they are rounded to.
      prompt: what is answered.
      rows: answers drawn, at temperature 1.
      columns: tokens of an answer at most.
    """
    config = dataclasses.replace(config, compute_dtype="float32", attention="dense")
    ids = vocabulary.encode_prompt(prompt)
    ids = ids if ids else [vocabulary.end_ids[0]]  # Something must stand before the first token.
    prompts = jnp.tile(jnp.array(ids, jnp.int32), (rows, 1))
    drawn = sample(
        config,
        params,
        prompts,
        jnp.ones(prompts.shape, bool),
        jax.random.split(jax.random.key(0), rows),
        max_new_tokens=columns,
        eos_id=vocabulary.end_ids,
        pad_id=vocabulary.pad_id,
    )
    tokens = jnp.concatenate([prompts, drawn.tokens], axis=1)
    mask = np.arange(columns) < np.asarray(drawn.length)[:, None]
    real = np.concatenate([np.ones(prompts.shape, bool), mask], axis=1)
    positions, segments = positions_of(real), real.astype(np.int32)

    @jax.jit
    def log_prob(params: Any) -> jax.Array:
        return token_outputs(
            config,
            params,
            tokens,
            jnp.asarray(positions),
            jnp.asarray(segments),
            start=len(ids),
            temperature=1.0,
            chunk=32,
        ).log_prob

    exact = np.asarray(log_prob(params))[mask]
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)).astype(jnp.float32), params)
    gap = exact - np.asarray(log_prob(rounded))[mask]
    size = np.abs(gap)
    return Effect(int(mask.sum()), float(size.mean()), float(size.max()), float(gap.mean()))
