"""Losses of google-tunix on the batch of `batch.py`: `tests/data/peers_tunix.npz`.

    uv venv tunix && uv pip install --python tunix/bin/python google-tunix==0.1.7
    tunix/bin/python tests/peers/tunix_losses.py

Runs in an environment of its own, without fiberjax. tunix's registered losses run the model
themselves: the model here is a table whose entries are the log-probabilities, so that gradients are
those with respect to every token's log-probability. tunix computes in float32.
"""

import pathlib
import types
from importlib.metadata import version
from typing import Any

import batch as common
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.rl import algo_core, function_registry
from tunix.rl.common import TrainExample

TOKEN, PAD, EOS = 0, 5, 6
MODES = (
    *("token-mean", "sequence-mean-token-mean"),
    *("sequence-mean-token-scale", "seq-mean-token-sum"),
)
LOSSES: dict[str, dict[str, Any]] = {
    **{f"grpo/{mode}": {"loss_agg_mode": mode} for mode in MODES},
    "grpo_dual_clip/token-mean": {"epsilon_c": common.DUAL_CLIP},
    "gspo-token/sequence-mean-token-mean": {
        "loss_algo": "gspo-token",
        "loss_agg_mode": "sequence-mean-token-mean",
    },
    "ppo/token-mean": {"loss": "ppo"},
    "ppo_dual_clip/token-mean": {"loss": "ppo", "epsilon_c": common.DUAL_CLIP},
}


class Table(nnx.Module):
    """Two words, of which every token is the first: `log p` and `log(1 − p)` are their logits."""

    def __init__(self, log_prob: np.ndarray):
        self.log_prob = nnx.Param(jnp.asarray(log_prob, jnp.float32))

    def __call__(self, tokens: Any, positions: Any, cache: Any, attention_mask: Any) -> Any:
        del tokens, positions, attention_mask
        log_prob = self.log_prob[...]
        logits = jnp.stack([log_prob, jnp.log1p(-jnp.exp(log_prob))], axis=-1)
        # The logits of a column are those of the next token.
        return jnp.pad(logits, ((0, 0), (0, 1), (0, 0))), cache


def main() -> None:
    """Runs every loss and saves the results."""
    data = common.make()
    mask = data["mask"]
    # Padding must have a probability below one; no loss reads it.
    model = Table(np.where(mask, data["log_prob"], -1))
    example = TrainExample(
        prompt_ids=jnp.full((common.ROWS, 1), TOKEN),
        prompt_mask=jnp.ones((common.ROWS, 1), bool),
        completion_ids=jnp.full(mask.shape, TOKEN),
        completion_mask=jnp.asarray(mask),
        advantages=jnp.asarray(data["advantage"][:, 0], jnp.float32),
        ref_per_token_logps=None,
        old_per_token_logps=jnp.asarray(data["old_log_prob"], jnp.float32),
    )
    results: dict[str, Any] = {}
    for name, given in LOSSES.items():
        options = {"loss": "grpo", "loss_agg_mode": "token-mean", "loss_algo": "grpo", **given}
        loss = function_registry.get_policy_loss_fn(options["loss"])
        config = types.SimpleNamespace(
            **{"beta": 0.0, "temperature": 1.0, "epsilon": common.CLIP_LOW},
            **{"epsilon_low": common.CLIP_LOW, "epsilon_high": common.CLIP_HIGH},
            **{"epsilon_c": None, "entropy_coef": None},
        )
        vars(config).update(options)
        if options["loss"] == "ppo":
            rows = example.replace(advantages=jnp.asarray(data["advantage"], jnp.float32))
        else:
            rows = example

        def value(model: Table, loss: Any = loss, rows: Any = rows, config: Any = config) -> Any:
            return loss(model, rows, config, PAD, EOS)[0]

        total, gradient = nnx.value_and_grad(value)(model)
        results[f"tunix/{name}/loss"] = float(total)
        results[f"tunix/{name}/gradient"] = np.asarray(gradient["log_prob"][...])
        print(f"{name:44s} {float(total):+.6f}")
    results["advantage"] = algo_core.compute_advantages(common.reward(), common.SAMPLES)
    results["versions"] = [f"{name} {version(name)}" for name in ("google-tunix", "jax")]
    folder = pathlib.Path(__file__).parents[1] / "data"
    np.savez_compressed(folder / "peers_tunix.npz", **results)


if __name__ == "__main__":
    main()
