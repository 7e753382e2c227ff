"""An experiment: everything a config describes, built and validated before anything compiles."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fiberjax import gates, optimizers, options, plugins, seeds, storage
from fiberjax.advantages import ESTIMATORS, WITHIN_GROUPS, Estimator
from fiberjax.bounds import named
from fiberjax.gates import GATES, Budgets, GateSpec
from fiberjax.layout import STATE
from fiberjax.model_folder import check_model, check_shape, check_weights, read_shape
from fiberjax.parallel import mesh, shardings
from fiberjax.policy import TransformerConfig, cast_kernels, init, lora
from fiberjax.policy.lora import LoRA
from fiberjax.tasks import (
    VERIFIERS,
    Domain,
    EncodedExamples,
    PromptStream,
    Vocabulary,
    supervised_batches,
)
from fiberjax.tasks.environments import (
    ENVIRONMENTS,
    Environment,
    Turns,
    environments_of,
    make_turns,
)
from fiberjax.tasks.fitting import check_answers, fit_prompts
from fiberjax.tasks.golds import check_rewards
from fiberjax.tasks.levels import PROMPT, Levels, check_names, columns_of, make_levels, of_layout
from fiberjax.tasks.loading import load_domains, make_vocabulary
from fiberjax.tasks.rewards import Verifier
from fiberjax.tasks.rewards.own import expressions_of, limits_of, table_of
from fiberjax.train import passes
from fiberjax.train.checks import (
    check_cache,
    check_columns,
    check_lag,
    check_rows,
    check_served,
    check_top_k,
)
from fiberjax.train.engine import Engine
from fiberjax.train.rollout import Sampler
from fiberjax.train.server import make_engine
from fiberjax.train.update import Knobs, StepOptions, TrainState

# `reward/<domain>` and the rows of the evaluation table share their names with these.
RESERVED = ("mean", "std", "overall")

SECTIONS: Mapping[str, type] = {
    "tasks": options.Tasks,
    "rewards": options.Rewards,
    "window": options.Window,
    "turns": options.Turns,
    "model": options.Model,
    "policy": TransformerConfig,
    "lora": options.LoRA,
    "warm_start": options.WarmStart,
    "rollout": options.Rollout,
    "server": options.Server,
    "training": options.Training,
    "control": options.Control,
    "optimizer": options.Optimizer,
    "curriculum": options.Curriculum,
    "evaluation": options.Evaluation,
    "keep": options.Keep,
    "diagnostics": options.Diagnostics,
    "checkpoint": options.Checkpoint,
    "stop": options.Stop,
    "mesh": options.Mesh,
}
"""The sections of a config and their options, in the order that a run meets them."""

KEYS = (*(field.name for field in dataclasses.fields(options.Run)), *SECTIONS, "gate")
"""All that a config has; what stands in `gate`, its gate says."""

POLICY = tuple(field.name for field in dataclasses.fields(TransformerConfig))

# (tasks, further columns to keep) -> the training and the held-out domains.
LoadData = Callable[[options.Tasks, Sequence[str]], tuple[tuple[Domain, ...], tuple[Domain, ...]]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a run needs; see `from_config`.

    Attributes:
      seed: of everything random.
      iterations: rollouts and their updates, how many times.
      tasks: options of the data.
      rewards: what rewards may take, and what becomes of them.
      window: static shape of a sequence.
      turns: how an episode goes, and who answers in it.
      model: the published model that training starts from, if any.
      warm_start: options of the supervised phase.
      rollout: options of sampling.
      engine: another program that draws completions; None where the compiled loop does.
      training: options of the updates.
      control: what the gate's budgets, or steps, follow.
      curriculum: options of the prompt stream.
      evaluation: options of the held-out measurement.
      keep: what is kept and shown of what the policy writes.
      diagnostics: when its gate is looked at.
      checkpoint: options of saving.
      stop: when the run stops before its last iteration.
      plugin_digests: of the user's own files, by name.
      writers: where metrics go, names of `options.WRITERS`.
      vocabulary: tokenizer.
      train: domains trained on.
      test: the same domains, held-out prompts.
      levels: which training prompts share a cell, level by level above the trajectory.
      policy: shape of the policy.
      lora: the adapters that are trained; None trains all parameters.
      mesh: the devices.
      sampling_mesh: those that draw rollouts: the same, or a part that does nothing else.
      gate: the ratio gate.
      knobs: what may change without compiling again.
      estimate: advantages from rewards.
      schedule: the learning rate by update.
      optimizer: of the updates, at that rate.
      step: static choices of the compiled step.
    """

    seed: int
    iterations: int
    tasks: options.Tasks
    rewards: options.Rewards
    window: options.Window
    turns: Turns
    model: options.Model
    warm_start: options.WarmStart
    rollout: options.Rollout
    engine: Engine | None
    training: options.Training
    control: options.Control
    curriculum: options.Curriculum
    evaluation: options.Evaluation
    keep: options.Keep
    diagnostics: options.Diagnostics
    checkpoint: options.Checkpoint
    stop: options.Stop
    plugin_digests: Mapping[str, str]
    writers: tuple[str, ...]
    vocabulary: Vocabulary
    train: tuple[Domain, ...]
    test: tuple[Domain, ...]
    levels: Levels
    policy: TransformerConfig
    lora: LoRA | None
    mesh: Mesh
    sampling_mesh: Mesh
    gate: gates.Gate
    knobs: Knobs
    estimate: Estimator
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    step: StepOptions

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, in the order that ids count them."""
        return tuple(domain.name for domain in self.train)

    @functools.cached_property
    def examples(self) -> EncodedExamples:
        """The training examples with their tokens, encoded once for all that read them."""
        return EncodedExamples(self.train, self.vocabulary, self.turns)

    @functools.cached_property
    def held_out(self) -> EncodedExamples:
        """The held-out examples with their tokens."""
        return EncodedExamples(self.test, self.vocabulary, self.turns)

    @property
    def couples_states(self) -> bool:
        """Whether the gate couples the tokens of a state, so that layouts must name states."""
        return dict(self.gate.options).get("level") == STATE

    def fresh_state(self, start: Any) -> TrainState:
        """The train state before the first update.

        Args:
          start: the parameters that the run starts from; with adapters, their shapes alone are
            read.
        """
        params = start
        if self.lora is not None:
            key = jax.random.fold_in(jax.random.key(self.seed), seeds.ADAPTERS)
            params = lora.init(self.lora, start, key)
        return TrainState(params, self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def abstract_state(self) -> TrainState:
        """Shapes of the train state, each leaf with its sharding."""
        state = jax.eval_shape(lambda: self.fresh_state(init(self.policy, jax.random.key(0))))
        return shardings.abstract(state, shardings.state_shardings(self.mesh, state))

    def base(self, start: Any) -> Any:
        """What adapters adapt: the parameters that the run starts from, in the base's dtype."""
        assert self.lora is not None
        kept = dataclasses.replace(self.policy, compute_dtype=self.lora.base_dtype)
        return cast_kernels(start, kept)

    def abstract_base(self) -> Any:
        """Shapes of the base, each leaf with its sharding; None without adapters."""
        if self.lora is None:
            return None
        base = jax.eval_shape(lambda: self.base(init(self.policy, jax.random.key(0))))
        return shardings.abstract(base, shardings.param_shardings(self.mesh, base))

    def knobs_at(self, factor: float) -> Knobs:
        """The knobs of an iteration whose budgets, or steps, are controlled by this factor."""
        control, knobs = self.control, self.knobs
        if control.kind == "none":
            return knobs
        if control.of == "steps":
            return knobs._replace(step_factor=np.float32(factor))
        return knobs._replace(budgets=self.gate.widened(knobs.budgets, factor))

    def whole(self, trained: Any, base: Any) -> Any:
        """The parameters of the policy, from what is trained and, with adapters, their base."""
        return lora.attached(self.lora, base, trained)

    def sampler(self, domains: tuple[Domain, ...], *, logit_noise: float = 0.0) -> Sampler:
        """The sampler of this experiment over the training or the held-out domains.

        `logit_noise` makes it one that disagrees with the policy; see `policy.sample`.
        """
        return Sampler(
            config=self.policy,
            mesh=mesh.folded(self.mesh),
            vocabulary=self.vocabulary,
            domains=domains,
            max_new_tokens=self.window.completion,
            temperature=float(self.knobs.temperature),
            top_k=self.rollout.top_k,
            top_p=self.rollout.top_p,
            logit_noise=logit_noise,
            max_rows=self.rollout.max_rows,
            seed=self.seed,
            turns=self.turns,
            slots=self.rollout.slots,
            cache_dtype=self.rollout.cache_dtype,
            engine=self.engine,
        )

    def training_sampler(self, *, logit_noise: float = 0.0) -> Sampler:
        """The sampler of rollouts, which may have devices of its own; `logit_noise` as above."""
        sampler = self.sampler(self.train, logit_noise=logit_noise)
        return dataclasses.replace(sampler, mesh=mesh.folded(self.sampling_mesh))

    def evaluation_sampler(self) -> Sampler:
        """The sampler of the held-out domains, which draws as `config.evaluation` says."""
        wanted = self.evaluation
        sampler = self.sampler(self.test)
        if wanted.temperature == 0:  # With the program of rollouts, whose truncation is not read.
            return dataclasses.replace(sampler, greedy=True)
        return dataclasses.replace(
            sampler,
            temperature=float(np.float32(wanted.temperature)),
            top_k=wanted.top_k,
            top_p=wanted.top_p,
        )

    def prompt_stream(self) -> PromptStream:
        """The stream of this process's training prompts, at its first step."""
        index, count = mesh.process_share(self.mesh, self.rollout.prompts)
        return PromptStream(
            self.examples,
            num_prompts=self.rollout.prompts,
            max_prompt_tokens=self.window.prompt,
            total_steps=self.iterations,
            seed=self.seed,
            start=self.curriculum.start,
            end=self.curriculum.end,
            sigma=self.curriculum.sigma,
            rate=self.curriculum.rate,
            pass_threshold=self.tasks.pass_threshold,
            domain_probability=self.curriculum.domain_probability,
            process_index=index,
            process_count=count,
        )

    def supervised_stream(self) -> Any:
        """The stream of this process's solved examples."""
        index, count = mesh.process_share(self.mesh, self.warm_start.batch_size)
        return supervised_batches(
            self.examples,
            batch_size=self.warm_start.batch_size,
            max_prompt_tokens=self.window.prompt,
            max_completion_tokens=self.window.completion,
            flawed=0.0 if self.tasks.of_rows else self.warm_start.flawed,
            seed=self.seed,
            process_index=index,
            process_count=count,
        )


