"""Losses of verl and TRL, and FiberPO's equations in PyTorch: `tests/data/peers_torch.npz`.

    python -m pip install torch==2.13.0 trl==1.16.0
    python -m pip install --no-deps verl==0.9.1
    python -m pip install omegaconf hydra-core tensordict==0.10.0 codetiming dill ray torchdata
    python tests/peers/torch_losses.py

Runs in an environment of its own, without fiberjax or JAX. verl's and TRL's own functions are
called on the batch of `batch.py`, in float64; gradients are autograd's, with respect to every
token's log-probability. The file holds `<name>/loss`, `<name>/gradient` and what the loss logs for
each of them, so that the tests need neither framework.
"""

import functools
import pathlib
import types
from collections import defaultdict
from importlib.metadata import version
from typing import Any

import batch as common
import numpy as np
import torch
from trl import GRPOTrainer
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

AGGREGATIONS = (
    *("token-mean", "token-sum"),
    *("seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"),
)
VERL_LOSSES: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
    "vanilla": (AGGREGATIONS, {}),
    "gspo": (("token-mean", "seq-mean-token-mean"), {}),
    "sapo": (("seq-mean-token-mean",), {}),
    "geo_mean": (("token-mean",), {}),  # It reads no mode.
    "cispo": (("token-mean",), {}),
    "dppo_tv": (("token-mean",), {"clip_ratio_low": 0.02, "clip_ratio_high": 0.03}),
    "dppo_kl": (("token-mean",), {"clip_ratio_low": 0.003, "clip_ratio_high": 0.003}),
}
TRL_LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "grpo_delta": {"loss_type": "grpo", "delta": common.DUAL_CLIP},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dapo": {"loss_type": "dapo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1 + common.CLIP_HIGH},
    "sapo": {"loss_type": "sapo"},
    "grpo_sequence": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "dapo_sequence": {"loss_type": "dapo", "importance_sampling_level": "sequence"},
}


def verl_loss(
    name: str, mode: str, data: dict[str, torch.Tensor], **options: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """One of verl's policy losses and what it logs; a scalar and a dict."""
    values = {
        "clip_ratio_low": common.CLIP_LOW,
        "clip_ratio_high": common.CLIP_HIGH,
        "clip_ratio_c": common.DUAL_CLIP,
        **options,
    }
    config = ActorConfig(
        strategy="fsdp", rollout_n=common.SAMPLES, ppo_micro_batch_size_per_gpu=1, **values
    )
    return core_algos.get_policy_loss_fn(name)(
        old_log_prob=data["old_log_prob"],
        log_prob=data["log_prob"],
        advantages=data["advantage"],
        response_mask=data["mask"],
        loss_agg_mode=mode,
        config=config,
    )


def trl_loss(
    data: dict[str, torch.Tensor], **options: Any
) -> tuple[torch.Tensor, dict[str, float]]:
    """TRL's GRPO loss, the log-probabilities given, and what it logs; a scalar and a dict."""
    log_prob, mask = data["log_prob"], data["mask"]
    values = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_high": common.CLIP_HIGH,
        "delta": None,
        **options,
    }
    one = types.SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x)
    trainer = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_prob, 0 * log_prob, None),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        accelerator=one,
        args=types.SimpleNamespace(
            delta=values["delta"],
            steps_per_generation=1,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
        ),
        aux_loss_enabled=False,
        beta=0.0,
        current_gradient_accumulation_steps=1,
        epsilon_low=common.CLIP_LOW,
        epsilon_high=values["epsilon_high"],
        importance_sampling_level=values["importance_sampling_level"],
        loss_type=values["loss_type"],
        max_completion_length=common.LENGTH,
        model=types.SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
    )
    ids = torch.zeros_like(mask)
    loss = GRPOTrainer._compute_loss(
        trainer,
        None,
        {
            "prompt_ids": ids[:, :1],
            "prompt_mask": ids[:, :1] + 1,
            "completion_ids": ids,
            "completion_mask": mask,
            "advantages": data["advantage"][:, 0],
            "old_per_token_logps": data["old_log_prob"],
            "num_items_in_batch": mask.sum(),
        },
    )
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def verl_advantages(reward: np.ndarray, group: np.ndarray) -> dict[str, np.ndarray]:
    """verl's advantages of one reward a row, each [B]."""
    found = {}
    for name, estimator, options in (
        ("grpo", "grpo", {}),
        ("dr_grpo", "grpo", {"norm_adv_by_std_in_grpo": False}),
        ("rloo", "rloo", {}),
    ):
        advantage, _ = core_algos.get_adv_estimator_fn(estimator)(
            torch.tensor(reward)[:, None], torch.ones(len(reward), 1), group, **options
        )
        found[name] = advantage[:, 0].numpy()
    return found


