"""Through the policy: log-probabilities of kept rollouts under a checkpoint, and gradients back.

The program is that of the run's updates, `train.forward`, in micro-batches of as many rows as the
run's own: what fitted there fits here. Rows are padded to a whole number of micro-batches, and
columns to the windows of the run, so that every iteration of a run has one shape.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fiberjax.analysis.policies import Policy
from fiberjax.layout import make_layout
from fiberjax.parallel import mesh
from fiberjax.policy import TokenOutputs, TransformerConfig, lora
from fiberjax.policy.lora import LoRA
from fiberjax.run.kept import Kept
from fiberjax.tasks.batches import left_padded
from fiberjax.train.forward import in_micro_batches, make_forward, outputs_and_pullback
from fiberjax.train.rollout import positions_of


class Through:
    """A policy over the rows of kept rollouts.

    Attributes:
      params: what is trained of the policy: all parameters, or the adapters.
    """

    def __init__(self, policy: Policy, kept: Kept):
        """Puts the rows onto the policy's mesh.

        Args:
          policy: of `load_policy`.
          kept: the rollouts.

        Raises:
          ValueError: the rollouts have no tokens, or such that the policy does not have, or prompts
            longer than its window.
        """
        experiment = policy.experiment
        self.params, self._base, self._mesh = policy.trained, policy.base, experiment.mesh
        rows = rows_of(kept, experiment.window.prompt, experiment.policy.vocab_size)
        self._rows, self._columns = kept.mask.shape
        per_row_shard = max(
            experiment.rollout.prompts
            * experiment.rollout.samples
            // mesh.row_shards(experiment.mesh)
            // (experiment.training.micro_batches * experiment.training.minibatches),
            1,
        )
        size = per_row_shard * mesh.row_shards(experiment.mesh)
        self._parts = -(-self._rows // size)
        self._whole = self._parts * size
        padded = tuple(self._padded(of) for of in rows)
        layout = make_layout(self._padded(kept.mask))
        self._arguments = mesh.place(experiment.mesh, (padded, layout), mesh.ROWS)
        self._static = _Static(
            experiment.policy,
            experiment.mesh,
            float(experiment.knobs.temperature),
            experiment.training.chunk,
            experiment.lora,
        )

    def log_prob(self, params: Any) -> np.ndarray:
        """The log-probability of every token, float32[R, C], nats; as the run's own."""
        found = _log_prob(self._static, self._parts, params, self._base, *self._arguments)
        return np.asarray(found)[: self._rows]

    def gradient(self, params: Any, coefficients: Any) -> Any:
        """`Σ cᵢ ∇ log π(i)`, of what is maximised; a pytree as the parameters.

        Args:
          params: where it is taken.
          coefficients: float32[R, C], one a token, constants.
        """
        padded = self._padded(np.asarray(coefficients, np.float32))
        placed = mesh.place(self._mesh, padded, mesh.ROWS)
        return _gradient(self._static, self._parts, params, self._base, *self._arguments, placed)

    def _padded(self, of: np.ndarray) -> np.ndarray:
        return np.pad(of, ((0, self._whole - self._rows), (0, 0)))


class _Static(NamedTuple):
    """What of a policy is static in a program."""

    config: TransformerConfig
    mesh: Mesh
    temperature: float
    chunk: int
    adapters: LoRA | None

    def forward(self, base: Any, layout: Any) -> Any:
        temperature = np.float32(self.temperature)
        whole = make_forward(
            self.config, self.mesh, layout, temperature, self.chunk, entropy_gradient=False
        )
        return lambda trained, rows: whole(lora.attached(self.adapters, base, trained), rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_prob(static: _Static, parts: int, params: Any, base: Any, rows: Any, layout: Any) -> Any:
    forward = static.forward(base, layout)
    return in_micro_batches(lambda part: forward(params, part).log_prob, rows, parts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradient(
    static: _Static,
    parts: int,
    params: Any,
    base: Any,
    rows: Any,
    layout: Any,
    coefficients: jax.Array,
) -> Any:
    _, pullback = outputs_and_pullback(static.forward(base, layout), params, rows, parts)
    loss = pullback(TokenOutputs(coefficients, jnp.zeros_like(coefficients)))
    return jax.tree.map(jnp.negative, loss)


def rows_of(kept: Kept, prompt: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and segment ids of the trajectories, each int32[R, P + C].

    Args:
      kept: the rollouts.
      prompt: P, tokens of a prompt at most, which is padded on the left.
      vocabulary: tokens that the policy knows.

    Raises:
      ValueError: the prompts' tokens are not known or too many, or a token is none of the policy's.
    """
    if kept.prompt_tokens is None:
        raise ValueError(
            "these rollouts hold no prompt_tokens: a policy can be asked only about trajectories "
            "whose tokens, and those of their prompts, are known; policy=None looks at the "
            "log-probabilities as they are given"
        )
    longest = max(map(len, kept.prompt_tokens), default=0)
    if longest > prompt:
        raise ValueError(
            f"a prompt of these rollouts has {longest} tokens; the policy's window holds {prompt}"
        )
    columns = kept.mask.shape[1]
    last = np.where(kept.mask, np.arange(columns) + 1, 0).max(axis=1)
    lengths = np.array([len(of) for of in kept.prompt_tokens])[:, None]
    asked = np.arange(prompt) >= prompt - lengths
    real = np.concatenate([asked, np.arange(columns) < last[:, None]], axis=1)
    real &= kept.mask.any(axis=1)[:, None]
    tokens = np.concatenate([left_padded(kept.prompt_tokens, prompt, 0), kept.tokens], axis=1)
    tokens = np.where(real, tokens, 0).astype(np.int32)
    if tokens.max(initial=0) >= vocabulary or tokens.min(initial=0) < 0:
        bad = int(tokens.max()) if tokens.min() >= 0 else int(tokens.min())
        raise ValueError(
            f"these rollouts have a token {bad}; the policy knows those from 0 to {vocabulary - 1}"
        )
    return tokens, positions_of(real), real.astype(np.int32)
