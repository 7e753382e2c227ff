"""From the config of an earlier version's run to one of today, with values that keep what it did.

A run folder's `config.json` carries the `version` that wrote it; without one it is 0. Whoever adds
an option, or gives a value another name, adds a row to `MIGRATIONS`: options that the older runs
lack, with the value that does what was done before there was a choice, and values by the name that
they have today. Where options became others, a function says so. Configs that are typed or shipped
take no part in this: theirs are all there, or are refused.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Migration:
    """What leads from one version to the next.

    Attributes:
      added: dotted path of an option that older runs lack -> what they did, as JSON.
      renamed: dotted path of an option -> its old values -> what they are called now.
      rewrite: changes a config in place, before the rest; None for nothing.
      rewritten: dotted paths that it sets for older runs, however they are set today.
      moved: name of a section -> its name from then on.
    """

    added: Mapping[str, Any]
    renamed: Mapping[str, Mapping[str, str]]
    rewrite: Callable[[dict[str, Any]], None] | None = None
    rewritten: tuple[str, ...] = ()
    moved: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _model_of_its_own(config: dict[str, Any]) -> None:
    """What `config.warm_start` and `config.tasks` said of a published model, in `config.model`.

    A tokenizer.json came with the texts of its control tokens, prompts were in no chat, and nothing
    was asked of the window.
    """
    tasks, warm_start, window = (config[name] for name in ("tasks", "warm_start", "window"))
    folder = warm_start.pop("weights")
    pad, end, begin = (tasks.pop(f"{name}_token") for name in ("pad", "eos", "bos"))
    overrides: dict[str, Any] = {}
    if folder:
        overrides["context"] = window["prompt"] + window["completion"]
    tokenizer = "tasks" if folder else "auto"
    if tasks["vocabulary"].endswith(".json"):
        tokenizer = tasks["vocabulary"]
        overrides |= {"pad": pad, "begin": begin, "end": [end]}
    config["model"] = {
        "folder": folder,
        "tokenizer": tokenizer,
        "overrides": overrides,
        "warm_start": bool(folder),
    }


def _columns_by_name(config: dict[str, Any]) -> None:
    """Every field's column, where those that differ stood alone."""
    names = ("prompt", "answer", "domain", "solution")
    config["tasks"]["columns"] = dict.fromkeys(names, "") | config["tasks"]["columns"]


def _exact_expressions(config: dict[str, Any]) -> None:
    """Layouts whose answers are expressions had the verifier `exact`."""
    layouts = config["tasks"]["layout"]
    if isinstance(layouts, str):
        layouts = [name.strip() for name in layouts.split(",")]
    expressions = {"math", "math500", "open_r1"}
    if config["tasks"]["verifier"] == "auto" and layouts and set(layouts) <= expressions:
        config["tasks"]["verifier"] = "exact"


def _all_of_a_gate(config: dict[str, Any]) -> None:
    """Some presets left out what was not theirs to choose, and had it at these values."""
    gate = config["gate"]
    if gate["name"] in ("fgh", "fiberpo", "fiberpo_domain"):
        config["gate"] = {**_UNNAMED, **gate}
    if gate["name"] == "importance":
        config["gate"] = {"pessimistic": False, "dual_clip": None, "recovery": False, **gate}


_UNNAMED: Mapping[str, Any] = {
    "lift": "plain",
    "signs": "token",
    "deviation": "log",
    "budget_scale": "none",
    "alpha": None,
    "upper_negative": None,
}


