"""One iteration: rollouts, rewards, advantages, optimizer batches, and the updates on them."""

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fiberjax import mismatch, seeds
from fiberjax.experiment import Experiment
from fiberjax.parallel import compiled, mesh, shardings
from fiberjax.run.ahead import Drawn
from fiberjax.run.keeping import Keeper, Trained
from fiberjax.run.measured import (
    Paid,
    credit_metrics,
    joined,
    mismatch_metrics,
    rollout_metrics,
    turn_metrics,
)
from fiberjax.run.nonfinite import Made
from fiberjax.tasks import PromptBatch, PromptStream
from fiberjax.tasks.curriculum import pass_rate_shares
from fiberjax.tasks.rewards import shaping
from fiberjax.train import resample
from fiberjax.train.batch import Batch
from fiberjax.train.diagnose import Diagnose, make_diagnose
from fiberjax.train.forward import make_log_probs
from fiberjax.train.minibatches import make_batches
from fiberjax.train.rollout import Rollouts
from fiberjax.train.update import (
    NOT_FINITE,
    SKIPPED,
    STOPPED,
    TERMS,
    Metrics,
    Step,
    TrainState,
    make_step,
)


class Collected(NamedTuple):
    """The rollouts of an iteration, ready for its updates.

    Attributes:
      batches: the optimizer batches that hold a group; their old log-probabilities are those of the
        policy that is about to learn, which sampled them where there is no lag.
      prompts: int[groups] of each of them, its prompts on all processes.
      minibatches: of each of them, its number among all.
      completions: that were sampled.
      metrics: of the rollouts; numbers by name.
      seconds: that it took.
      trained: what the batches are made of, on the host; None where it is not kept.
    """

    batches: list[Batch]
    prompts: list[np.ndarray]
    minibatches: list[int]
    completions: int
    metrics: dict[str, float]
    seconds: float
    trained: Trained | None = None


class Scored(NamedTuple):
    """What is being computed of the completions that an iteration trains on, on the devices.

    Attributes:
      own: waits for the log-probabilities of the policy that is about to learn, float32[R, C],
        nats; and for its routes, where they are replayed. See `forward.make_log_probs`.
      reference: waits for those of the reference policy; None without a KL term.
    """

    own: Callable[[], Any]
    reference: Callable[[], Any] | None


