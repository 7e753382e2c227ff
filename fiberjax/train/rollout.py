"""Rollouts: prompts through the sampler and the verifiers, to completions with their rewards.

Each process does this for the rows that its devices hold; only rewards, lengths and prompt indices,
a few numbers a row, are exchanged later.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fiberjax import seeds
from fiberjax.parallel import mesh, shardings
from fiberjax.policy import Samples, TransformerConfig, cast_kernels, sample
from fiberjax.tasks import Domain, PromptBatch, Vocabulary, reward_completions
from fiberjax.train.engine import Draws, Engine


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
      log_kept: float32[R, C], log of the mass that truncated sampling kept, at most 0; nats. Added
        to `sampler_log_prob` it gives the log-probability before truncation.
      reward: float32[R].
      prompts: what was asked, one row a group.
      texts: the completions, decoded.
      held: int32[R], steps for which the row's place in a batch of the sampler was its own; None
        where nobody counted.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    mask: np.ndarray
    finished: np.ndarray
    sampler_log_prob: np.ndarray
    log_kept: np.ndarray
    reward: np.ndarray
    prompts: PromptBatch
    texts: list[str]
    held: np.ndarray | None = None

    @property
    def group_size(self) -> int:
        """G, completions a prompt."""
        return len(self.tokens) // len(self.prompts.prompts)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples completions of prompts on a mesh and rewards them.

    Attributes:
      config: shape of the policy.
      mesh: where it runs.
      vocabulary: decodes completions.
      domains: verify them.
      max_new_tokens: C.
      temperature: of the sampler.
      top_k: 0 for all tokens.
      top_p: 1.0 for all tokens.
      logit_noise: standard deviation of the noise on the logits; see `policy.sample`.
      max_rows: drawn at a time on each row shard; 0 for all. Not read with slots.
      seed: of every draw.
      greedy: takes the likeliest token, whatever temperature, top_k and top_p are.
      slots: rows decoded at a time on each row shard, which others follow into as they end; 0
        decodes all that are drawn at a time together.
      engine: who draws instead of the compiled loop; it knows no `logit_noise`.
    """

    config: TransformerConfig
    mesh: Mesh
    vocabulary: Vocabulary
    domains: Sequence[Domain]
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    logit_noise: float
    max_rows: int
    seed: int
    greedy: bool = False
    slots: int = 0
    engine: Engine | None = None

    def read(self, params: Any) -> Any:
        """Parameters as the sampler reads them; made once for all calls with the same parameters.

        In the compute dtype and gathered over `fsdp`; what is not split is passed on as it is. An
        engine has them pushed.
        """
        if self.engine is not None:
            self.engine.push(params)
            return None
        if self.mesh.shape["fsdp"] == 1:
            return params
        return _gathered_kernels(params, self.config, self.mesh)

    def __call__(
        self,
        params: Any,
        prompts: PromptBatch,
        *,
        samples: int,
        stream: int,
        step: int,
        batch: int = 0,
    ) -> Rollouts:
        """Draws `samples` completions of each prompt of this process.

        The draw of a row depends on (seed, stream, step, its place in the global batch) alone.

        Args:
          params: of `read`.
          prompts: this process's prompts.
          samples: G.
          stream: one of `seeds`.
          step: which call of that stream.
          batch: which batch of that step; its places follow those of the batch before.
        """
        tokens = np.repeat(prompts.tokens, samples, axis=0)
        prompt_mask = np.repeat(prompts.mask, samples, axis=0)
        shards = mesh.local_shards(self.mesh)
        per_shard = len(tokens) // len(shards)
        place = per_shard * shards.start + np.arange(len(tokens))
        place += batch * per_shard * mesh.row_shards(self.mesh)
        row_keys = functools.partial(seeds.row_keys, self.seed, stream, step)
        if self.engine is not None:
            drawn = self._asked(self.engine, tokens, prompt_mask, row_keys(place))
        else:
            drawn = self._drawn(params, tokens, prompt_mask, place, row_keys)
        drawn = cut_at_stops(self.vocabulary, drawn)
        mask = np.arange(self.max_new_tokens) < drawn.length[:, None]
        texts = [
            self.vocabulary.decode(row[:length])
            for row, length in zip(drawn.tokens, drawn.length, strict=True)
        ]
        real = np.concatenate([prompt_mask, mask], axis=1)
        return Rollouts(
            tokens=np.concatenate([tokens, drawn.tokens], axis=1),
            positions=positions_of(real),
            segment_ids=real.astype(np.int32),
            mask=mask,
            finished=drawn.finished,
            sampler_log_prob=drawn.log_prob,
            log_kept=drawn.log_kept,
            reward=reward_completions(self.domains, prompts, texts).reshape(-1),
            prompts=prompts,
            texts=texts,
            held=None if self.engine is not None else drawn.held,
        )

    def _drawn(
        self,
        params: Any,
        tokens: np.ndarray,
        prompt_mask: np.ndarray,
        place: np.ndarray,
        row_keys: Callable[[Any], jax.Array],
    ) -> Samples:
        """Completions of this process's rows by the compiled loop, on the host."""
        shards = mesh.local_shards(self.mesh)
        per_shard = len(tokens) // len(shards)
        size = rows_at_a_time(per_shard, 0 if self.slots else self.max_rows)
        num_parts = -(-per_shard // size)
        # One static shape: the last part is filled up with the first rows again.
        filled = np.resize(np.arange(len(tokens)), num_parts * size * len(shards))
        pending = []
        for part in filled.reshape(num_parts, -1):
            rows, mask, places = mesh.place(
                self.mesh,
                (tokens[part], prompt_mask[part], place[part].astype(np.int32)),
                mesh.ROWS,
            )
            pending.append(self.draw(params, rows, mask, row_keys(places)))
        return jax.tree.map(
            lambda *parts: np.concatenate(list(map(mesh.local_values, parts)))[: len(tokens)],
            *pending,
        )

    def _asked(
        self, engine: Engine, tokens: np.ndarray, prompt_mask: np.ndarray, keys: jax.Array
    ) -> Samples:
        """Completions of this process's rows by an engine; a row's seed is of its key."""
        numbers = np.asarray(jax.random.key_data(keys))[:, -1] & np.uint32(2**31 - 1)
        draws = Draws(
            max_new_tokens=self.max_new_tokens,
            vocab_size=self.config.vocab_size,
            end_ids=(*self.vocabulary.end_ids, *self.vocabulary.stop_ids),
            pad_id=self.vocabulary.pad_id,
            temperature=0.0 if self.greedy else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )
        prompts = [row[real].tolist() for row, real in zip(tokens, prompt_mask, strict=True)]
        return engine.complete(prompts, numbers.tolist(), draws)

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
            eos_id=(*self.vocabulary.end_ids, *self.vocabulary.stop_ids),
            pad_id=self.vocabulary.pad_id,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            logit_noise=self.logit_noise,
            greedy=self.greedy,
            slots=self.slots,
            placement=shardings.placement(self.mesh, self.config),
        )