def from_config(
    config: Any,
    devices: Any = None,
    load_data: LoadData | None = None,
    *,
    gate_table: Mapping[str, GateSpec] = GATES,
    reward_table: Mapping[str, Verifier] = VERIFIERS,
    estimator_table: Mapping[str, Estimator] = ESTIMATORS,
    environment_table: Mapping[str, Environment] = ENVIRONMENTS,
) -> Experiment:
    """Builds an experiment from a ConfigDict, data sets included.

    Args:
      config: as `configs/` makes it, and `model_folder.with_folder` completes it.
      devices: of the mesh; all by default.
      load_data: gives the training and held-out domains, unchecked; `load_domains` by default.
      gate_table: what `config.gate.name` chooses from, beside the gates of `config.plugins`.
      reward_table: what `config.tasks.verifier` chooses from, beside the plugins' rewards.
      estimator_table: what `config.advantage` chooses from, beside the plugins' estimators.
      environment_table: what `config.turns.environment` chooses from, beside the plugins'.

    Raises:
      ValueError: anything wrong in it, named by its path.
    """
    with named("config"):
        return _from_config(
            config,
            devices,
            load_data,
            gate_table=gate_table,
            reward_table=reward_table,
            estimator_table=estimator_table,
            environment_table=environment_table,
        )


