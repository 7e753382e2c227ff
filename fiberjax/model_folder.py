"""What the folder of a published model decides in a config, and what of it is refused.

`with_folder` writes the folder's shape into a config, before an experiment is built of it; the
checks are the experiment's, before anything compiles.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fiberjax import options
from fiberjax.policy import TransformerConfig, weights
from fiberjax.tasks.published import context_length


def with_folder(config: ConfigDict, overridden: Collection[str] = ()) -> ConfigDict:
    """The config with the shape of the policy that `config.model.folder` says; a new one.

    Args:
      config: as `configs/` makes it; without a folder it is given back as it is.
      overridden: dotted paths of what was set on purpose, such as "policy.num_layers". That the
        folder must not contradict; any other value of a shape makes place for the folder's.

    Raises:
      ValueError: the folder is no checkpoint of a known architecture, or contradicts what was set.
    """
    shape = read_shape(config.get("model", {}).get("folder", ""))
    if not shape:
        return config
    completed = config.copy_and_resolve_references()
    with completed.ignore_type(), completed.unlocked():
        for name, value in shape.items():
            if f"policy.{name}" not in overridden:
                completed.policy[name] = value
    check_shape(completed.policy, shape, config.model.folder)
    return completed


def without_files(config: ConfigDict) -> ConfigDict:
    """The config with nothing to read: no model's folder, no file of rows; a new one.

    Of the shape that `config.policy` has, with what is asked of a published tokenizer taken back.
    For plans, which need neither weights nor rows.
    """
    bare = config.copy_and_resolve_references()
    plain = {"folder": "", "tokenizer": "auto", "chat": "auto", "system": "", "thinking": "auto"}
    with bare.unlocked():
        bare.model.update(plain | {"examples": (), "stop": (), "overrides": ConfigDict()})
        bare.tasks.update({"file": "", "test_file": "", "layout": "", "verifier": "auto"})
        bare.tasks.update({"keep": (), "verifiers": ()})
        bare.tasks.columns = ConfigDict(dict.fromkeys(bare.tasks.columns, ""))
        bare.rewards.format = ""
    return bare


def read_shape(folder: str) -> dict[str, Any]:
    """What a folder says of the policy's shape, by the names of its options; {} without a folder.

    Raises:
      ValueError: it is no checkpoint of a known architecture.
    """
    try:
        return weights.read_shape(folder) if folder else {}
    except ValueError as error:
        raise ValueError(f"config.model.folder: {error}") from None


def check_shape(values: Any, shape: Mapping[str, Any], folder: str) -> None:
    """Refuses options of the policy that a folder contradicts; names each with both values."""
    differences = [
        f"config.policy.{name} is {values[name]!r}, the folder has {value!r}"
        for name, value in shape.items()
        if name in values
        and _plain(values[name]) != _plain(value)
        and not (name == "vocab_size" and values[name] == 0)
    ]
    if differences:
        raise ValueError(
            f"config.model.folder = {folder!r} says the policy's shape: {'; '.join(differences)}"
        )


def _plain(value: Any) -> Any:
    """A value of an option, whether from JSON or not; numbers as they are computed with."""
    if isinstance(value, float):
        return float(np.float32(value))
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def check_model(
    model: options.Model, window: options.Window, warm_start: options.WarmStart
) -> None:
    """Refuses windows that the model was not made for, and a supervised phase nobody asked for."""
    if model.folder and warm_start.steps > 0 and not model.warm_start:
        raise ValueError(
            f"config.warm_start.steps = {warm_start.steps} would train the published weights of "
            "config.model.folder on the data's solutions before anything else: set "
            "config.warm_start.steps = 0, or config.model.warm_start = True where that is wanted"
        )
    try:
        longest = context_length(model)
    except ValueError as error:
        raise ValueError(f"config.model.folder = {model.folder!r}: {error}") from None
    whole = window.prompt + window.completion
    if longest is not None and whole > longest:
        raise ValueError(
            f"config.window.prompt + config.window.completion = {whole} tokens, and the model of "
            f"config.model.folder = {model.folder!r} was made for {longest} "
            "(max_position_embeddings)"
        )


def check_weights(directory: str, policy: TransformerConfig) -> None:
    """Refuses a published checkpoint that is missing or not of the policy's shape.

    Raises:
      ValueError: what differs.
    """
    try:
        weights.check(directory, policy)
    except ValueError as error:
        raise ValueError(f"config.model.folder: {error}") from None