class Trainer:
    """One iteration after the other: rollouts, then epochs × minibatches updates on them.

    Attributes:
      experiment: what is run.
      ahead: what waits to be trained on, sampled and rewarded, in the order of iterations; at most
        `config.rollout.lag` batches between two iterations.
    """

    def __init__(
        self,
        experiment: Experiment,
        reference: Any,
        *,
        watch: Callable[[int, Rollouts], None] | None = None,
        updates: Callable[[int, Sequence[Made]], None] | None = None,
        keeper: Keeper | None = None,
    ):
        """Prepares the compiled functions.

        Args:
          experiment: what to run.
          reference: parameters of the policy that a KL penalty holds to, which with adapters are
            their base; None with neither.
          watch: is given every iteration, counted from 1, and this process's rollouts of it.
          updates: is given every iteration, counted from 1, and its updates in their order.
          keeper: keeps the rollouts of iterations.
        """
        self.experiment = experiment
        self._watch = watch
        self._updates = updates
        self._keeper = keeper
        self._reference = reference
        self.ahead: tuple[Drawn, ...] = ()
        self._sampled: Callable[[Any], Any] | None = None
        self._sampler = experiment.training_sampler()
        self._step: Step = make_step(
            experiment.policy,
            experiment.mesh,
            experiment.gate,
            experiment.optimizer,
            experiment.step,
            jax.tree.map(lambda leaf: leaf.sharding, experiment.abstract_state()),
        )
        self._diagnose: Diagnose = make_diagnose(experiment.mesh, experiment.gate)
        self._parts = experiment.training.micro_batches * experiment.training.minibatches
        scores = functools.partial(
            make_log_probs, experiment.policy, experiment.mesh, experiment.training.chunk
        )
        self._log_probs: Callable = scores(
            self._parts,
            packed=experiment.training.packing,
            routes=experiment.training.router_replay,
        )
        self._log_probs_of_few: Callable = scores(1)
        self._estimate: Callable = jax.jit(experiment.estimate, static_argnums=2)
        self._learning_rate: Callable = jax.jit(jax.vmap(experiment.schedule))
        self._compiling = compiled.seconds()

    def again(
        self,
        experiment: Experiment,
        reference: Any,
        *,
        logit_noise: float = 0.0,
        sampled: Callable[[Any], Any] | None = None,
    ) -> "Trainer":
        """The trainer of another experiment, by the functions that this one has compiled.

        Args:
          experiment: has the same policy, mesh, gate, estimator, optimizer and step; may have
            another seed, data, knobs and numbers of iterations, prompts, samples and epochs.
          reference: as `Trainer` takes it.
          logit_noise: makes its sampler disagree with the policy; see `policy.sample`.
          sampled: parameters -> those that its sampler computes with; the same without it.

        Raises:
          ValueError: it differs in what is compiled; names in what.
        """
        for name in ("policy", "mesh", "gate", "estimate", "optimizer", "step"):
            if getattr(experiment, name) != getattr(self.experiment, name):
                raise ValueError(f"the experiments differ in {name!r}, which is compiled")
        mine, others = self.experiment.training, experiment.training
        if (mine.minibatches, mine.micro_batches) != (others.minibatches, others.micro_batches):
            raise ValueError("the experiments differ in their minibatches, which are compiled")
        other = copy.copy(self)
        other.experiment, other._reference = experiment, reference
        other._watch = other._updates = other._keeper = None
        other.ahead, other._sampled = (), sampled
        other._sampler = experiment.training_sampler(logit_noise=logit_noise)
        other._learning_rate = jax.jit(jax.vmap(experiment.schedule))
        other._compiling = compiled.seconds()
        return other

    def iterate(
        self, state: TrainState, stream: PromptStream, iteration: int, factor: float = 1.0
    ) -> tuple[TrainState, dict[str, float]]:
        """Runs one iteration; the new state, and its metrics as numbers.

        Under `config.rollout.lag` it trains on what waits longest in `ahead`, and samples the batch
        that many iterations on: that one is dispatched before the updates, and its completions are
        decoded and rewarded while these run.

        Args:
          state: donated.
          stream: gives the prompts and learns their pass rates.
          iteration: counted from 0; decides every random draw.
          factor: of the gate's budgets or of steps; see `run.control`.
        """
        began = time.monotonic()
        lag, iterations = self.experiment.rollout.lag, self.experiment.iterations
        params = self.experiment.whole(state.params, self._reference)
        last = max(iteration, min(iteration + lag, iterations - 1))
        missing = list(range(iteration + len(self.ahead), last + 1))
        # Sampling that reads the parameters again must be over before the updates donate them.
        at_once = (self._several and not self._apart) or last == iteration
        late = missing.pop() if missing and not at_once else None
        scored = None
        for number in missing:
            draw = self._draw(params, stream, number, version=iteration, score=lag == 0)
            drawn, scored = draw()
            self.ahead = (*self.ahead, drawn)
        drawn, begun = self.ahead[0], None
        if late is not None:
            scored = self._score(params, drawn.rollouts, drawn.present)
            begun = self._draw(params, stream, late, version=iteration, score=False)
        collected = self._prepared(params, drawn, scored)
        self.ahead = self.ahead[1:]

        def meanwhile() -> None:
            if begun is not None:
                self.ahead = (*self.ahead, begun()[0])

        collected = collected._replace(seconds=time.monotonic() - began)
        return self.update(state, collected, iteration, factor, meanwhile, fresh=True)

    def collect(self, params: Any, stream: PromptStream, iteration: int) -> Collected:
        """The rollouts that an iteration trains on, sampled now; see `iterate`.

        Args:
          params: what is trained of the policy that samples.
          stream: gives the prompts and learns their pass rates.
          iteration: that will train on them; decides every random draw.
        """
        began = time.monotonic()
        params = self.experiment.whole(params, self._reference)
        drawn, scored = self._draw(params, stream, iteration, version=iteration, score=True)()
        collected = self._prepared(params, drawn, scored)
        return collected._replace(seconds=time.monotonic() - began)

    def _prepared(self, params: Any, drawn: Drawn, scored: Scored | None) -> Collected:
        """The optimizer batches of what was drawn, under the policy that is about to learn.

        Args:
          params: of that policy.
          drawn: by it or by an earlier one.
          scored: of `_score`; None scores now.
        """
        iteration, credited, present = drawn.iteration, drawn.credit, drawn.present
        if self._watch is not None:
            self._watch(iteration + 1, drawn.first)
        if self.experiment.rollout.shuffle_rewards:
            credited = credited.copy()
            credited[present] = shuffled(credited[present], self.experiment.seed, iteration)
        made = self._batches(params, drawn.rollouts, credited, present, scored)
        keeping = self._keeper is not None and self._keeper.due(iteration + 1)
        trained = None
        if keeping and made.trained is not None:
            trained = made.trained._replace(version=drawn.version)
        return made._replace(
            completions=drawn.completions,
            metrics=dict(drawn.metrics) | {"rollout/lag": iteration - drawn.version} | made.metrics,
            trained=trained,
        )

    def _draw(
        self, params: Any, stream: PromptStream, iteration: int, *, version: int, score: bool
    ) -> Callable[[], tuple[Drawn, Scored | None]]:
        """Begins to sample what an iteration trains on.

        One batch of prompts; under `config.rollout.resample` one after the other, until groups
        enough have rewards that differ.

        Args:
          params: of the policy.
          stream: gives the prompts and learns their pass rates.
          iteration: that trains on it, counted from 0; decides every random draw.
          version: iterations finished by the policy.
          score: whether its log-probabilities are begun before rewards are computed.

        Returns:
          What waits for the draws and the rewards; gives the batch, and what was begun of its
          scores.
        """
        options, target = self.experiment.rollout, stream.target
        score = score and options.resample <= 1 and self.experiment.rewards.truncated != "mask"
        read = self._sampler.read(self._pushed(params))
        prompts = next(stream)

        def begin(prompts: PromptBatch, batch: int) -> Callable[[], Rollouts]:
            return self._sampler.begin(
                read,
                prompts,
                samples=options.samples,
                stream=seeds.TRAINING,
                step=iteration,
                batch=batch,
            )

        first = begin(prompts, 0)
        if not self._several:
            read = None  # Not held while the updates run.

        def finish() -> tuple[Drawn, Scored | None]:
            asked, tried, waits = prompts, np.zeros(0, np.int64), first
            drawn: list[Rollouts] = []
            parts: list[Paid] = []
            scored = None
            while True:
                unpaid = waits()
                if score:
                    scored = self._score(params, unpaid, np.ones(0, bool))
                drawn.append(self._sampler.pay(unpaid))
                parts.append(self._paid(drawn[-1]))
                index = mesh.gather(self.experiment.mesh, asked.prompt_index)
                stream.observe(index, parts[-1].reward.reshape(-1, options.samples))
                tried = np.concatenate([tried, index])
                paid = Paid(*map(np.concatenate, zip(*parts, strict=True)))
                found = resample.differ(paid.credit, options.samples, paid.counted).sum()
                if len(drawn) >= options.resample or found >= options.prompts:
                    break
                asked = stream.further(len(drawn), tried)
                waits = begin(asked, len(drawn))
            metrics = self._measured(drawn, paid, target, stream)
            rollouts, credited, present = drawn[0], paid.credit, paid.counted
            if options.resample > 1:
                rollouts, credited, present, kept = self._kept(drawn, paid)
                metrics |= kept
            completions = len(paid.reward)
            return (
                Drawn(
                    iteration, version, rollouts, drawn[0], credited, present, completions, metrics
                ),
                scored,
            )

        return finish

    @property
    def _apart(self) -> bool:
        """Whether devices of its own sample."""
        return self.experiment.sampling_mesh != self.experiment.mesh

    @property
    def _several(self) -> bool:
        """Whether sampling reads the parameters again after the first draw."""
        several_turns = self.experiment.turns.environment is not None
        return self.experiment.rollout.resample > 1 or several_turns

    def _pushed(self, params: Any) -> Any:
        """Parameters as the sampler computes with them, where its devices hold them."""
        if self._sampled is not None:
            params = self._sampled(params)
        if not self._apart:
            return params
        where = shardings.sampling_shardings(self.experiment.sampling_mesh, params)
        return jax.device_put(params, where)

    def _measured(
        self, drawn: list[Rollouts], paid: Paid, target: float, stream: PromptStream
    ) -> dict[str, float]:
        """The metrics of what was drawn, by name; all processes take part."""
        names = self.experiment.domain_names
        metrics = rollout_metrics(self.experiment.mesh, drawn, paid, names)
        metrics |= credit_metrics(self.experiment.rewards, paid)
        if self.experiment.turns.environment is not None:
            metrics |= turn_metrics(self.experiment.mesh, drawn)
        metrics["curriculum/target"] = target
        shares = pass_rate_shares(stream.pass_rate)
        return metrics | {f"curriculum/share/{name}": share for name, share in shares.items()}

    def _paid(self, rollouts: Rollouts) -> Paid:
        """What the completions of a batch are paid, those of all processes."""
        rewards = self.experiment.rewards
        credit, counted = shaping.shaped(
            rollouts.reward,
            rollouts.mask.sum(axis=1),
            rollouts.finished,
            truncated=rewards.truncated,
            start=rewards.overlong_start(rollouts.mask.shape[1]),
            cache=rewards.overlong_cache,
        )
        of_all = (
            mesh.gather(self.experiment.mesh, of) for of in (rollouts.reward, credit, counted)
        )
        return Paid(*of_all)

    def _kept(
        self, drawn: list[Rollouts], paid: Paid
    ) -> tuple[Rollouts, np.ndarray, np.ndarray, dict[str, float]]:
        """The batch of the groups whose rewards differ, of all that were drawn.

        Returns:
          This process's rows, the credit of all rows, which of these hold a completion that counts,
          and the metrics.
        """
        options, training = self.experiment.rollout, self.experiment.training
        kept = resample.differ(paid.credit, options.samples, paid.counted)
        source = resample.choose(kept, options.prompts, training.minibatches)
        rollouts = resample.assemble(self.experiment.mesh, drawn, source, self.experiment.examples)
        held = np.repeat(source >= 0, options.samples)
        rows = np.maximum(source, 0)[:, None] * options.samples + np.arange(options.samples)
        credited = np.where(held, paid.credit[rows.ravel()], np.float32(0))
        present = held & paid.counted[rows.ravel()]
        count = int(np.sum(source >= 0))
        empty = sum(
            np.all(source[j :: training.minibatches] < 0) for j in range(training.minibatches)
        )
        metrics = {
            "resample/prompts_drawn": float(len(kept)),
            "resample/prompts_kept": float(count),
            "resample/updates_skipped": float(training.epochs * empty),
            "batch/fill": count / options.prompts,
        }
        if count:
            metrics["resample/drawn_per_kept"] = len(kept) / count
            metrics["batch/reward/mean"] = float(credited[present].mean())
        return rollouts, credited, present, metrics

    def update(
        self,
        state: TrainState,
        collected: Collected,
        iteration: int,
        factor: float = 1.0,
        meanwhile: Callable[[], None] | None = None,
        *,
        fresh: bool = False,
    ) -> tuple[TrainState, dict[str, float]]:
        """The updates on an iteration's rollouts; the new state, and all metrics as numbers.

        Args:
          state: donated.
          collected: from `collect`, by this policy or an earlier one.
          iteration: counted from 0; decides the order of the updates.
          factor: of the gate's budgets or of steps; see `run.control`.
          meanwhile: is called while the devices update.
          fresh: whether it is scored by this very policy, whose log-probabilities the first update
            then need not compute.
        """
        began = time.monotonic()
        knobs = self.experiment.knobs_at(factor)
        keeper, looking = self._keeper, self.experiment.diagnostics
        keeping = keeper is not None and keeper.due(iteration + 1)
        # Of what is kept the file says all that a replay is held against.
        due = looking.due(iteration + 1) or (keeping and looking.every > 0)
        batches, order_of = collected.batches, []
        pending: list[Metrics] = []
        base = None if self.experiment.lora is None else self._reference
        fresh = fresh and self.experiment.training.scored
        made = int(state.step)
        order = np.random.default_rng((self.experiment.seed, iteration))
        for _ in range(self.experiment.training.epochs):
            for j in order.permutation(len(batches)):
                first = np.bool_(fresh and not pending)
                result = self._step(state, batches[j], knobs, base, first)
                state, step_metrics = result[:2]
                if due:
                    step_metrics |= self._diagnose(result[2], batches[j], knobs)
                pending.append(step_metrics)
                order_of.append(j)
        if meanwhile is not None:
            meanwhile()
        read = jax.device_get(pending)
        terms = [_not_finite(step) for step in read]
        scalars = joined([step for step, of in zip(read, terms, strict=True) if not of])
        scalars |= collected.metrics
        updated = time.monotonic() - began
        skipped = sum(map(bool, terms))
        if pending:
            scalars[SKIPPED] = float(skipped)
        left = len(pending) - skipped - int(scalars.get(STOPPED, 0))
        if left:
            updates = made + np.arange(left)
            scalars["actor/learning_rate"] = float(np.mean(self._learning_rate(updates)))
        told = [
            Made(
                of,
                joined([step]) if of or keeping else {},
                batches[j],
                collected.prompts[j],
                collected.minibatches[j],
            )
            for of, step, j in zip(terms, read, order_of, strict=True)
        ]
        if keeper is not None and keeping:
            keeper.keep(iteration + 1, collected.trained, told, updates_before=made, factor=factor)
        if self._updates is not None:
            self._updates(iteration + 1, told)
        control = self.experiment.control
        if control.kind != "none":
            name = "gate/budget_factor" if control.of == "budgets" else "actor/step_factor"
            scalars[name] = factor
        tokens = scalars["response_length/mean"] * collected.completions
        before, self._compiling = self._compiling, compiled.seconds()
        scalars |= {
            "timing/rollout_s": collected.seconds,
            "timing/update_s": updated,
            "timing/total_s": collected.seconds + updated,
            "timing/compile_s": self._compiling - before,
            "perf/tokens_per_s": tokens / (collected.seconds + updated),
        }
        return state, scalars

    def _score(self, params: Any, rollouts: Rollouts, present: np.ndarray) -> Scored:
        """Begins the log-probabilities of completions; waits for nothing.

        Args:
          params: of the policy that is about to learn.
          rollouts: this process's rows.
          present: bool[R] of all processes, the rows that hold a completion that counts; read where
            others are left out.
        """
        rollouts = self._counted(rollouts, present)
        rows = (rollouts.tokens, rollouts.positions, rollouts.segment_ids)
        mask, temperature = rollouts.mask, self.experiment.knobs.temperature
        reference = None
        if self.experiment.training.old_log_probs == "sampler":
            few = self._checked
            own = self._log_probs_of_few(
                params, tuple(of[few] for of in rows), mask[few], temperature
            )
        else:
            own = self._log_probs(params, rows, mask, temperature)
        if self.experiment.training.kl_coefficient > 0:
            reference = self._log_probs(self._reference, rows, mask, temperature)
        return Scored(own, reference)

    @property
    def _checked(self) -> slice:
        """The rows of a process whose log-probabilities the trainer computes."""
        if self.experiment.training.old_log_probs == "trainer":
            return slice(None)
        return slice(None, None, self._parts)

    def _counted(self, rollouts: Rollouts, present: np.ndarray) -> Rollouts:
        """The rollouts as the loss sees them; rows that it leaves out hold nothing."""
        if self.experiment.rewards.truncated == "mask":
            return without(rollouts, np.logical_not(self._share(present)))
        return rollouts

    def _share(self, of: np.ndarray) -> np.ndarray:
        """This process's rows of those of all."""
        index, count = mesh.process_share(self.experiment.mesh, len(of))
        return of[index * len(of) // count : (index + 1) * len(of) // count]

    def _batches(
        self,
        params: Any,
        rollouts: Rollouts,
        rewards: np.ndarray,
        present: np.ndarray,
        scored: Scored | None = None,
    ) -> Collected:
        """The optimizer batches of the rollouts, and the sampler's disagreement as metrics.

        Args:
          params: of the policy that is about to learn.
          rollouts: this process's rows.
          rewards: float32[R] of all processes.
          present: bool[R] of all processes, the rows that hold a completion that counts.
          scored: of `_score`; None scores now.
        """
        if not present.any():
            return Collected([], [], [], 0, {}, 0.0)
        training = self.experiment.training
        if scored is None:
            scored = self._score(params, rollouts, present)
        whole = rollouts
        rollouts = self._counted(rollouts, present)
        old, routes = scored.own()
        # Before truncation, as the trainer's are: what truncation left out is no disagreement.
        sampler = rollouts.sampler_log_prob + rollouts.log_kept
        few = self._checked
        told = (old, sampler[few], rollouts.mask[few])
        gaps = mismatch_metrics(self.experiment.mesh, *told)
        if training.old_log_probs == "sampler":
            check_gap(gaps["mismatch/log_prob_abs_mean"], training.old_log_probs_gap)
            old = np.where(rollouts.mask, sampler, np.float32(0))
        reference = np.zeros_like(old)
        if scored.reference is not None:
            reference, _ = scored.reference()
        weight = np.ones_like(old)
        corrected = training.mismatch in mismatch.CORRECTIONS
        if corrected:
            correct = mismatch.CORRECTIONS[training.mismatch]
            floor, cap = training.mismatch_floor, training.mismatch_cap
            weight = np.asarray(correct(old, sampler, rollouts.mask, floor=floor, cap=cap))
        num_groups = len(rewards) // rollouts.group_size
        group = np.where(present, np.arange(len(rewards)) // rollouts.group_size, num_groups)
        advantage = np.asarray(self._estimate(rewards, group, num_groups))
        batches = make_batches(
            self.experiment.mesh,
            rollouts,
            advantage=self._share(advantage),
            old_log_prob=sampler if training.edge == "direct" else old,
            reference_log_prob=reference,
            sample_weight=weight,
            num_minibatches=training.minibatches,
            levels=self.experiment.levels,
            routes=routes,
            turns=self.experiment.turns.limit,
            pack_micro_batches=training.micro_batches if training.packing else 0,
            states=self.experiment.couples_states,
        )
        held = np.asarray(present.reshape(-1, rollouts.group_size).any(axis=1))
        asked = mesh.gather(self.experiment.mesh, rollouts.prompts.prompt_index)
        parts = [slice(j, None, training.minibatches) for j in range(training.minibatches)]
        filled = [j for j, part in enumerate(parts) if held[part].any()]
        trained = Trained(
            whole,
            rewards,
            present,
            advantage,
            old,
            sampler,
            reference if training.kl_coefficient > 0 else None,
            weight if corrected else None,
        )
        return Collected(
            [batches[j] for j in filled],
            [asked[parts[j]][held[parts[j]]] for j in filled],
            filled,
            completions=len(rewards),
            metrics=gaps,
            seconds=0.0,
            trained=trained,
        )


def check_gap(gap: float, bound: float) -> None:
    """Refuses to train on log-probabilities of a sampler that is not the trainer's policy.

    Raises:
      ValueError: the mean gap, nats a token, exceeds the bound.
    """
    if not gap <= bound:
        raise ValueError(
            "config.training.old_log_probs = 'sampler', whose log-probabilities are "
            f"{gap:.3g} nats a token from the trainer's in the mean: expected at most "
            f"config.training.old_log_probs_gap = {bound:g}; 'trainer' computes them"
        )


def without(rollouts: Rollouts, left_out: np.ndarray) -> Rollouts:
    """Rollouts whose left-out rows, bool[R], hold nothing: no token of theirs is in any mean."""
    held = ("tokens", "positions", "segment_ids", "mask", "sampler_log_prob", "log_kept")
    empty = {
        name: np.where(left_out[:, None], table.dtype.type(0), table)
        for name, table in ((name, getattr(rollouts, name)) for name in held)
    }
    return dataclasses.replace(rollouts, **empty)


def shuffled(rewards: np.ndarray, seed: int, iteration: int) -> np.ndarray:
    """The rewards of all rollouts in random order, [R]: a control that has nothing to teach."""
    # The 1 keeps this stream apart from the order of the updates.
    return np.random.default_rng((seed, iteration, 1)).permutation(rewards)


def _not_finite(step: Metrics) -> tuple[str, ...]:
    """The terms of an update that were not finite, in the order that they follow each other."""
    return tuple(term for term in TERMS if float(step[NOT_FINITE + term].value) != 0)