def _from_config(
    config: Any,
    devices: Any,
    load_data: LoadData | None,
    *,
    gate_table: Mapping[str, GateSpec],
    reward_table: Mapping[str, Verifier],
    estimator_table: Mapping[str, Estimator],
    environment_table: Mapping[str, Environment],
) -> Experiment:
    options.check_keys(config, KEYS, "config")
    names = tuple(field.name for field in dataclasses.fields(options.Run))
    run = options.parse(options.Run, {name: config[name] for name in names}, "config")
    tasks = options.parse(options.Tasks, config.tasks, "config.tasks")
    rewards = options.parse(options.Rewards, config.rewards, "config.rewards")
    tables = _tables(
        run, tasks, rewards, gate_table, reward_table, estimator_table, environment_table
    )
    window = options.parse(options.Window, config.window, "config.window")
    rewards.overlong_start(window.completion)  # Raises where it punishes nothing.
    rollout = options.parse(options.Rollout, config.rollout, "config.rollout")
    if rollout.samples == 1 and run.advantage in WITHIN_GROUPS:
        raise ValueError(
            f"config.rollout.samples = 1, but config.advantage = {run.advantage!r} compares a "
            "completion with the others of its prompt, and would be 0 throughout: expected at "
            "least 2, or an advantage such as 'reinforce_plus_plus'"
        )
    server = options.parse(options.Server, config.server, "config.server")
    storage.on_disk(server.folder, "config.server.folder, which the server reads,")
    training = options.parse(options.Training, config.training, "config.training")
    schedule, optimizer = _optimizer(config.optimizer, run.iterations, training)
    levels = check_names(run.levels)
    gate, budgets = gates.from_config(config.gate, of_layout(levels), table=tables.gates)
    sizes = options.parse(options.Mesh, config.mesh, "config.mesh")
    with named("config.mesh"):
        device_mesh, sampling_mesh = mesh.split(dataclasses.asdict(sizes), rollout.devices, devices)
    warm_start = options.parse(options.WarmStart, config.warm_start, "config.warm_start")
    for option, path in (("tasks.data_dir", tasks.data_dir), ("warm_start", warm_start.directory)):
        with named(f"config.{option}"):
            if storage.place(path).is_file():
                raise ValueError(f"{path!r} is a file; expected a folder, or none yet")
    evaluation = options.parse(options.Evaluation, config.evaluation, "config.evaluation")
    diagnostics = options.parse(options.Diagnostics, config.diagnostics, "config.diagnostics")
    check_rows(device_mesh, rollout, training, warm_start, evaluation)
    check_lag(sampling_mesh, rollout, training)
    curriculum = options.parse(options.Curriculum, config.curriculum, "config.curriculum")
    check_columns(device_mesh, window, rollout, curriculum, evaluation)
    model = options.parse(options.Model, config.model, "config.model")
    check_served(rollout, server, model.folder)
    shape = read_shape(model.folder)
    check_model(model, window, warm_start)
    vocabulary = make_vocabulary(tasks, model, embedding_rows(config.policy, shape))
    said = options.parse(options.Turns, config.turns, "config.turns")
    turns = make_turns(said, window.completion, vocabulary, tables.environments)
    policy = make_policy(config.policy, vocabulary, shape, model.folder)
    if training.router_replay and policy.num_experts == 0:
        raise ValueError(
            "config.training.router_replay = True, but the policy has no experts: expected "
            "config.policy.num_experts of at least 1, or False"
        )
    check_cache(rollout, training, policy)
    check_top_k(rollout, evaluation, policy)
    if sizes.fsdp == -1:
        shapes = jax.eval_shape(lambda: init(policy, jax.random.key(0)))
        tiled = shardings.in_whole_tiles(device_mesh, shapes)
        sampling_mesh = tiled if sampling_mesh is device_mesh else sampling_mesh
        device_mesh = tiled
    adapters = make_adapters(config.lora, policy)
    shardings.placement(device_mesh, policy)  # Raises where the kernel cannot run.
    if model.folder and load_data is None:
        check_weights(model.folder, policy)
    load = functools.partial(load_domains, verifiers=tables.rewards, tell=_tell)
    with named("config.tasks"):
        train, test = (load_data or load)(tasks, columns_of(levels))
        if load_data is None:
            train, test = fit_data(tasks, window, vocabulary, train, test)
            check_rewards(tasks, rewards, train, test, _tell)
    built = Experiment(
        seed=run.seed,
        iterations=run.iterations,
        tasks=tasks,
        rewards=rewards,
        window=window,
        turns=turns,
        model=model,
        warm_start=warm_start,
        rollout=rollout,
        engine=make_engine(server, rollout, training, policy, device_mesh),
        training=training,
        control=make_control(config.control, gate, diagnostics),
        curriculum=curriculum,
        evaluation=evaluation,
        keep=options.parse(options.Keep, config.keep, "config.keep"),
        diagnostics=diagnostics,
        checkpoint=options.parse(options.Checkpoint, config.checkpoint, "config.checkpoint"),
        stop=options.parse(options.Stop, config.stop, "config.stop"),
        plugin_digests=tables.digests,
        writers=run.writers,
        vocabulary=vocabulary,
        train=train,
        test=test,
        levels=make_levels(levels, train),
        policy=policy,
        lora=adapters,
        mesh=device_mesh,
        sampling_mesh=sampling_mesh,
        gate=gate,
        knobs=_knobs(budgets, rollout, training),
        estimate=tables.estimators[run.advantage],
        schedule=schedule,
        optimizer=optimizer,
        step=_step_options(training, window, adapters, diagnostics, _groups(levels, rollout)),
    )
    if load_data is None:
        check_data(built)
    return built


