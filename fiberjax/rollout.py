"""Rollouts: prompts through the sampler and the verifiers, to the batches of the update.

One iteration samples G completions of each prompt, scores them, recomputes their log-probabilities
with the trainer (the old policy of every update that follows), and cuts the result into optimizer
batches of whole prompt groups. Each process does this for the rows that its devices hold; only
rewards, lengths and prompt indices, a few numbers a row, are exchanged.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from fiberjax import mesh, packing
from fiberjax.layout import STATE, Layout, make_layout, state_ids
from fiberjax.policy import Samples, TokenOutputs, TransformerConfig, cast_kernels, sample
from fiberjax.tasks import Domain, PromptBatch, Vocabulary, score
from fiberjax.update import Batch, batch_specs, make_forward

# Streams of randomness under one seed: no two phases ever share a key.
TRAINING, EVALUATION, PROFILE, INITIALISATION = range(4)


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Completions of prompts, this process's rows; a prompt's G completions stand together.

    Attributes:
      tokens: int32[R, P + C], prompt padded on the left, completion padded on the right.
      positions: int32[R, P + C], from 0 at the first prompt token.
      segment_ids: int32[R, P + C], 1 at tokens, 0 at padding.
      mask: bool[R, C], the completion's tokens, end of sequence included.
      finished: bool[R], whether the completion ended by itself.
      sampler_log_prob: float32[R, C], of the distribution sampled from; nats.
      reward: float32[R].
      prompts: what was asked, one row a group.
      texts: the completions, decoded.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    mask: np.ndarray
    finished: np.ndarray
    sampler_log_prob: np.ndarray
    reward: np.ndarray
    prompts: PromptBatch
    texts: list[str]

    @property
    def group_size(self) -> int:
        """G, completions a prompt."""
        return len(self.tokens) // len(self.prompts.prompts)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples completions of prompts on a mesh and scores them.

    Attributes:
      config: shape of the policy.
      mesh: where it runs.
      vocabulary: decodes completions.
      domains: verify them.
      max_new_tokens: C.
      temperature: of the sampler.
      top_k: 0 for all tokens.
      top_p: 1.0 for all tokens.
      max_rows: drawn at a time on each row shard; 0 for all.
      seed: of every draw.
    """

    config: TransformerConfig
    mesh: Mesh
    vocabulary: Vocabulary
    domains: Sequence[Domain]
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    max_rows: int
    seed: int

    def __call__(
        self, params: Any, prompts: PromptBatch, *, samples: int, stream: int, step: int
    ) -> Rollouts:
        """Draws `samples` completions of each prompt of this process.

        The draw of a row depends on (seed, stream, step, its place in the global batch) alone.

        Args:
          params: of the policy, on the mesh.
          prompts: this process's prompts.
          samples: G.
          stream: one of the module's streams.
          step: which call of that stream.
        """
        tokens = np.repeat(prompts.tokens, samples, axis=0)
        prompt_mask = np.repeat(prompts.mask, samples, axis=0)
        shards = mesh.local_shards(self.mesh)
        per_shard = len(tokens) // len(shards)
        place = per_shard * shards.start + np.arange(len(tokens))
        read = sampling_params(self.config, self.mesh, params)
        parts = np.split(np.arange(len(tokens)), num_parts(per_shard, self.max_rows))
        pending = []
        for part in parts:
            rows, mask = mesh.place(self.mesh, (tokens[part], prompt_mask[part]), mesh.ROWS)
            keys = row_keys(self.mesh, self.seed, stream, step, place[part])
            pending.append(self.draw(read, rows, mask, keys))
        drawn = jax.tree.map(
            lambda *parts: np.concatenate([mesh.local_values(part) for part in parts]), *pending
        )
        mask = np.arange(self.max_new_tokens) < drawn.length[:, None]
        ended = drawn.length - drawn.finished  # Text ends before the end of sequence.
        texts = [
            self.vocabulary.decode(row[:end]) for row, end in zip(drawn.tokens, ended, strict=True)
        ]
        real = np.concatenate([prompt_mask, mask], axis=1)
        return Rollouts(
            tokens=np.concatenate([tokens, drawn.tokens], axis=1),
            positions=positions_of(real),
            segment_ids=real.astype(np.int32),
            mask=mask,
            finished=drawn.finished,
            sampler_log_prob=drawn.log_prob,
            reward=score(self.domains, prompts, texts).reshape(-1),
            prompts=prompts,
            texts=texts,
        )

    def draw(
        self, params: Any, prompts: jax.Array, prompt_mask: jax.Array, keys: jax.Array
    ) -> Samples:
        """The compiled part of a call: one completion of each row; see `policy.sample`."""
        return sample(
            self.config,
            params,
            prompts,
            prompt_mask,
            keys,
            max_new_tokens=self.max_new_tokens,
            eos_id=self.vocabulary.eos_id,
            pad_id=self.vocabulary.pad_id,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            placement=mesh.placement(self.mesh, self.config),
        )


