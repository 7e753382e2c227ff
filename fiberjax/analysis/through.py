"""Through the policy: log-probabilities of kept rollouts under a checkpoint, and gradients back.

The program is that of the run's updates, `train.forward`, in as many parts as the run's own cuts a
batch into: what fitted there fits here. Rows stand at their places in the global batch and columns
fill the run's windows, so that every iteration of a run has one shape.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fiberjax.parallel import mesh
from fiberjax.policy import TokenOutputs, TransformerConfig, lora
from fiberjax.policy.lora import LoRA
from fiberjax.policy.row_parts import in_parts, split_rows
from fiberjax.run.kept import Kept
from fiberjax.run.policies import Policy, rows_of
from fiberjax.train import passes
from fiberjax.train.batch import Rows
from fiberjax.train.forward import make_forward


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
          ValueError: the rollouts have no tokens, or some that the policy does not know.
        """
        experiment = policy.experiment
        rows, mask, self._places = rows_of(kept, experiment)
        self._mask, self._mesh = kept.mask, experiment.mesh
        self._shape = mask.shape
        self._parts = experiment.training.micro_batches * experiment.training.minibatches
        self._rows = mesh.place(self._mesh, Rows(*rows), mesh.ROWS)
        self.params, self._base = split(experiment.lora, policy.params)
        self._static = _Static(
            experiment.policy,
            experiment.mesh,
            float(experiment.knobs.temperature),
            experiment.training.chunk,
            experiment.lora,
            mask.shape[1],
        )

    def log_prob(self, params: Any) -> np.ndarray:
        """The log-probability of every token, float32[R, C], nats; 0 off the mask.

        Args:
          params: in place of those of the policy.
        """
        found = _log_prob(self._static, self._parts, params, self._base, self._rows)
        columns = self._mask.shape[1]
        return np.where(self._mask, np.asarray(found)[self._places, :columns], np.float32(0))

    def gradient(self, params: Any, coefficients: np.ndarray) -> Any:
        """`Σ cᵢ ∇ log π(i)`, of what is maximised; a pytree as the parameters.

        Args:
          params: where it is taken.
          coefficients: float32[R, C], one a token, constants.
        """
        whole = np.zeros(self._shape, np.float32)
        whole[self._places, : self._mask.shape[1]] = np.where(self._mask, coefficients, 0)
        placed = mesh.place(self._mesh, whole, mesh.ROWS)
        return _gradient(self._static, self._parts, params, self._base, self._rows, placed)


class _Static(NamedTuple):
    """What of a policy is static in a program."""

    config: TransformerConfig
    mesh: Mesh
    temperature: float
    chunk: int
    adapters: LoRA | None
    window: int

    def forward(self, base: Any) -> Any:
        temperature = np.float32(self.temperature)
        whole = make_forward(
            self.config,
            self.mesh,
            self.window,
            temperature,
            self.chunk,
            entropy_gradient=False,
        )
        return lambda trained, rows: whole(lora.attached(self.adapters, base, trained), rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_prob(static: _Static, parts: int, params: Any, base: Any, rows: Rows) -> Any:
    forward = static.forward(base)
    return in_parts(lambda part: forward(params, part).log_prob, rows, parts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradient(
    static: _Static,
    parts: int,
    params: Any,
    base: Any,
    rows: Rows,
    coefficients: jax.Array,
) -> Any:
    cotangents = TokenOutputs(coefficients, jnp.zeros_like(coefficients))
    parted = jax.tree.map(lambda x: split_rows(x, parts), cotangents)
    forward = static.forward(base)
    _, descent = passes.back(
        forward, params, rows, lambda index, _: jax.tree.map(lambda x: x[index], parted), parts
    )
    return passes.negated(descent)


def split(adapters: LoRA | None, params: Any) -> tuple[Any, Any]:
    """What is trained of a policy's parameters, and what adapters adapt; undoes `lora.attached`.

    Args:
      adapters: which; None where all parameters are trained.
      params: of the policy, adapters among them.

    Returns:
      The adapters and the rest; all parameters and None without adapters.
    """
    if adapters is None:
        return params, None

    def part(tree: Any, own: bool) -> Any:
        found = {}
        for name, of in tree.items():
            if isinstance(of, dict):
                inside = part(of, own)
                if inside:
                    found[name] = inside
            elif name.startswith("lora_") == own:
                found[name] = of / adapters.scale if name == "lora_b" else of
        return found

    return part(params, True), part(params, False)