class _Tables(NamedTuple):
    """What names in a config choose from, plugins included, and the plugins' digests."""

    gates: Mapping[str, GateSpec]
    rewards: Mapping[str, Verifier]
    estimators: Mapping[str, Estimator]
    environments: Mapping[str, Environment]
    digests: Mapping[str, str]


def _tables(
    run: options.Run,
    tasks: options.Tasks,
    rewards: options.Rewards,
    gate_table: Mapping[str, GateSpec],
    reward_table: Mapping[str, Verifier],
    estimator_table: Mapping[str, Estimator],
    environment_table: Mapping[str, Environment],
) -> _Tables:
    loaded = plugins.load_all(run.plugins)
    expressions = expressions_of(tasks) if tasks.of_rows else ()
    verifiers = table_of(reward_table, loaded, expressions, rewards)
    tables = _Tables(
        gates=plugins.merge(gate_table, loaded, "GATES"),
        rewards=verifiers.verifiers,
        estimators=plugins.merge(estimator_table, loaded, "ESTIMATORS"),
        environments=environments_of(environment_table, loaded, limits_of(rewards)),
        digests=verifiers.digests | {plugin.name: plugin.digest for plugin in loaded},
    )
    if run.advantage not in tables.estimators:
        raise ValueError(
            f"config.advantage must be one of {', '.join(tables.estimators)}; got {run.advantage!r}"
        )
    return tables


