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
from fiberjax.tasks import Domain, Examples, PromptBatch, Vocabulary, reward_completions
from fiberjax.tasks.encoded import ONE_TURN
from fiberjax.tasks.environments import Turns
from fiberjax.tasks.examples import Example
from fiberjax.train.engine import Draws, Engine
from fiberjax.train.turns import play, spoken


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Completions of prompts, this process's rows; a prompt's G completions stand together.

    Attributes:
      tokens: int32[R, P + C], prompt padded on the left, completion padded on the right. Of
        several turns, the completion is the policy's turns and the replies between them.
      positions: int32[R, P + C], from 0 at the first prompt token.
      segment_ids: int32[R, P + C], 1 at tokens, 0 at padding.
      mask: bool[R, C], the policy's tokens, the end of sequence of each turn included.
      turn: int32[R, C], which of its turns they are of, from 0; 0 elsewhere too.
      finished: bool[R], whether the last turn ended by itself.
      sampler_log_prob: float32[R, C], of the distribution sampled from; nats.
      log_kept: float32[R, C], log of the mass that truncated sampling kept, at most 0; nats. Added
        to `sampler_log_prob` it gives the log-probability before truncation.
      reward: float32[R].
      replies_cut: int32[R], replies that the window or the vocabulary did not hold whole.
      prompts: what was asked, one row a group.
      texts: what verifiers read, decoded.
      failed: bool[R], whether the reward's function failed for it; None where none can.
      replies_failed: bool[R], whether the environment failed in it; None where nobody answers.
      held: int32[R], steps for which the row's place in a batch of the sampler was its own; None
        where nobody counted.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    mask: np.ndarray
    turn: np.ndarray
    finished: np.ndarray
    sampler_log_prob: np.ndarray
    log_kept: np.ndarray
    reward: np.ndarray
    replies_cut: np.ndarray
    prompts: PromptBatch
    texts: list[str]
    failed: np.ndarray | None = None
    replies_failed: np.ndarray | None = None
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
      max_new_tokens: C, of all turns and replies.
      temperature: of the sampler.
      top_k: 0 for all tokens.
      top_p: 1.0 for all tokens.
      logit_noise: standard deviation of the noise on the logits; see `policy.sample`.
      max_rows: drawn at a time on each row shard; 0 for all. Not read with slots.
      seed: of every draw.
      greedy: takes the likeliest token, whatever temperature, top_k and top_p are.
      turns: how an episode goes.
      slots: rows decoded at a time on each row shard, which others follow into as they end; 0
        decodes all that are drawn at a time together.
      cache_dtype: what keys and values are kept in; see `policy.sample`.
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
    turns: Turns = ONE_TURN
    slots: int = 0
    cache_dtype: str = ""
    engine: Engine | None = None

    @property
    def turn_tokens(self) -> int:
        """The tokens of one turn, at most: C where there is but one."""
        return self.turns.tokens(self.max_new_tokens)

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
        """Draws `samples` completions of each prompt of this process, and pays them.

        The draw of a row depends on (seed, stream, step, its place in the global batch) alone.

        Args:
          params: of `read`.
          prompts: this process's prompts.
          samples: G.
          stream: one of `seeds`.
          step: which call of that stream.
          batch: which batch of that step; its places follow those of the batch before.
        """
        drawn = self.begin(params, prompts, samples=samples, stream=stream, step=step, batch=batch)
        return self.pay(drawn())

    def begin(
        self,
        params: Any,
        prompts: PromptBatch,
        *,
        samples: int,
        stream: int,
        step: int,
        batch: int = 0,
    ) -> Callable[[], Rollouts]:
        """Begins a call, and waits for nothing that the compiled loop does.

        Arguments as a call's. Where an episode has one turn, `params` may be donated as soon as
        this returns.

        Returns:
          What waits for the draws and gives the rollouts, not paid yet (`pay`): their rewards are
          NaN. An engine is asked only then.
        """
        tokens = np.repeat(prompts.tokens, samples, axis=0)
        prompt_mask = np.repeat(prompts.mask, samples, axis=0)
        shards = mesh.local_shards(self.mesh)
        per_shard = len(tokens) // len(shards)
        place = per_shard * shards.start + np.arange(len(tokens))
        place += batch * per_shard * mesh.row_shards(self.mesh)
        size = rows_at_a_time(per_shard, 0 if self.slots else self.max_rows)

        def keys(turn: int) -> Callable[[jax.Array], jax.Array]:
            return functools.partial(seeds.row_keys, self.seed, seeds.of_turn(stream, turn), step)

        # What later turns read; of one turn, nothing holds the parameters on the devices.
        several = params if self.turns.environment is not None else None
        first: list[Samples] = []
        if self.engine is None:
            first = self._dispatched(params, tokens, prompt_mask, place, keys(0), size, whole=True)

        def draw(of: np.ndarray, real: np.ndarray, rows: np.ndarray, turn: int) -> Samples | None:
            if self.engine is not None:
                return self._asked(self.engine, of, real, keys(turn)(place[rows]))
            parts = first
            if turn > 0:
                parts = self._dispatched(
                    several, of, real, place[rows], keys(turn), size, whole=False
                )
            return self._read(parts, len(rows))

        def finish() -> Rollouts:
            examples: list[Example] = []
            if self.turns.environment is not None:
                known = Examples(self.domains)
                examples = [known[i] for i in np.repeat(prompts.prompt_index, samples)]
            played = play(
                draw,
                self.turns,
                self.vocabulary,
                examples,
                tokens,
                prompt_mask,
                self.max_new_tokens,
            )
            real = np.concatenate([prompt_mask, played.real], axis=1)
            return Rollouts(
                tokens=np.concatenate([tokens, played.tokens], axis=1),
                positions=positions_of(real),
                segment_ids=real.astype(np.int32),
                mask=played.mask,
                turn=played.turn,
                finished=played.finished,
                sampler_log_prob=played.log_prob,
                log_kept=played.log_kept,
                reward=np.full(len(tokens), np.nan, np.float32),
                replies_cut=played.cut,
                replies_failed=played.failed,
                prompts=prompts,
                texts=[],
                held=None if self.engine is not None else played.held,
            )

        return finish

    def pay(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts of `begin` with what verifiers read of them, and their rewards."""
        width = rollouts.prompts.tokens.shape[1]
        tokens = rollouts.tokens[:, width:]
        texts = texts_of(self.turns, self.vocabulary, tokens, rollouts.mask, rollouts.turn)
        rewards = reward_completions(self.domains, rollouts.prompts, texts)
        return dataclasses.replace(
            rollouts,
            texts=texts,
            reward=rewards.reward.reshape(-1),
            failed=rewards.failed.reshape(-1),
        )

    def _dispatched(
        self,
        params: Any,
        tokens: np.ndarray,
        prompt_mask: np.ndarray,
        place: np.ndarray,
        keys: Callable[[jax.Array], jax.Array],
        size: int,
        *,
        whole: bool,
    ) -> list[Samples]:
        """One turn of some of this process's rows, on the devices; all processes take part.

        Args:
          params: of `read`.
          tokens: int32[N, W], padded on the left.
          prompt_mask: bool[N, W].
          place: int[N], of each row in the global batch.
          keys: from places on the mesh to the rows' keys.
          size: rows of a shard that are drawn together.
          whole: whether every process has as many rows as any other.

        Returns:
          Parts for `_read`, in their order; none where no process has a row.
        """
        held = size * len(mesh.local_shards(self.mesh))
        num_parts = -(-len(tokens) // held)
        if not whole:
            parts = np.full(len(mesh.local_shards(self.mesh)), num_parts)
            num_parts = int(mesh.gather(self.mesh, parts).max())
        if num_parts == 0:
            return []
        if len(tokens) == 0:  # Others have rows left: any will do.
            tokens, place = np.zeros((1, tokens.shape[1]), np.int32), np.zeros(1, place.dtype)
            prompt_mask = np.ones(tokens.shape, bool)
        # One static shape: the last part is filled up with the first rows again.
        filled = np.resize(np.arange(len(tokens)), num_parts * held)
        pending = []
        for part in filled.reshape(num_parts, -1):
            rows, mask, places = mesh.place(
                self.mesh,
                (tokens[part], prompt_mask[part], place[part].astype(np.int32)),
                mesh.ROWS,
            )
            pending.append(self.draw(params, rows, mask, keys(places)))
        return pending

    def _read(self, pending: list[Samples], count: int) -> Samples | None:
        """The first `count` rows of what was dispatched, on the host; None of no part."""
        if not pending:
            return None
        drawn = jax.tree.map(
            lambda *parts: np.concatenate(list(map(mesh.local_values, parts)))[:count], *pending
        )
        return cut_at_stops(self.vocabulary, drawn)

    def _asked(
        self, engine: Engine, tokens: np.ndarray, prompt_mask: np.ndarray, keys: jax.Array
    ) -> Samples | None:
        """One turn of some rows by an engine; a row's seed is of its key."""
        if len(tokens) == 0:
            return None
        numbers = np.asarray(jax.random.key_data(keys))[:, -1] & np.uint32(2**31 - 1)
        draws = Draws(
            max_new_tokens=self.turn_tokens,
            vocab_size=self.config.vocab_size,
            end_ids=(*self.vocabulary.end_ids, *self.vocabulary.stop_ids),
            pad_id=self.vocabulary.pad_id,
            temperature=0.0 if self.greedy else self.temperature,
            top_k=0 if self.greedy else self.top_k,
            top_p=1.0 if self.greedy else self.top_p,
        )
        prompts = [row[real].tolist() for row, real in zip(tokens, prompt_mask, strict=True)]
        return cut_at_stops(self.vocabulary, engine.complete(prompts, numbers.tolist(), draws))

    def draw(
        self, params: Any, prompts: jax.Array, prompt_mask: jax.Array, keys: jax.Array
    ) -> Samples:
        """The compiled part of a call: one turn of each row; see `policy.sample`."""
        return sample(
            self.config,
            params,
            prompts,
            prompt_mask,
            keys,
            max_new_tokens=self.turn_tokens,
            eos_id=(*self.vocabulary.end_ids, *self.vocabulary.stop_ids),
            pad_id=self.vocabulary.pad_id,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            logit_noise=self.logit_noise,
            greedy=self.greedy,
            slots=self.slots,
            cache_dtype=self.cache_dtype,
            placement=shardings.placement(self.mesh, self.config),
        )


def texts_of(
    turns: Turns,
    vocabulary: Vocabulary,
    tokens: np.ndarray,
    mask: np.ndarray,
    turn: np.ndarray,
) -> list[str]:
    """What verifiers read of each row; "" of one without a token.

    Args:
      turns: how an episode goes.
      vocabulary: of the policy.
      tokens: int32[R, C], behind the prompt.
      mask: bool[R, C], the policy's.
      turn: int32[R, C], which of its turns.
    """
    return [
        turns.text(spoken(vocabulary, turns.role, *row))
        for row in zip(tokens, mask, turn, strict=True)
    ]


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