def num_parts(rows: int, max_rows: int) -> int:
    """Into how many equal parts the rows of a shard are cut so that none exceeds `max_rows`.

    >>> num_parts(64, 64), num_parts(64, 40), num_parts(64, 0)
    (1, 2, 1)
    """
    fits = (
        n for n in range(1, rows + 1) if rows % n == 0 and (rows // n <= max_rows or not max_rows)
    )
    return next(fits)


def sampling_params(config: TransformerConfig, device_mesh: Mesh, params: Any) -> Any:
    """Parameters as the sampler reads them: in the compute dtype, gathered over `fsdp`."""
    if device_mesh.shape["fsdp"] == 1:
        return params
    shardings = mesh.sampling_shardings(device_mesh, params)
    return jax.jit(lambda params: cast_kernels(params, config), out_shardings=shardings)(params)


def positions_of(real: np.ndarray) -> np.ndarray:
    """Positions of left-padded sequences, from 0 at the first real token; int32[R, S]."""
    return np.maximum(np.cumsum(real, axis=1, dtype=np.int32) - 1, 0)


def row_keys(device_mesh: Mesh, seed: int, stream: int, step: int, places: np.ndarray) -> jax.Array:
    """One PRNG key for each of this process's rows, by its place in the global batch."""

    def make(step: jax.Array, places: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
        return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)

    placed = mesh.place(device_mesh, places.astype(np.int32), mesh.ROWS)
    return jax.jit(make, out_shardings=NamedSharding(device_mesh, mesh.ROWS))(step, placed)


def make_score(config: TransformerConfig, device_mesh: Mesh, chunk: int, num_micro_batches: int):
    """Compiles the trainer's own log-probabilities; `(params, rollouts, temperature)` -> outputs.

    Returns:
      A function to `TokenOutputs` over the completion columns, float32[R, C] on the mesh.
    """

    def outputs(params: Any, rows: Any, layout: Layout, temperature: Any) -> TokenOutputs:
        forward = make_forward(config, device_mesh, layout, temperature, chunk)
        return mesh.in_micro_batches(lambda part: forward(params, part), rows, num_micro_batches)

    compiled = jax.jit(outputs, out_shardings=NamedSharding(device_mesh, mesh.ROWS))

    def score_rollouts(params: Any, rollouts: Rollouts, temperature: float) -> TokenOutputs:
        rows = (rollouts.tokens, rollouts.positions, rollouts.segment_ids)
        layout = mesh.place(device_mesh, make_layout(rollouts.mask), mesh.ROWS)
        return compiled(params, mesh.place(device_mesh, rows, mesh.ROWS), layout, temperature)

    return score_rollouts


def make_batches(
    device_mesh: Mesh,
    rollouts: Rollouts,
    *,
    advantage: np.ndarray,
    old_log_prob: np.ndarray,
    reference_log_prob: np.ndarray,
    sample_weight: np.ndarray,
    num_minibatches: int,
    num_domains: int,
    states: bool = False,
    pack_micro_batches: int = 0,
) -> list[Batch]:
    """Cuts rollouts into optimizer batches of whole prompt groups, on the mesh.

    Batch j takes this process's groups j, n + j, 2n + j, ...: prompts are drawn in random order, so
    every batch holds every domain in proportion, on every process.

    Args:
      device_mesh: from `mesh.make_mesh`.
      rollouts: this process's rows.
      advantage: float32[R].
      old_log_prob: float32[R, C], nats.
      reference_log_prob: float32[R, C], nats.
      sample_weight: float32[R, C].
      num_minibatches: n, divides the groups of a process.
      num_domains: size of the table of the domain level.
      pack_micro_batches: packs several trajectories into a row; a micro-batch keeps the rows it
        has when the unpacked batch is split into this many. 0 leaves one trajectory a row.
      states: whether the gate couples the tokens of a state, so that the layout must name them.

    Returns:
      n batches of one static shape.
    """
    size = rollouts.group_size
    group = np.arange(len(rollouts.tokens)) // size
    domain = mesh.gather(device_mesh, rollouts.prompts.domain)
    batches = []
    for j in range(num_minibatches):
        chosen = group % num_minibatches == j
        mask = rollouts.mask[chosen]
        completion = rollouts.tokens[chosen, -mask.shape[1] :] if states else None
        layout = _batch_layout(
            device_mesh, mask, completion, size, domain, num_minibatches, j, num_domains
        )
        by_token: Any = np.repeat(advantage[chosen, None], mask.shape[1], axis=1)
        batch = Batch(
            tokens=rollouts.tokens[chosen],
            positions=rollouts.positions[chosen],
            segment_ids=rollouts.segment_ids[chosen],
            layout=layout,
            advantage=by_token,
            old_log_prob=old_log_prob[chosen],
            reference_log_prob=reference_log_prob[chosen],
            sample_weight=sample_weight[chosen],
        )
        if pack_micro_batches:
            batch = pack_rows(device_mesh, batch, pack_micro_batches)
        batches.append(mesh.place(device_mesh, batch, batch_specs(batch)))
    return batches


def pack_rows(device_mesh: Mesh, batch: Batch, micro_batches: int) -> Batch:
    """This process's rows of a batch, packed into as many rows a shard as on all processes.

    A batch that needs all its rows stays as it is: columns of prompts then cost no logits.
    """
    shards = len(mesh.local_shards(device_mesh))
    needed = np.full(shards, packing.rows_needed(batch, shards))
    rows = len(batch.tokens) // shards
    most = int(mesh.gather(device_mesh, needed).max())
    size = packing.bucket(most, rows, rows // micro_batches)
    if size == rows:
        return batch
    return packing.pack(batch, rows=size, shards=shards)


def _batch_layout(
    device_mesh: Mesh,
    mask: np.ndarray,
    completion: np.ndarray | None,
    group_size: int,
    domain: np.ndarray,
    num_minibatches: int,
    j: int,
    num_domains: int,
) -> Layout:
    """The layout of minibatch j: this process's rows, and the tables that all processes share.

    Given the completions' tokens, it names the states they were sampled in.
    """
    processes = len(domain) * group_size // (len(mask) * num_minibatches)
    per_process = len(domain) // processes
    in_batch = np.arange(len(domain)) % per_process % num_minibatches == j
    mask = mesh.gather(device_mesh, mask)
    row = np.arange(len(mask))
    states = None
    if completion is not None:
        completion = mesh.gather(device_mesh, completion)
        trajectory = np.broadcast_to(row[:, None], mask.shape)
        states = state_ids(completion, mask, row // group_size, trajectory)
    layout = make_layout(
        mask,
        {"group": row // group_size, "domain": domain[in_batch]},
        num_cells={"domain": num_domains},
        axis_names={"group": mesh.ROW_AXES, STATE: mesh.ROW_AXES},
        state_id=states,
    )
    return mesh.local_layout(device_mesh, layout)