def make_control(
    config: Any, gate: gates.Gate, diagnostics: options.Diagnostics
) -> options.Control:
    """What the budgets, or steps, follow.

    Raises:
      ValueError: a bad option, a gate without a width to multiply, or a measure that is not made in
        every iteration.
    """
    control = options.parse(options.Control, config, "config.control")
    if control.kind != "none" and control.of == "budgets" and not gate.widths:
        raise ValueError(
            f"config.control.kind = {control.kind!r}, but the gate {gate.name!r} has no "
            "budget that it could widen or narrow: expected 'none', or "
            "config.control.of = 'steps'"
        )
    if control.kind == "effective_sample_size" and diagnostics.every != 1:
        raise ValueError(
            f"config.control.kind = {control.kind!r} follows what config.diagnostics "
            f"measure in every iteration: expected config.diagnostics.every = 1, got "
            f"{diagnostics.every}"
        )
    return control


def _knobs(budgets: Budgets, rollout: options.Rollout, training: options.Training) -> Knobs:
    """What of the options is traced in the compiled step."""
    return Knobs(
        budgets=budgets,
        temperature=np.float32(rollout.temperature),
        entropy_coefficient=np.float32(training.entropy_coefficient),
        kl_coefficient=np.float32(training.kl_coefficient),
        target_kl=np.float32(training.target_kl) if training.target_kl > 0 else None,
    )


