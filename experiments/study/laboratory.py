"""Many runs in one process: what does not change between them is built and compiled once.

Data sets, warm starts, first evaluations and compiled programs are kept. Runs that differ in seed,
learning rate, budgets, staleness or noise alone share every program.
"""

import collections
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments.study.rounding import Rounding, rounder
from experiments.study.settings import EVALUATE_EVERY, TODAY, Setting
from fiberjax import experiment
from fiberjax.experiment import Experiment
from fiberjax.run.control import Controller
from fiberjax.run.evaluation import evaluate
from fiberjax.run.trainer import Collected, Trainer
from fiberjax.run.warm_start import starting_params
from fiberjax.train.update import SKIPPED, TrainState

START_SEED = 0
"""Of the warm start, which all runs share: a run's own seed decides what is sampled."""

MACHINE = ("timing/", "perf/")
"""Metrics that are of the machine, and not recorded by iteration."""

DIGITS = 5
"""Of a recorded number."""


class Laboratory:
    """Runs settings one after the other; see `run`."""

    def __init__(self, make_config: Callable[[str], ConfigDict], devices: Any = None):
        """Prepares an empty laboratory.

        Args:
          make_config: the config that settings change, by the name of a gate's preset.
          devices: of the mesh; all by default.
        """
        self._make_config = make_config
        self._devices = devices
        self._domains: dict[str, Any] = {}
        self._starts: dict[str, Any] = {}
        self._first: dict[str, dict[str, Any]] = {}
        self._trainers: dict[str, Trainer] = {}
        self._fresh: dict[str, Callable[[Any, float], TrainState]] = {}
        self._rounder: Callable[[Rounding], Callable[[Any], Any] | None] = functools.cache(rounder)

    def config(self, setting: Setting) -> ConfigDict:
        """The whole config of a setting.

        Raises:
          ValueError: the gate or an option does not exist.
        """
        config = self._make_config(setting.gate)
        for path, value in setting.options.items():
            *sections, name = TODAY.get(path, path).split(".")
            section = config
            for part in sections:
                section = section.get(part, {})
            if name not in section:
                raise ValueError(f"config.{path} does not exist")
            if path == "budget_control":  # Records name what there was when they were made.
                value = {**section[name], **value}
            with config.ignore_type():  # A budget may be a number or a pair.
                section[name] = value
        config.seed = setting.seed
        return config

    def run(self, setting: Setting, shares: Sequence[float] | None = None) -> dict[str, Any]:
        """Trains and evaluates one setting; what happened, as JSON.

        Args:
          setting: which run.
          shares: what the learning rate is multiplied by, a number an iteration, from
            `records.shares`; for a setting with a replay, and none other.

        Returns:
          `setting` (its identity) and `gate` (all options of it); `metrics`, by name a number an
          iteration (null where it is not finite); `held_out`, the evaluations; `collapsed`, null or
          the iteration and the term that was not finite, after which no more are run; `seconds` of
          the clock and `cpu_seconds` of all cores.

        Raises:
          ValueError: the setting cannot be built; names the path.
        """
        if (shares is None) != (setting.replay is None):
            raise ValueError("shares go with a setting that replays another run, and only with it")
        began = time.monotonic(), time.process_time()
        config = self.config(setting)
        built = self._build(config)
        start, start_key = self._start(built, config)
        trainer, state = self._begin(built, config, start, setting)
        held_out = [self._first_evaluation(built, start, start_key)]
        rows: list[dict[str, float]] = []
        collapsed = None
        stream = built.prompt_stream()
        control = Controller(built.control, built.iterations)
        waiting: collections.deque[Collected] = collections.deque()
        for iteration in range(built.iterations):
            # The batch that is trained on was sampled `staleness` iterations ago; at the start
            # all that are due by then come from the policy that is there.
            ahead = min(iteration + setting.staleness + 1, built.iterations)
            for batch in range(iteration + len(waiting), ahead):
                waiting.append(trainer.collect(state.params, stream, batch))
            if shares is not None:
                state = _at_rate(state, shares[iteration] * float(built.schedule(0)))
            state, scalars = trainer.update(state, waiting.popleft(), iteration, control.factor)
            control.observe(iteration, scalars)
            if shares is not None:
                scalars["actor/learning_rate"] *= shares[iteration]
            rows.append(scalars)
            done = iteration + 1
            if scalars.get(SKIPPED, 0.0):
                collapsed = f"step {done} is not finite: {scalars[SKIPPED]:.0f} updates left out"
            last = done == built.iterations or collapsed is not None
            if last or done % EVALUATE_EVERY == 0:
                held_out.append(_held_out(built, state.params, done))
            if last:
                break
        return {
            "method": setting.method,
            "setting": setting.identity(),
            "gate": json.loads(config.gate.to_json_best_effort()),
            "collapsed": collapsed,
            "held_out": held_out,
            "metrics": _columns(rows),
            "seconds": round(time.monotonic() - began[0], 1),
            "cpu_seconds": round(time.process_time() - began[1], 1),
        }

    def _build(self, config: ConfigDict) -> Experiment:
        """The experiment, with the learning rate in the optimizer's state."""
        chosen = config.optimizer
        if chosen.schedule != "constant" or chosen.warmup_steps != 0:
            raise ValueError(
                "config.optimizer must have a constant schedule without warm-up, so that the "
                f"learning rate is one number; got {chosen.schedule!r} and {chosen.warmup_steps}"
            )
        if config.training.kl_coefficient != 0:
            raise ValueError(
                "config.training.kl_coefficient must be 0: no reference policy is kept; got "
                f"{config.training.kl_coefficient}"
            )
        if config.lora.rank != 0:
            raise ValueError(
                "config.lora.rank must be 0: all parameters are trained, from one start; got "
                f"{config.lora.rank}"
            )
        rate = float(chosen.learning_rate)
        config = config.copy_and_resolve_references()
        config.optimizer.learning_rate = 1.0
        key = config.tasks.to_json_best_effort(sort_keys=True)
        if key not in self._domains:
            # Checked in full once; later experiments take the data as it is.
            checked = experiment.from_config(config, self._devices)
            self._domains[key] = (checked.train, checked.test)
        built = experiment.from_config(
            config, self._devices, lambda tasks, columns: self._domains[key]
        )
        return dataclasses.replace(built, schedule=optax.constant_schedule(rate))

    def _start(self, built: Experiment, config: ConfigDict) -> tuple[Any, str]:
        """The parameters that the run starts from, never donated, and what they are kept under."""
        sections = (config.warm_start, config.policy, config.tasks, config.window)
        key = json.dumps([section.to_json_best_effort(sort_keys=True) for section in sections])
        if key not in self._starts:
            self._starts[key] = starting_params(dataclasses.replace(built, seed=START_SEED))
        return self._starts[key], key

    def _begin(
        self, built: Experiment, config: ConfigDict, start: Any, setting: Setting
    ) -> tuple[Trainer, TrainState]:
        """The trainer of the run and its first state."""
        compiled = config.copy_and_resolve_references()
        # What the programs depend on: of the gate its structure, but no budget.
        compiled.gate = ConfigDict({"structure": repr(built.gate)})
        compiled.control = ConfigDict()  # Of the host alone.
        compiled.seed = compiled.iterations = compiled.training.epochs = 0
        compiled.optimizer.learning_rate = compiled.rollout.temperature = 0.0
        key = compiled.to_json_best_effort(sort_keys=True)
        if key not in self._trainers:
            optimizer = rate_in_state(built.optimizer)
            built = dataclasses.replace(built, optimizer=optimizer)
            self._trainers[key] = Trainer(built, None)
            self._fresh[key] = _fresh(built)
        first = self._trainers[key]
        built = dataclasses.replace(built, optimizer=first.experiment.optimizer)
        params = jax.tree.map(lambda leaf: leaf.copy(), start)  # The state is donated.
        state = self._fresh[key](params, float(built.schedule(0)))
        again = first.again(
            built, None, logit_noise=setting.noise, sampled=self._rounder(setting.rounding)
        )
        return again, state

    def _first_evaluation(self, built: Experiment, start: Any, start_key: str) -> dict[str, Any]:
        """Before the first iteration; measured once for all runs that begin alike."""
        key = f"{built.seed} {built.evaluation} {float(built.knobs.temperature)} {start_key}"
        if key not in self._first:
            self._first[key] = _held_out(built, start, 0)
        return self._first[key]


