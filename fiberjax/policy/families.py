"""The published families: what a `config.json` says of a policy, and how its tensors are called.

`FAMILIES` has one row for each `model_type`. A reader takes what decides the policy's shape out of
a `Description`, with the defaults that transformers has for the family, and refuses by name what
would change the model and is not understood. A writer says the same the other way round, in the
spelling that every version of transformers and vLLM reads. A new architecture is a row here, with
its table of tensors.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fiberjax.bounds import as_float32, shown
from fiberjax.policy.config import TransformerConfig
from fiberjax.policy.rope import ROPE_TYPES, yarn_attention_factor

# Fields of a policy that say how it is computed, not what it is: no folder decides them.
COMPUTED = ("compute_dtype", "remat", "attention")
_REQUIRED = object()

# Path of a parameter -> name of its tensors, and whether they are stored transposed, [out, in]. One
# `{}` for each leading axis of the parameter: the layer, the expert.
Tensors = Mapping[str, tuple[str, bool]]


class Description:
    """What a `config.json` says, taken key by key; what is wrong with it is collected.

    A key whose value is null counts as absent, as transformers has it.

    Attributes:
      values: the file's content, or a section of it.
      problems: what was refused so far, one line each.
    """

    def __init__(self, values: Mapping[str, Any], problems: list[str] | None = None):
        self.values = values
        self.problems: list[str] = [] if problems is None else problems

    def integer(self, name: str, default: Any = _REQUIRED, most: int = 2**31 - 1) -> int:
        """A positive integer of up to `most`; 1 stands in for one that is refused."""
        value = self._value(name, default)
        if type(value) is not int or not 1 <= value <= most:
            return self._refuse(name, value, f"a positive integer up to {most}", 1)
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A positive number; 1.0 stands in for one that is refused."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not 0 < as_float32(value) < math.inf:
            return self._refuse(name, value, "a positive number", 1.0)
        return float(value)

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """True or false; False stands in for what is refused."""
        value = self._value(name, default)
        return value if type(value) is bool else self._refuse(name, value, "true or false", False)

    def has(self, name: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(name) is not None

    def section(self, name: str) -> "Description":
        """A section without its nulls, empty where absent; its problems are this description's."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, Mapping):
            value = self._refuse(name, value, "a section", None)
        there = {key: of for key, of in (value or {}).items() if of is not None}
        return Description(there, self.problems)

    def only(self, name: str, supported: Any) -> None:
        """Refuses a key that is there with another value than the one supported."""
        value = self.values.get(name)
        if value is not None and value != supported:
            self.problems.append(f"{name} is {shown(value)}, only {supported!r} is supported")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def _refuse(self, name: str, value: Any, expected: str, instead: Any) -> Any:
        said = "missing" if value is _REQUIRED else shown(value)
        self.problems.append(f"{name} is {said}, expected {expected}")
        return instead


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture as it is published.

    Attributes:
      architecture: the class that transformers reads it with.
      read: a description -> the fields of `TransformerConfig` that it decides; those that it leaves
        out have their defaults.
      write: a policy -> what `config.json` says of it beside `model_type` and the like. It may
        leave out what the family cannot have: a policy is of the family if reading this gives it.
      tensors: of each parameter that a policy of the family may have.
    """

    architecture: str
    read: Callable[[Description], dict[str, Any]]
    write: Callable[[TransformerConfig], dict[str, Any]]
    tensors: Tensors


def shape_of(config: TransformerConfig) -> dict[str, Any]:
    """The fields of a policy that say what it is."""
    names = [field.name for field in dataclasses.fields(config)]
    return {name: getattr(config, name) for name in names if name not in COMPUTED}


def read(family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a policy that a `config.json` of this family decides, defaults included.

    Raises:
      ValueError: what is missing, malformed or not understood, each by its name.
    """
    description = Description(values)
    fields = family.read(description)
    if description.problems:
        raise ValueError("; ".join(description.problems))
    return shape_of(TransformerConfig(**fields))


def family_of(config: TransformerConfig) -> tuple[str, dict[str, Any]]:
    """The `model_type` of a policy, and what its `config.json` says.

    Raises:
      ValueError: no family has this shape; the message says in what the nearest one differs.
    """
    wanted = shape_of(config)
    nearest: tuple[int, str] | None = None
    for kind, family in FAMILIES.items():
        described = family.write(config)
        try:
            found = read(family, described)
        except ValueError:
            continue
        differing = [name for name in wanted if found[name] != wanted[name]]
        if not differing:
            return kind, described
        told = ", ".join(f"{name} = {found[name]!r}" for name in differing)
        nearest = min(nearest or (len(differing) + 1, ""), (len(differing), f"{kind}: {told}"))
    hint = f"; the nearest is {nearest[1]}" if nearest else ""
    raise ValueError(f"no published family has a policy of this shape{hint}")