def _evaluated_as_sampled(config: dict[str, Any]) -> None:
    """Held-out prompts were sampled as those of training were."""
    for name in ("temperature", "top_k", "top_p"):
        config["evaluation"][name] = config["rollout"][name]


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        added={
            "levels": [["group", ""], ["domain", "domain"]],
            "optimizer.decay_all": True,
            "plugins": [],
            "tasks.pass_threshold": 1.0,
            "training.edge": "update",
            "training.kl_ratio_weight": False,
            "training.mismatch_floor": 0.5,
            "writers": ["jsonl", "tensorboard"],
        },
        renamed={"advantage": {"pass_at_k": "leave_one_out_max"}},
    ),
    Migration(added={"training.step_share": "none"}, renamed={}),
    Migration(
        added={
            "budget_control": {
                "kind": "none",
                "target": 0.0,
                "gain": 0.5,
                "end": 1.0,
                "largest": 100.0,
            },
            "policy.activation": "silu",
            "policy.experts_per_token": 0,
            "policy.layer_pattern": ["full"],
            "policy.local_rope_theta": 0.0,
            "policy.norm_offset": False,
            "policy.norm_topk_prob": False,
            "policy.num_experts": 0,
            "policy.post_norms": False,
            "policy.query_pre_attn_scalar": 0.0,
            "policy.rope_scaling": [],
            "policy.rope_type": "default",
            "policy.scale_embeddings": False,
            "policy.sliding_window": 0,
        },
        renamed={},
    ),
    Migration(
        added={
            "model.chat": "off",
            "model.examples": [],
            "model.stop": [],
            "model.system": "",
            "model.thinking": "auto",
        },
        renamed={},
        rewrite=_model_of_its_own,
        rewritten=("model.overrides", "model.tokenizer", "model.warm_start"),
    ),
    # Of one strict form until then.
    Migration(
        added={"training.unpaid_iterations": 0},
        renamed={"tasks.verifier": {"numeric": "strict_number"}},
    ),
    Migration(
        added={
            "lora": {
                "rank": 0,
                "alpha": 32.0,
                "targets": ["all-linear"],
                "base_dtype": "float32",
            },
        },
        renamed={},
    ),
    Migration(
        added={
            "checkpoint.best": "",
            "checkpoint.best_mode": "max",
            "evaluation.curve_prompts": 1,
            "evaluation.every": 0,
            "keep": {"samples": 2, "every": 0, "show_every": 0, "megabytes": 100.0},
            "stop": {"metric": "", "patience": 3, "min_delta": 0.0, "mode": "max"},
        },
        renamed={},
        rewrite=_evaluated_as_sampled,
        rewritten=("evaluation.temperature", "evaluation.top_k", "evaluation.top_p"),
    ),
    Migration(added={"rollout.resample": 0}, renamed={}),
    Migration(
        added={
            "tasks.duplicates": "keep",
            "tasks.keep": [],
            "tasks.layout": "",
            "tasks.too_long": "refuse",
        },
        renamed={"tasks.verifier": {"exact": "auto"}},
        rewrite=_columns_by_name,
    ),
    Migration(added={"training.router_replay": False}, renamed={}),
    # What a reward raised ended the run until then.
    Migration(
        added={
            "rewards": {
                "workers": 4,
                "seconds": 5.0,
                "megabytes": 1024.0,
                "failed": "stop",
                "format": "",
                "truncated": "score",
                "overlong_cache": 0,
                "overlong_from": 0,
                "golds": "skip",
                "shown": 0,
            },
            "tasks.verifiers": [],
        },
        renamed={},
        rewrite=_exact_expressions,
    ),
    Migration(added={"tasks.reasoning_gym": ""}, renamed={}),
    Migration(
        added={
            "turns": {"environment": "", "limit": 1, "reply": 0, "role": "user", "read": "last"},
        },
        renamed={},
    ),
    Migration(
        added={
            "rollout.slots": 0,
            "rollout.engine": "own",
            "server": {
                "url": "",
                "model": "",
                "folder": "",
                "reload": "/update_weights_from_disk",
                "reload_body": '{"model_path": "{folder}"}',
                "dtype": "bfloat16",
                "timeout": 600.0,
                "retries": 2,
                "concurrency": 64,
            },
        },
        renamed={},
    ),
    Migration(added={"training.nonfinite": "stop"}, renamed={}),
    Migration(added={"keep.rollouts": "", "keep.rollouts_megabytes": 500.0}, renamed={}),
    Migration(added={"diagnostics": {"every": 1}}, renamed={}),
    Migration(added={"rollout.lag": 0, "rollout.devices": 0}, renamed={}),
    Migration(
        added={"training.old_log_probs": "trainer", "training.old_log_probs_gap": 1e-3}, renamed={}
    ),
    Migration(added={"rollout.cache_dtype": ""}, renamed={}),
    Migration(added={"mesh.sequence": 1}, renamed={}),
    Migration(added={"training.target_kl": 0.0}, renamed={}),
    Migration(added={"budget_control.of": "budgets"}, renamed={}),
    Migration(added={}, renamed={}, moved={"budget_control": "control"}),
    Migration(
        added={},
        renamed={},
        rewrite=_all_of_a_gate,
        rewritten=tuple(f"gate.{name}" for name in _UNNAMED),
    ),
)
"""`MIGRATIONS[n]` leads from version n to n + 1."""

VERSION = len(MIGRATIONS)
"""Of the configs that runs are saved with today."""


def migrate(config: Mapping[str, Any], version: int) -> dict[str, Any]:
    """A saved config as one of today; a new dict.

    Args:
      config: as JSON gives it.
      version: that wrote it.

    Raises:
      ValueError: the version is not one of the past.

    >>> old = {"tasks": {"vocabulary": "ascii", "pad_token": "", "eos_token": "", "bos_token": ""}}
    >>> old["tasks"] |= {"verifier": "numeric", "columns": {}}
    >>> old |= {"warm_start": {"weights": "Qwen"}, "window": {"prompt": 8, "completion": 8}}
    >>> old |= {"rollout": {"temperature": 1.0, "top_k": 0, "top_p": 1.0}, "training": {}}
    >>> old |= {"budget_control": {}, "gate": {"name": "ppo"}}
    >>> old |= {"checkpoint": {}, "evaluation": {}, "mesh": {}}
    >>> migrate(old, 3)["model"]["folder"]
    'Qwen'
    """
    if type(version) is not int or not 0 <= version <= VERSION:
        raise ValueError(f"it is of version {version!r}; this program reads 0 to {VERSION}")
    migrated = copy.deepcopy(dict(config))
    for migration in MIGRATIONS[version:]:
        if migration.rewrite is not None:
            migration.rewrite(migrated)
        for before, after in migration.moved.items():
            migrated[after] = migrated.pop(before)
        for path, value in migration.added.items():
            of, name = section(migrated, path)
            of[name] = copy.deepcopy(value)
        for path, names in migration.renamed.items():
            of, name = section(migrated, path)
            of[name] = names.get(of[name], of[name])
    return migrated


def added_since(version: int) -> tuple[str, ...]:
    """The options that a version lacked, as dotted paths of today.

    >>> [path for path in added_since(0) if "control" in path]
    ['control', 'control.of']
    """
    found: list[str] = []
    for migration in MIGRATIONS[version:]:
        for before, after in migration.moved.items():
            found = [re.sub(rf"^{before}(?=\.|$)", after, path) for path in found]
        found += [*migration.added, *migration.rewritten]
    return tuple(found)


def section(config: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The section that holds a dotted path, and the name of the option in it."""
    *sections, name = path.split(".")
    for section in sections:
        config = config[section]
    return config, name