def _step_options(
    training: options.Training,
    window: options.Window,
    adapters: LoRA | None,
    diagnostics: options.Diagnostics,
    groups: passes.Groups,
) -> StepOptions:
    """What of the options is static in the compiled step."""
    return StepOptions(
        weighting=training.weighting,
        constant_length=window.completion,
        kl_estimator=training.kl_estimator if training.kl_coefficient > 0 else None,
        kl_ratio_weight=training.kl_ratio_weight,
        entropy_bonus=training.entropy_coefficient != 0,
        step_share=None if training.step_share == "none" else training.step_share,
        num_micro_batches=training.micro_batches,
        groups=groups,
        chunk=training.chunk,
        lora=adapters,
        log_prob=diagnostics.every > 0,
    )


def _groups(levels: tuple[tuple[str, str], ...], rollout: options.Rollout) -> passes.Groups:
    """The prompt groups of a batch, whose level is the one with an empty column."""
    named = {column: name for name, column in levels}
    return passes.Groups(named.get(PROMPT), rollout.samples)


def _optimizer(
    config: Any, iterations: int, training: options.Training
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning rate by update, and the optimizer."""
    chosen = options.parse(options.Optimizer, config, "config.optimizer")
    if training.step_share != "none" and chosen.name == "sgd":
        raise ValueError(
            f"config.training.step_share = {training.step_share!r} is for optimizers that "
            "normalise the gradient, such as 'muon' and 'adamw'; config.optimizer.name is 'sgd', "
            "whose step is short by itself where the gate closes"
        )
    schedule = optimizers.make_schedule(
        chosen.schedule,
        learning_rate=chosen.learning_rate,
        warmup_steps=chosen.warmup_steps,
        total_steps=max(iterations * training.epochs * training.minibatches, chosen.warmup_steps),
    )
    optimizer = optimizers.make_optimizer(
        chosen.name,
        schedule,
        b1=chosen.b1,
        b2=chosen.b2,
        weight_decay=chosen.weight_decay,
        decay_all=chosen.decay_all,
        clip_norm=chosen.clip_norm,
        moment_dtype=chosen.moment_dtype,
    )
    return schedule, optimizer


def fit_data(
    tasks: options.Tasks,
    window: options.Window,
    vocabulary: Vocabulary,
    train: tuple[Domain, ...],
    test: tuple[Domain, ...],
) -> tuple[tuple[Domain, ...], tuple[Domain, ...]]:
    """The domains as the window holds them; tells what is left out, and of lost answers.

    Raises:
      ValueError: a prompt that the vocabulary cannot hold, or none that the window does.
    """
    if tasks.too_long != "refuse":
        fit = functools.partial(
            fit_prompts,
            vocabulary=vocabulary,
            max_prompt_tokens=window.prompt,
            too_long=tasks.too_long,
            tell=_tell,
        )
        train, test = fit(train), fit(test, what="held-out prompts")
        names = [domain.name for domain in train]
        test = tuple(domain for domain in test if domain.name in names)
    if tasks.file:
        check_answers((*train, *test), vocabulary, tasks.pass_threshold, _tell)
    return train, test


def _tell(line: str) -> None:
    """Says what a data set hides, once a run and not once a process."""
    if jax.process_index() == 0:
        print(line)


def check_data(experiment: Experiment) -> None:
    """Refuses data that does not fit the windows, or the names the run would give it.

    Raises:
      ValueError: names the domain, the row and what was expected.
    """
    for name in experiment.domain_names:
        if name in RESERVED or name.endswith(("/low", "/high")):
            raise ValueError(
                f"config.tasks: a domain cannot be called {name!r}: metrics of that name exist"
            )
    check_followed(experiment)
    with named("config.tasks"):
        experiment.examples.check_prompts(experiment.window.prompt)
        if experiment.warm_start.steps > 0:
            experiment.examples.check_solutions(experiment.window.completion)
        try:
            experiment.held_out.check_prompts(experiment.window.prompt)
        except ValueError as error:
            raise ValueError(f"held-out {error}") from None
    with named("config.curriculum"):
        experiment.prompt_stream()  # Checks what is drawn of them.


def check_followed(experiment: Experiment) -> None:
    """Refuses a metric, of the best checkpoint or of early stopping, that the run does not write.

    Raises:
      ValueError: names the option, the metric and those there are.
    """
    names = experiment.domain_names
    known = ["reward/mean", *(f"reward/{name}" for name in names)]
    if experiment.evaluation.every > 0:
        tested = [domain.name for domain in experiment.test]
        for measure in experiment.evaluation.measures:
            known += [f"evaluation/{measure}/{name}" for name in ("overall", *tested)]
    followed = {
        "config.checkpoint.best": experiment.checkpoint.best,
        "config.stop.metric": experiment.stop.metric,
    }
    for path, name in followed.items():
        if name and name not in known:
            raise ValueError(
                f"{path} must be '' or one of {', '.join(known)}; got {name!r}. Metrics of the "
                f"evaluation are there where config.evaluation.every is above 0; it is "
                f"{experiment.evaluation.every}"
            )


def embedding_rows(config: Any, shape: Mapping[str, Any]) -> int:
    """The rows that the folder's embedding has, or the policy's options ask for; 0 for neither."""
    options.check_keys(config, POLICY, "config.policy")
    rows = shape.get("vocab_size", config.vocab_size)
    return rows if type(rows) is int and rows > 0 else 0


def make_policy(
    config: Any, vocabulary: Vocabulary, shape: Mapping[str, Any], folder: str = ""
) -> TransformerConfig:
    """The shape of the policy; `vocab_size` 0 is the folder's, or the tokenizer's own size.

    Args:
      config: its options.
      vocabulary: whose tokens must have a place.
      shape: what the folder says of it, which it must not contradict; {} without a folder.
      folder: its name.

    Raises:
      ValueError: a bad option, or an embedding smaller than the tokenizer.
    """
    options.check_keys(config, POLICY, "config.policy")
    check_shape(config, shape, folder)
    values = dict(config.items())
    size = values.pop("vocab_size")
    if size == 0 and "vocab_size" in shape:
        size = shape["vocab_size"]
    if shape and type(size) is int and size < vocabulary.size:
        raise ValueError(
            f"config.model.folder = {folder!r}: the tokenizer has {vocabulary.size} tokens, more "
            f"than the vocabulary of {size} that the model has"
        )
    if type(size) is not int or (size != 0 and size < vocabulary.size):
        raise ValueError(
            f"config.policy.vocab_size must be 0 or at least the {vocabulary.size} tokens of the "
            f"tokenizer; got {size!r}"
        )
    given = {"vocab_size": size if size else vocabulary.size}
    return options.parse(TransformerConfig, values, "config.policy", given)


def make_adapters(config: Any, policy: TransformerConfig) -> LoRA | None:
    """The adapters of `config.lora`; None where all parameters are trained.

    Raises:
      ValueError: a bad option, or one that does not fit the policy.
    """
    chosen = options.parse(options.LoRA, config, "config.lora")
    if chosen.rank == 0:
        return None
    try:
        return lora.make_lora(policy, **dataclasses.asdict(chosen))
    except ValueError as error:
        raise ValueError(f"config.lora: {error}") from None