def rate_in_state(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with its updates times a number of its state, `step_size`, at first 1.

    All optimizers here are linear in the learning rate, so one of rate 1 becomes one of any rate,
    and no rate compiles anything again.
    """
    return optax.chain(optimizer, optax.inject_hyperparams(optax.scale)(step_size=1.0))


def _fresh(built: Experiment) -> Callable[[Any, float], TrainState]:
    """Compiles `(params, learning rate)` -> the state before the first update."""

    def make(params: Any, rate: jax.Array) -> TrainState:
        state = built.fresh_state(params)
        opt_state = optax.tree.set(state.opt_state, step_size=rate)
        return dataclasses.replace(state, opt_state=opt_state)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, built.abstract_state())
    compiled = jax.jit(make, out_shardings=shardings)
    return lambda params, rate: compiled(params, np.float32(rate))


def _at_rate(state: TrainState, rate: float) -> TrainState:
    """The state with another learning rate from here on."""
    old = optax.tree.get(state.opt_state, "step_size")
    new = jax.device_put(np.float32(rate), old.sharding)
    return dataclasses.replace(state, opt_state=optax.tree.set(state.opt_state, step_size=new))


def _held_out(built: Experiment, params: Any, iteration: int) -> dict[str, Any]:
    """One evaluation: the means over prompts by measure, overall and by domain."""
    found = evaluate(built, params, f"evaluation after {iteration}")
    row: dict[str, Any] = {"iteration": iteration}
    for name, values in found.by_name.items():
        by_domain = {
            domain.name: float(values[found.domain == index].mean())
            for index, domain in enumerate(built.test)
        }
        row[name] = _rounded(float(np.mean(list(by_domain.values()))))
        row[f"{name} by domain"] = {of: _rounded(value) for of, value in by_domain.items()}
    return row


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Metrics by name, a number an iteration; null where it is missing or not finite."""
    names = sorted({name for row in rows for name in row if not name.startswith(MACHINE)})
    return {name: [_rounded(row.get(name, math.nan)) for row in rows] for name in names}


def _rounded(value: float) -> float | None:
    """The number with few digits; None where JSON has none for it."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