def cut_at_stops(vocabulary: Vocabulary, drawn: Any) -> Any:
    """Completions up to the token with which a stop string is complete, as if they had ended there.

    A token is drawn from what stands before it alone, so that what is left was drawn as it would
    have been. Most tokens that complete a stop string have it within, and end the loop themselves;
    those that only end one were gone past.

    Args:
      vocabulary: knows the stop strings.
      drawn: `Samples` on the host; not changed.
    """
    stops = [
        vocabulary.stop_length(row[:length])
        for row, length in zip(drawn.tokens, drawn.length, strict=True)
    ]
    if all(stop is None for stop in stops):
        return drawn
    length = np.array(
        [of if stop is None else stop for of, stop in zip(drawn.length, stops, strict=True)],
        np.int32,
    )
    kept = np.arange(drawn.tokens.shape[1]) < length[:, None]
    return drawn._replace(
        tokens=np.where(kept, drawn.tokens, np.int32(vocabulary.pad_id)),
        log_prob=np.where(kept, drawn.log_prob, np.float32(0)),
        log_kept=np.where(kept, drawn.log_kept, np.float32(0)),
        length=length,
        finished=drawn.finished | [stop is not None for stop in stops],
    )


def rows_at_a_time(rows: int, max_rows: int) -> int:
    """How many of a shard's rows are drawn together: in the fewest parts, and these of one size.

    Args:
      rows: on the shard, at least 1.
      max_rows: the most drawn together; 0 for all.

    >>> rows_at_a_time(64, 64), rows_at_a_time(64, 40), rows_at_a_time(127, 64)
    (64, 32, 64)
    """
    if max_rows == 0:
        return rows
    num_parts = -(-rows // max_rows)
    return -(-rows // num_parts)


def positions_of(real: np.ndarray) -> np.ndarray:
    """Positions of left-padded sequences, from 0 at the first real token; int32[R, S]."""
    return np.maximum(np.cumsum(real, axis=1, dtype=np.int32) - 1, 0)


@functools.partial(jax.jit, static_argnames=("config", "device_mesh"))
def _gathered_kernels(params: Any, config: TransformerConfig, device_mesh: Mesh) -> Any:
    """Matrices in the compute dtype, whole over `fsdp`."""
    kept = shardings.sampling_shardings(device_mesh, params)
    return jax.lax.with_sharding_constraint(cast_kernels(params, config), kept)