def aggregate(drift: torch.Tensor, budget: float, size: int) -> torch.Tensor:
    """One drift and its budget: it passes, falls back with slope `−k`, is 0; a scalar."""
    if drift.abs() <= budget:
        return drift
    if drift.abs() >= (1 + 1 / size) * budget:
        return 0 * drift
    return torch.sign(drift) * (size + 1) * budget - size * drift


def fiberpo(
    levels: tuple[str, ...], pessimistic: bool, data: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Minus the objective of FiberPO's hierarchy, cell by cell; a scalar, and nothing logged.

    FiberPO: arXiv 2604.03044, eqs. 1 to 5; the hierarchy: the recursion of docs/gates.md.
    """
    epsilon = common.FIBERPO["epsilon"]
    log_ratio = data["log_prob"] - data["old_log_prob"]
    parents = {"group": common.GROUP, "domain": common.DOMAIN}
    tokens = [log_ratio[row][data["mask"][row] > 0] for row in range(common.ROWS)]
    # A token that has not moved belongs to the plus channel, in its value and in its gradient.
    upward = [t >= 0 for t in tokens]
    drift = [
        [torch.where(up, t, 0).mean() for t, up in zip(tokens, upward, strict=True)],
        [torch.where(up, 0, -t).mean() for t, up in zip(tokens, upward, strict=True)],
    ]
    cells: list[list[list[torch.Tensor]]] = [drift]  # level, channel, cell
    for level in levels[1:]:
        parent, below = parents[level], cells[-1]
        children = [np.flatnonzero(parent == c) for c in range(parent.max() + 1)]
        cells.append([[torch.stack([b[i] for i in c]).mean() for c in children] for b in below])
    total = torch.zeros((), dtype=torch.float64)
    for row, values in enumerate(tokens):
        log_weight, cell, size = 0.0, row, len(values)
        for k, level in enumerate(levels):
            up = parents[levels[k + 1]][cell] if k + 1 < len(levels) else None
            for channel, s in enumerate((1, -1)):
                above = cells[k + 1][channel][up] if up is not None else 0.0
                residual = cells[k][channel][cell] - above
                log_weight += s * aggregate(residual, common.FIBERPO[level][channel], size)
            if up is not None:
                cell, size = int(up), int((parents[levels[k + 1]] == up).sum())
        for t, value in enumerate(values):
            s = 1 if value >= 0 else -1
            own, opposite = (drift[c][row] for c in ((0, 1) if s > 0 else (1, 0)))
            fiber = s * (s * value - own).clamp(-epsilon, epsilon)
            fiber = fiber - s * (-opposite).clamp(-epsilon, epsilon)
            advantage = data["advantage"][row, t]
            product = torch.exp(log_weight + fiber) * advantage
            if pessimistic:
                product = torch.minimum(product, torch.exp(value) * advantage)
            total = total - product / len(values) / common.ROWS
    return total, {}


def main() -> None:
    """Runs every loss and saves the results."""
    arrays = common.make()
    data = {name: torch.tensor(np.asarray(x, np.float64)) for name, x in arrays.items()}
    results: dict[str, Any] = {}

    def record(name: str, loss: Any) -> None:
        leaf = data["log_prob"].clone().requires_grad_()
        value, metrics = loss({**data, "log_prob": leaf})
        (gradient,) = torch.autograd.grad(value, leaf)
        results[f"{name}/loss"], results[f"{name}/gradient"] = value.item(), gradient.numpy()
        results.update({f"{name}/metrics/{key}": number for key, number in metrics.items()})

    for name, (modes, options) in VERL_LOSSES.items():
        for mode in modes:
            record(f"verl/{name}/{mode}", functools.partial(verl_loss, name, mode, **options))
    for name, options in TRL_LOSSES.items():
        record(f"trl/{name}", functools.partial(trl_loss, **options))
    every = ("trajectory", "group", "domain")
    for pessimistic in (False, True):
        for depth in (1, 2, 3):
            name = f"torch/fiberpo_{depth}{'_pessimistic' if pessimistic else ''}"
            record(name, functools.partial(fiberpo, every[:depth], pessimistic))
    # A row without any token, as `mask_truncated_completions` leaves one.
    data["mask"][-1] = 0
    record("trl/grpo_with_an_empty_row", trl_loss)
    mode = "seq-mean-token-mean"
    record(f"verl/vanilla_with_an_empty_row/{mode}", functools.partial(verl_loss, "vanilla", mode))
    for name, advantage in verl_advantages(common.reward(), common.GROUP).items():
        results[f"verl/advantage/{name}"] = advantage
    alone = verl_advantages(common.reward(), np.arange(common.ROWS))
    results["verl/advantage_of_groups_of_one"] = alone["grpo"]
    results["versions"] = [f"{name} {version(name)}" for name in ("torch", "trl", "verl")]
    folder = pathlib.Path(__file__).parents[1] / "data"
    np.savez_compressed(folder / "peers_torch.npz", **results)
    for name in results:
        if name.endswith("/loss"):
            print(f"{name:44s} {results[name]:+.6f}")


if __name__ == "__main__":
    main()