def _common(
    found: Description, *, tied: bool = False, head_dim: int | None = None
) -> dict[str, Any]:
    """What every family has in common; `tied` and `head_dim` are what it takes as said."""
    width, heads = found.integer("hidden_size"), found.integer("num_attention_heads")
    # Of a model that is stored in few bits, or loaded in another way than its tensors say.
    found.only("quantization_config", None)
    return {
        "vocab_size": found.integer("vocab_size"),
        "embed_dim": width,
        "num_layers": found.integer("num_hidden_layers", most=1000),
        "num_heads": heads,
        "num_kv_heads": found.integer("num_key_value_heads", heads),
        "head_dim": found.integer("head_dim", head_dim or max(width // heads, 1)),
        "mlp_dim": found.integer("intermediate_size"),
        "norm_epsilon": found.number("rms_norm_eps", 1e-6),
        "tie_embeddings": found.flag("tie_word_embeddings", tied),
    }


def _write_common(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _rope(found: Description) -> dict[str, Any]:
    """Rotary positions, as `rope_theta` and `rope_scaling`, or all in `rope_parameters`."""
    given = found.section("rope_scaling" if found.values.get("rope_scaling") else "rope_parameters")
    theta = found.number("rope_theta", 10_000.0)
    return {
        "rope_theta": given.number("rope_theta", theta),
        **_rope_kind(found, given, found.values.get("original_max_position_embeddings")),
    }


def _rope_kind(found: Description, given: Description, original: Any = None) -> dict[str, Any]:
    """The kind of a section of rotary positions, and its numbers."""
    kind = given.values.get("rope_type", given.values.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        given.problems.append(f"rope type is {shown(kind)}, expected one of {list(ROPE_TYPES)}")
        return {}
    found.only("partial_rotary_factor", 1.0)
    given.only("partial_rotary_factor", 1.0)
    numbers = dict(ROPE_TYPES[kind])
    if kind == "yarn":
        numbers |= {"mscale": float, "mscale_all_dim": float}
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *numbers}
    for name in given.values.keys() - known:
        given.problems.append(f"{name} of rope type {kind!r} is not understood")
    values: dict[str, Any] = {}
    if "original_max_position_embeddings" in numbers:
        # Beside the section it counts more; without either, it is the longest sequence.
        if original is None:
            original = given.values.get("original_max_position_embeddings")
        longest = found.values.get("max_position_embeddings")
        said = Description({"original_max_position_embeddings": original or longest})
        said.problems = given.problems
        values["original_max_position_embeddings"] = said.integer(
            "original_max_position_embeddings"
        )
    if kind == "yarn":
        whole = values["original_max_position_embeddings"]
        longest = found.values.get("max_position_embeddings")
        there = type(longest) is int and 0 < longest < 2**31
        implied = longest / whole if there else _REQUIRED
        values["factor"] = given.number("factor", implied)
        scales = [
            given.number(name) if given.values.get(name) else None
            for name in ("mscale", "mscale_all_dim")
        ]
        inferred = yarn_attention_factor(values["factor"], *scales)
        values["attention_factor"] = given.number("attention_factor", inferred)
        values["beta_fast"] = given.number("beta_fast", 32.0)
        values["beta_slow"] = given.number("beta_slow", 1.0)
        values["truncate"] = given.flag("truncate", True)
    for name in numbers.keys() - values.keys() - {"mscale", "mscale_all_dim"}:
        values[name] = given.number(name)
    scaling = tuple((name, values[name]) for name in ROPE_TYPES[kind])
    return {"rope_type": kind, "rope_scaling": scaling}


def _write_rope(config: TransformerConfig) -> dict[str, Any]:
    """Rotary positions in the older spelling, which the newer versions read too."""
    written: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.rope_type != "default":
        numbers = dict(config.rope_scaling)
        written["rope_scaling"] = {"rope_type": config.rope_type, **numbers}
        if config.rope_type == "yarn":  # The factor is checked against it.
            original = numbers["original_max_position_embeddings"]
            written["max_position_embeddings"] = int(numbers["factor"] * original)
    return written


def _windows(kinds: Sequence[str], window: int) -> dict[str, Any]:
    """Layers by their kind; where none slides, there is no window."""
    return {"layer_pattern": tuple(kinds), "sliding_window": window if "sliding" in kinds else 0}


def _layer_types(found: Description, num_layers: int) -> list[str] | None:
    """The kind of each layer as `layer_types` lists them; None where it does not."""
    listed = found.values.get("layer_types")
    if listed is None:
        return None
    kinds = {"full_attention": "full", "sliding_attention": "sliding"}
    if not isinstance(listed, list) or not all(kind in list(kinds) for kind in listed):
        found.problems.append(f"layer_types is {shown(listed)}, expected kinds of {list(kinds)}")
        return None
    if len(listed) != num_layers:
        found.problems.append(f"layer_types names {len(listed)} layers, expected {num_layers}")
        return None
    return [kinds[kind] for kind in listed]


def _write_layer_types(config: TransformerConfig) -> list[str]:
    return ["sliding_attention" if slides else "full_attention" for slides in config.sliding]


def _llama(found: Description) -> dict[str, Any]:
    found.only("hidden_act", "silu")
    found.only("attention_bias", False)
    found.only("mlp_bias", False)
    return _common(found) | _rope(found)


def _write_llama(config: TransformerConfig) -> dict[str, Any]:
    return _write_common(config) | _write_rope(config) | {"hidden_act": "silu"}


def _mistral(found: Description) -> dict[str, Any]:
    found.only("hidden_act", "silu")
    found.only("layer_types", None)
    # Null is no window; without the key there is one.
    windowed = found.values.get("sliding_window", 4096) is not None
    window = found.integer("sliding_window", 4096) if windowed else 0
    return _common(found) | _rope(found) | _windows(["sliding" if windowed else "full"], window)


def _write_mistral(config: TransformerConfig) -> dict[str, Any]:
    return _write_llama(config) | {"sliding_window": config.sliding_window or None}


def _qwen_windows(found: Description, num_layers: int) -> dict[str, Any]:
    """Layers from `max_window_layers` on slide, or those that `layer_types` lists."""
    kinds = _layer_types(found, num_layers)
    if not found.flag("use_sliding_window", False):
        if kinds and "sliding" in kinds:
            found.problems.append("layer_types lists sliding layers, but use_sliding_window is off")
        return {}
    if kinds is None:
        first = found.values.get("max_window_layers", 28)
        if type(first) is not int or first < 0:
            found.problems.append(f"max_window_layers is {shown(first)}, expected 0 or more")
            return {}
        kinds = ["sliding" if layer >= first else "full" for layer in range(num_layers)]
    return _windows(kinds, found.integer("sliding_window", 4096))


def _write_qwen(config: TransformerConfig) -> dict[str, Any]:
    window: dict[str, Any] = {"use_sliding_window": any(config.sliding)}
    if any(config.sliding):
        window |= {
            "sliding_window": config.sliding_window,
            "layer_types": _write_layer_types(config),
            # What older versions read in place of the list.
            "max_window_layers": config.sliding.index(True),
        }
    return _write_llama(config) | window


def _qwen2(found: Description) -> dict[str, Any]:
    found.only("hidden_act", "silu")
    common = _common(found)
    window = _qwen_windows(found, common["num_layers"])
    return common | _rope(found) | window | {"qkv_bias": True}


def _qwen3(found: Description) -> dict[str, Any]:
    found.only("hidden_act", "silu")
    found.only("attention_bias", False)
    common = _common(found, head_dim=128)
    window = _qwen_windows(found, common["num_layers"])
    return common | _rope(found) | window | {"qk_norm": True}


def _qwen3_moe(found: Description) -> dict[str, Any]:
    found.only("hidden_act", "silu")
    found.only("attention_bias", False)
    found.only("mlp_only_layers", [])
    found.only("decoder_sparse_step", 1)
    found.only("layer_types", None)
    common = _common(found)
    windowed = found.flag("use_sliding_window", False)
    window = found.integer("sliding_window", 4096) if windowed else 0
    count = "num_local_experts" if found.has("num_local_experts") else "num_experts"
    return {
        **common,
        **_rope(found),
        **_windows(["sliding" if windowed else "full"], window),
        "mlp_dim": found.integer("moe_intermediate_size", 768),
        "num_experts": found.integer(count, 128),
        "experts_per_token": found.integer("num_experts_per_tok", 8),
        "norm_topk_prob": found.flag("norm_topk_prob", False),
        "qk_norm": True,
    }


def _write_qwen3_moe(config: TransformerConfig) -> dict[str, Any]:
    own: dict[str, Any] = {
        "moe_intermediate_size": config.mlp_dim,
        "num_experts": config.num_experts or None,
        "num_experts_per_tok": config.experts_per_token or None,
        "norm_topk_prob": config.norm_topk_prob,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
        "use_sliding_window": any(config.sliding),
        "sliding_window": config.sliding_window or None,
    }
    return _write_llama(config) | own


def _gemma3(found: Description) -> dict[str, Any]:
    found.only("hidden_activation", "gelu_pytorch_tanh")
    found.only("attention_bias", False)
    found.only("attn_logit_softcapping", None)
    found.only("final_logit_softcapping", None)
    found.only("use_bidirectional_attention", False)
    common = _common(found, tied=True, head_dim=256)
    num_layers = common["num_layers"]
    kinds = _layer_types(found, num_layers)
    if kinds is None:
        every = found.integer("sliding_window_pattern", 6)
        kinds = ["full" if (layer + 1) % every == 0 else "sliding" for layer in range(num_layers)]
    return {
        **common,
        **_windows(kinds, found.integer("sliding_window", 4096)),
        **_gemma3_rope(found, "sliding" in kinds),
        "activation": "gelu_tanh",
        "norm_offset": True,
        "post_norms": True,
        "qk_norm": True,
        "query_pre_attn_scalar": found.number("query_pre_attn_scalar", 256.0),
        "scale_embeddings": True,
    }


def _gemma3_rope(found: Description, slides: bool) -> dict[str, Any]:
    """Two bases: by a section for each kind of layer, or beside each other."""
    both = found.section("rope_parameters")
    for name in both.values.keys() - {"full_attention", "sliding_attention"}:
        found.problems.append(f"rope_parameters.{name} is not understood")
    full, sliding = both.section("full_attention"), both.section("sliding_attention")
    sliding.only("rope_type", "default")
    theta, local = found.number("rope_theta", 1e6), found.number("rope_local_base_freq", 1e4)
    scaled = found.section("rope_scaling") if found.has("rope_scaling") else full
    return {
        "rope_theta": full.number("rope_theta", theta),
        "local_rope_theta": sliding.number("rope_theta", local) if slides else 0.0,
        **_rope_kind(found, scaled),
    }


def _write_gemma3(config: TransformerConfig) -> dict[str, Any]:
    scalar = config.query_pre_attn_scalar
    own = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "sliding_window": config.sliding_window or None,
        "layer_types": _write_layer_types(config),
        # What older versions read in place of the list.
        "sliding_window_pattern": len(config.layer_pattern),
        "rope_local_base_freq": config.local_rope_theta or None,
    }
    return _write_common(config) | _write_rope(config) | own


_ATTENTION: Tensors = {
    f"layers/attention/{name}/{ours}": (f"model.layers.{{}}.self_attn.{name}_proj.{theirs}", t)
    for name in "qkvo"
    for ours, theirs, t in (("kernel", "weight", True), ("bias", "bias", False))
}
_QK_NORMS: Tensors = {
    f"layers/attention/{name}/scale": (f"model.layers.{{}}.self_attn.{name}.weight", False)
    for name in ("q_norm", "k_norm")
}
_OUTER: Tensors = {
    "embed/kernel": ("model.embed_tokens.weight", False),
    "final_norm/scale": ("model.norm.weight", False),
    "head/kernel": ("lm_head.weight", False),
}
_MLP: Tensors = {
    f"layers/mlp/{name}/kernel": (f"model.layers.{{}}.mlp.{name}_proj.weight", True)
    for name in ("gate", "up", "down")
}
_NORMS: Tensors = {
    "layers/attention_norm/scale": ("model.layers.{}.input_layernorm.weight", False),
    "layers/mlp_norm/scale": ("model.layers.{}.post_attention_layernorm.weight", False),
}
_FOUR_NORMS: Tensors = {
    f"layers/{ours}/scale": (f"model.layers.{{}}.{theirs}_layernorm.weight", False)
    for ours, theirs in (
        ("attention_norm", "input"),
        ("attention_post_norm", "post_attention"),
        ("mlp_norm", "pre_feedforward"),
        ("mlp_post_norm", "post_feedforward"),
    )
}
_EXPERTS: Tensors = {
    "layers/experts/router/kernel": ("model.layers.{}.mlp.gate.weight", True),
    **{
        f"layers/experts/{name}/kernel": (
            f"model.layers.{{}}.mlp.experts.{{}}.{name}_proj.weight",
            True,
        )
        for name in ("gate", "up", "down")
    },
}
_DENSE: Tensors = {**_OUTER, **_NORMS, **_ATTENTION, **_QK_NORMS, **_MLP}

FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", _llama, _write_llama, _DENSE),
    "mistral": Family("MistralForCausalLM", _mistral, _write_mistral, _DENSE),
    "qwen2": Family("Qwen2ForCausalLM", _qwen2, _write_qwen, _DENSE),
    "qwen3": Family("Qwen3ForCausalLM", _qwen3, _write_qwen, _DENSE),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        _qwen3_moe,
        _write_qwen3_moe,
        {**_OUTER, **_NORMS, **_ATTENTION, **_QK_NORMS, **_EXPERTS},
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _gemma3,
        _write_gemma3,
        {**_OUTER, **_FOUR_NORMS, **_ATTENTION, **_QK_NORMS, **_MLP},
    ),
}
