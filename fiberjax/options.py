"""The options of an experiment: one frozen dataclass a section, read from a ConfigDict.

`configs/` holds the values as plain ConfigDicts, which the command line may override. Before
anything compiles, `parse` reads each section into the dataclass that documents it, and refuses a
key that is missing, unknown or of another type by its full path. The library below takes plain
values; nothing else sees a ConfigDict.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from fiberjax.mismatch import CORRECTIONS
from fiberjax.optimizers import MOMENT_DTYPES, OPTIMIZERS, SCHEDULES
from fiberjax.step_share import REFERENCES as STEP_SHARES

Section = TypeVar("Section")

WRITERS = ("jsonl", "tensorboard", "wandb")
"""Where metrics can go; see `run.writers`."""


def parse(
    section: type[Section], config: Any, path: str, given: Mapping[str, Any] | None = None
) -> Section:
    """Reads one section of a config into its dataclass.

    Args:
      section: a frozen dataclass whose fields are bool, int, float, str, tuple or Mapping.
      config: a ConfigDict or mapping with exactly these keys.
      path: of the section, for errors, e.g. "config.rollout".
      given: fields that the program sets and the config does not have.

    Raises:
      ValueError: a missing or unknown key, a value of another type, or whatever the dataclass
        itself refuses.
    """
    given = {} if given is None else given
    fields = {
        field.name: field.type
        for field in dataclasses.fields(section)  # type: ignore[arg-type]
        if field.name not in given
    }
    check_keys(config, tuple(fields), path)
    values = {name: _typed(config[name], kind, f"{path}.{name}") for name, kind in fields.items()}
    try:
        return section(**values, **given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_keys(config: Any, expected: tuple[str, ...], path: str) -> None:
    """Refuses a section whose keys are not exactly the expected ones."""
    if not isinstance(config, Mapping) and not hasattr(config, "items"):
        raise ValueError(f"{path} must be a section with {', '.join(expected)}; got {config!r}")
    for name in config:
        if name not in expected:
            close = difflib.get_close_matches(name, expected, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(expected)}"
            raise ValueError(f"{path}.{name} does not exist; {hint}")
    for name in expected:
        if name not in config:
            raise ValueError(f"{path}.{name} is missing")


def _typed(value: Any, kind: Any, path: str) -> Any:
    """The value as the field's type; an int may stand for a float."""
    if kind is Mapping:
        if not hasattr(value, "items"):
            raise ValueError(f"{path} must be a section; got {value!r}")
        return value.to_dict() if hasattr(value, "to_dict") else dict(value)
    if kind is float and type(value) is int:
        return float(value)
    kinds = typing.get_args(kind) or (kind,)
    if tuple in kinds and isinstance(value, list):  # As JSON gives it.
        return tuple(value)
    if type(value) not in kinds:
        expected = " or ".join(each.__name__ for each in kinds)
        raise ValueError(f"{path} must be {expected}; got {value!r}")
    return value


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}; got {value!r}")


def _require_positive(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        _require(value > 0, name, value, "positive")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, name, value, f"one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class Run:
    """What stands in no section.

    Attributes:
      seed: of everything random.
      iterations: rollouts and their updates, how many times.
      levels: the levels above the trajectory, finest first: pairs of a name and the column of the
        data that says who belongs together; the empty column is the prompt. See `tasks.levels`.
      advantage: the estimator of advantages, a key of `advantages.ESTIMATORS` or of a plugin.
      plugins: files of your own, or modules, with gates, rewards and estimators; see `plugins`.
      writers: where metrics go: "jsonl", always, "tensorboard", and "wandb" (offline, with the
        extra of that name); see `run.writers`.
    """

    seed: int
    iterations: int
    levels: tuple
    advantage: str
    plugins: tuple
    writers: tuple

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("iterations", 1)):
            value = getattr(self, name)
            _require(least <= value < 2**31, name, value, f"at least {least} and below 2³¹")
        known = all(writer in WRITERS for writer in self.writers)
        _require(known, "writers", self.writers, f"names of {', '.join(WRITERS)}")
        once = len(set(self.writers)) == len(self.writers) and "jsonl" in self.writers
        _require(once, "writers", self.writers, "names, each once, and 'jsonl' among them")


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Where prompts come from.

    Attributes:
      data_dir: folder of the generated data sets; built if absent.
      domains: name of a procedural family -> its knobs; see `tasks.FAMILIES`.
      num_train: training examples a family.
      num_test: held-out examples a family.
      seed: of the draws.
      file: rows with `prompt`, `answer` and optionally `domain` and `solution`: a file (JSONL,
        JSON, CSV, Parquet or Arrow, or gzip of these), a folder, a glob, or several with commas
        between them, or as a tuple; replaces the families. Empty for none.
      test_file: the held-out rows, alike; empty takes the files of a folder or a glob that are
        called test, or validation; without any, a tenth of the prompts, by their hash.
      columns: `prompt`, `answer`, `domain` and `solution` -> where each stands, if not under its
        own name: a column, a dotted path into nested ones, or several, which are joined.
      layout: how a published data set is read, a key of `tasks.LAYOUTS`; one for all of `file`, or
        one for each, alike separated. Empty for none; `columns` goes before it.
      keep: further columns that rewards read, as `Example.row`.
      verifier: how answers of `file` are checked, a key of `tasks.VERIFIERS` or a sum of them,
        such as "number + 0.1*format"; "auto" is the layout's, and "exact" without one.
      duplicates: "once" counts a prompt of several rows once, and trains on none that is held out;
        "keep" counts rows.
      too_long: a prompt that the window does not hold: "refuse" ends, naming the longest; "drop"
        leaves the row out; "truncate" leaves out the beginning of its text.
      pass_threshold: the least reward of a completion that passes. What passes is counted by pass@k
        and by the curriculum's pass rates; advantages and mean@k are of the rewards themselves.
      vocabulary: "characters" of the families, or printable "ascii"; a published model brings its
        own, see `Model`.
    """

    data_dir: str
    domains: Mapping
    num_train: int
    num_test: int
    seed: int
    file: str | tuple
    test_file: str | tuple
    columns: Mapping
    layout: str | tuple
    keep: tuple
    verifier: str
    duplicates: str
    too_long: str
    pass_threshold: float
    vocabulary: str

    def __post_init__(self) -> None:
        _require_positive(self, "num_train", "num_test")
        if self.test_file and not self.file:
            raise ValueError(f"test_file {self.test_file!r} is given without a file")
        if not self.file and not self.domains:
            raise ValueError("domains is empty and there is no file")
        for name in ("file", "test_file", "layout", "keep"):
            value = getattr(self, name)
            known = isinstance(value, str) or all(isinstance(each, str) for each in value)
            _require(known, name, value, "texts")
        _require_choice("duplicates", self.duplicates, ("once", "keep"))
        _require_choice("too_long", self.too_long, ("refuse", "drop", "truncate"))
        _require(
            math.isfinite(self.pass_threshold), "pass_threshold", self.pass_threshold, "finite"
        )


@dataclasses.dataclass(frozen=True)
class Window:
    """The static shape of a sequence, in tokens.

    Attributes:
      prompt: P, columns of the prompt, begin of sequence included.
      completion: C, columns of the completion, end of sequence included.
    """

    prompt: int
    completion: int

    def __post_init__(self) -> None:
        _require_positive(self, "prompt", "completion")


@dataclasses.dataclass(frozen=True)
class Model:
    """The published model that training starts from; its folder says all that it can.

    Attributes:
      folder: of the model (`config.json`, `model*.safetensors`, tokenizer); "" begins with random
        parameters of the shape that `config.policy` has.
      tokenizer: "auto" is the folder's, and without a folder that of `tasks.vocabulary`; "tasks" is
        the latter even with a folder; or the path of another folder, or of a tokenizer.json.
      overrides: what is believed in place of the folder: `context`, in tokens; and as the texts of
        tokens `pad`, `begin` ("" for none) and `end`, a tuple.
      chat: whether prompts stand in the chat template: "on", "off", or "auto", if there is one.
      system: the system prompt; "" for none.
      examples: what is shown before every prompt: pairs of what a user says and what is answered,
        or paths of JSONL files with `prompt` and `solution` or `answer`.
      thinking: "on" or "off" where the template has such a mode; "auto" tells it nothing.
      stop: texts that end a completion, beside the folder's end tokens.
      warm_start: whether the supervised steps of `config.warm_start` train the published weights.
    """

    folder: str
    tokenizer: str
    overrides: Mapping
    chat: str
    system: str
    examples: tuple
    thinking: str
    stop: tuple
    warm_start: bool

    def __post_init__(self) -> None:
        for name in ("chat", "thinking"):
            _require_choice(name, getattr(self, name), ("auto", "on", "off"))
        for stop in self.stop:
            _require(isinstance(stop, str) and bool(stop), "stop", self.stop, "texts, none empty")
        for each in self.examples:
            pair = isinstance(each, tuple | list) and [type(text) for text in each] == [str, str]
            expected = "pairs of texts, or paths of files"
            _require(pair or isinstance(each, str), "examples", self.examples, expected)
        kinds = {"context": int, "pad": str, "begin": str, "end": tuple | list}
        for name, value in self.overrides.items():
            _require(name in kinds, "overrides", name, f"of {', '.join(kinds)}")
            _require(isinstance(value, kinds[name]), f"overrides.{name}", value, str(kinds[name]))
        if not self.published and (asked := self.asked):
            raise ValueError(f"{asked[0]} is of a published model's tokenizer, and there is none")

    @property
    def published(self) -> bool:
        """Whether the tokenizer is a published one."""
        return self.tokenizer not in ("auto", "tasks") or (
            self.tokenizer == "auto" and bool(self.folder)
        )

    @property
    def asked(self) -> list[str]:
        """The options of its tokenizer that are not as they are without one."""
        plain = {"chat": ("auto", "off"), "system": ("",), "examples": ((),), "stop": ((),)}
        plain |= {"thinking": ("auto",)}
        return [name for name, values in plain.items() if getattr(self, name) not in values]


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters, trained in place of all parameters; see `policy.lora`.

    Attributes:
      rank: of every adapter; 0 trains all parameters, and nothing else here is read.
      alpha: what an adapter gives is multiplied by `alpha / rank`.
      targets: the matrices that have one, as published models call them: "q_proj", "k_proj",
        "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"; or "all-linear" for all of them.
      base_dtype: "float32" or "bfloat16", of the matrices that stay as they are. In the compute
        dtype of the policy nothing is lost; adapters are float32.
    """

    rank: int
    alpha: float
    targets: tuple
    base_dtype: str

    def __post_init__(self) -> None:
        _require(self.rank >= 0, "rank", self.rank, "at least 0")


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """The supervised phase on solved examples, saved and reused.

    Attributes:
      directory: where warm starts are kept, each under the digest of what it depends on.
      steps: optimizer steps; 0 leaves the parameters as they begin, random or of `config.model`.
      batch_size: rows a step.
      flawed: share of the procedural domains' solutions that are taught with one wrong token. The
        policy then knows the way and slips, as one does that has read wrong solutions too. The
        solutions of a file are taught as they are.
      optimizer: one of `optimizers.OPTIMIZERS`.
      learning_rate: peak; cosine decay to 0 after a warm-up of a tenth of the steps.
      weight_decay: decoupled, of the layers' matrices alone.
    """

    directory: str
    steps: int
    batch_size: int
    flawed: float
    optimizer: str
    learning_rate: float
    weight_decay: float

    def __post_init__(self) -> None:
        _require(self.steps >= 0, "steps", self.steps, "at least 0")
        _require(0 <= self.flawed <= 1, "flawed", self.flawed, "between 0 and 1")
        _require_choice("optimizer", self.optimizer, OPTIMIZERS)
        _require_positive(self, "batch_size", "learning_rate")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Sampling of one iteration.

    Attributes:
      prompts: prompts drawn.
      samples: G, completions a prompt; they are its group.
      temperature: of the sampler and of every log-probability.
      top_k: 0 keeps every token.
      top_p: 1.0 keeps every token.
      max_rows: completions drawn at a time on each row shard at most, in evaluations too: the cache
        holds these, and more are drawn in parts, one after the other; 0 draws all together. The
        draws are the same.
      resample: leaves groups whose rewards are all equal out of the updates, and draws further
        prompts in their place: the largest multiple of `prompts` that an iteration draws. What is
        missing then is padding, which no mean counts. 0 or 1 trains on what is drawn.
      shuffle_rewards: a control experiment: advantages are made of rewards that were permuted over
        the whole batch, so that a run can learn nothing from them. Metrics and the curriculum see
        the true rewards.
    """

    prompts: int
    samples: int
    temperature: float
    top_k: int
    top_p: float
    max_rows: int
    resample: int
    shuffle_rewards: bool

    def __post_init__(self) -> None:
        _require_positive(self, "prompts", "samples", "temperature")
        _require(self.top_k >= 0, "top_k", self.top_k, "at least 0")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _require(self.max_rows >= 0, "max_rows", self.max_rows, "at least 0")
        _require(self.resample >= 0, "resample", self.resample, "at least 0")
        if self.resample > 1 and self.samples == 1:
            raise ValueError(
                f"resample = {self.resample} looks for groups whose rewards differ, and samples = "
                "1 makes groups of one: expected samples of at least 2, or resample = 0"
            )


@dataclasses.dataclass(frozen=True)
class Training:
    """The updates on one batch of rollouts.

    Attributes:
      epochs: passes over the rollouts.
      minibatches: optimizer batches a pass; each holds every minibatches-th prompt group, whole.
      micro_batches: splits of the policy's passes within an optimizer batch; the gradient is the
        same for any number.
      packing: puts several trajectories into a row for the updates, so that ragged answers waste no
        tokens; the result is the same. Whole micro-batches are saved, so there must be several. A
        few shapes compile, as answers grow longer or shorter.
      weighting: "trajectory" (published), "token", or "constant" (sum over the completion window).
      entropy_coefficient: weight of the entropy bonus; 0 leaves it out.
      kl_coefficient: weight of the KL penalty to the warm start; 0 leaves it out.
      kl_estimator: "k2" or "k3".
      kl_ratio_weight: whether the KL penalty weighs each token by its ratio, as its gradient needs
        from the second update on a batch; False takes tokens as if the current policy had drawn
        them.
      step_share: multiplies each update by the share of the coefficients that the gate leaves open,
        so that an optimizer that normalises does not undo the gate: "importance", "limit" or
        "on_policy" says what they are compared with (see `step_share.REFERENCES`); "none" takes
        whole steps. Not for "sgd", whose steps are short by themselves.
      edge: what the gate's ratios are taken over: "update", the policy before the first update on
        the rollouts, as the trainer computes it; or "direct", the sampler, which has the mismatch
        within.
      mismatch: correction for sampler and trainer disagreeing: "none"; of tokens "truncate"
        (weights capped), "mask" (dropped beyond the cap or below one over it) or "icepop" (dropped
        beyond the cap or below the floor); of trajectories "truncate_trajectory" (the product of
        the ratios, capped) or "reject" (dropped where their geometric mean is beyond the cap or
        below the floor). Only "none" goes with the direct edge.
      router_replay: of a mixture of experts, sends each token of the updates to the experts that
        the policy before them sent it to, in every layer: ratios then tell of weights, and not of
        tokens that went elsewhere. Shares of experts stay those of the current policy.
      mismatch_cap: the cap, a ratio above 1.
      mismatch_floor: the floor, a ratio below 1.
      chunk: columns whose logits exist at a time.
      unpaid_iterations: the run stops where in so many first iterations the rewards of every prompt
        group were equal, or every reward of a domain was 0; 0 never stops it.
    """

    epochs: int
    minibatches: int
    micro_batches: int
    packing: bool
    weighting: str
    entropy_coefficient: float
    kl_coefficient: float
    kl_estimator: str
    kl_ratio_weight: bool
    edge: str
    step_share: str
    mismatch: str
    router_replay: bool
    mismatch_cap: float
    mismatch_floor: float
    chunk: int
    unpaid_iterations: int

    def __post_init__(self) -> None:
        _require_positive(self, "epochs", "minibatches", "micro_batches", "chunk")
        unpaid = self.unpaid_iterations
        _require(unpaid >= 0, "unpaid_iterations", unpaid, "at least 0")
        _require_choice("weighting", self.weighting, ("trajectory", "token", "constant"))
        _require_choice("kl_estimator", self.kl_estimator, ("k2", "k3"))
        _require_choice("step_share", self.step_share, ("none", *STEP_SHARES))
        _require_choice("edge", self.edge, ("update", "direct"))
        _require_choice("mismatch", self.mismatch, ("none", *CORRECTIONS))
        if self.edge == "direct" and self.mismatch != "none":
            raise ValueError(
                f'edge = "direct" has the mismatch within, and mismatch = {self.mismatch!r} would '
                'correct it twice: expected edge = "update" or mismatch = "none"'
            )
        _require(self.kl_coefficient >= 0, "kl_coefficient", self.kl_coefficient, "at least 0")
        _require(self.mismatch_cap > 1, "mismatch_cap", self.mismatch_cap, "above 1")
        floor = self.mismatch_floor
        _require(0 < floor < 1, "mismatch_floor", floor, "in (0, 1)")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer of the policy updates; see `optimizers`.

    Attributes:
      name: "adamw", "muon" or "sgd".
      schedule: "constant", "linear" or "cosine".
      learning_rate: peak.
      warmup_steps: updates from 0 to the peak.
      b1: decay of the first moment.
      b2: decay of the second moment.
      weight_decay: decoupled, of the layers' matrices alone.
      decay_all: whether AdamW and SGD decay embeddings, head, norm scales and biases too, SGD
        through its momentum: as the first runs did.
      clip_norm: largest global gradient norm; 0 for none.
      moment_dtype: "float32" or "bfloat16".
    """

    name: str
    schedule: str
    learning_rate: float
    warmup_steps: int
    b1: float
    b2: float
    weight_decay: float
    decay_all: bool
    clip_norm: float
    moment_dtype: str

    def __post_init__(self) -> None:
        _require_choice("name", self.name, OPTIMIZERS)
        _require_choice("schedule", self.schedule, SCHEDULES)
        _require_choice("moment_dtype", self.moment_dtype, tuple(MOMENT_DTYPES))
        _require_positive(self, "learning_rate")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            _require(0 <= value < 1, name, value, "in [0, 1)")
        for name in ("warmup_steps", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            _require(value >= 0, name, value, "at least 0")


BUDGET_CONTROLS = ("none", "anneal", "kl", "effective_sample_size")
"""What the gate's budgets follow."""


@dataclasses.dataclass(frozen=True)
class BudgetControl:
    """Budgets that follow the run; see `run.budget_control`.

    Attributes:
      kind: "none" leaves them as they are set; "anneal" multiplies them by a factor that goes in a
        straight line from 1 to `end`; "kl" and "effective_sample_size" by one that holds the
        measure of each iteration's updates to `target`.
      target: for "kl" nats a token, as `actor/ppo_kl_k3` is logged; for "effective_sample_size" a
        fraction, as `is_ratio/effective_sample_size/trajectory` is. Not read by the others.
      gain: how much of what is missing an iteration makes up, in (0, 1].
      end: of "anneal", the factor of the last iteration.
      largest: the factor stays between one over this and this.
    """

    kind: str
    target: float
    gain: float
    end: float
    largest: float

    def __post_init__(self) -> None:
        _require_choice("kind", self.kind, BUDGET_CONTROLS)
        if self.kind == "kl":
            _require(self.target > 0, "target", self.target, "a KL above 0, nats a token")
        if self.kind == "effective_sample_size":
            _require(0 < self.target < 1, "target", self.target, "a fraction in (0, 1)")
        _require(0 < self.gain <= 1, "gain", self.gain, "in (0, 1]")
        _require_positive(self, "end")
        _require(self.largest >= 1, "largest", self.largest, "at least 1")


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Which prompts are drawn; see `tasks.curriculum`.

    Attributes:
      start: target pass rate of the first iteration.
      end: target pass rate of the last one.
      sigma: width; a large number draws evenly.
      rate: how far one group moves a prompt's pass rate, in (0, 1]: 1 forgets what was before.
      profile_samples: completions a prompt of the profile before training; 0 for none.
      domain_probability: domain -> fixed probability of drawing from it.
    """

    start: float
    end: float
    sigma: float
    rate: float
    profile_samples: int
    domain_probability: Mapping

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            _require(0 <= value <= 1, name, value, "in [0, 1]")
        _require(0 < self.rate <= 1, "rate", self.rate, "in (0, 1]")
        _require_positive(self, "sigma")
        _require(self.profile_samples >= 0, "profile_samples", self.profile_samples, "at least 0")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The measurement on held-out prompts before, while and after training.

    Attributes:
      prompts: held-out prompts a domain, before and after.
      samples: k, completions a prompt.
      batch: prompts sampled at a time.
      every: iterations from one evaluation to the next while training, the last one included: the
        points of a curve; 0 for none.
      curve_prompts: held-out prompts a domain of a point of the curve, the first of `prompts`; all
        of them where there are no more.
      temperature: of the sampler; 0 takes the likeliest token each time, and needs 1 sample.
      top_k: 0 keeps every token.
      top_p: 1.0 keeps every token.
    """

    prompts: int
    samples: int
    batch: int
    every: int
    curve_prompts: int
    temperature: float
    top_k: int
    top_p: float

    def __post_init__(self) -> None:
        _require_positive(self, "prompts", "samples", "batch", "curve_prompts")
        _require(self.every >= 0, "every", self.every, "at least 0")
        _require(self.temperature >= 0, "temperature", self.temperature, "at least 0")
        _require(self.top_k >= 0, "top_k", self.top_k, "at least 0")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"temperature = 0 gives one and the same completion, and samples = {self.samples}: "
                "expected samples = 1"
            )

    @property
    def of_curve(self) -> int:
        """Held-out prompts a domain of a point of the curve."""
        return min(self.curve_prompts, self.prompts)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of what is measured: mean@k, and pass@k where k is above 1."""
        k = self.samples
        return (f"mean@{k}", f"pass@{k}") if k > 1 else (f"mean@{k}",)


@dataclasses.dataclass(frozen=True)
class Keep:
    """What a run keeps and shows of what its policy writes; see `run.rollouts`.

    Nothing of it changes what is drawn or trained, and it may be changed when a run is resumed.

    Attributes:
      samples: completions a domain, each of another prompt: of an iteration's rollouts, and as many
        of an evaluation's.
      every: iterations from one file in `samples/` to the next; 0 keeps none, of evaluations
        neither.
      show_every: iterations from one showing, on the terminal and in TensorBoard, to the next; 0
        shows none.
      megabytes: that `samples/` may hold; once it does, no more are kept, which is said.
    """

    samples: int
    every: int
    show_every: int
    megabytes: float

    def __post_init__(self) -> None:
        _require_positive(self, "samples", "megabytes")
        for name in ("every", "show_every"):
            value = getattr(self, name)
            _require(value >= 0, name, value, "at least 0")


MODES = ("max", "min")
"""Whether a metric is the better the larger or the smaller it is."""


@dataclasses.dataclass(frozen=True)
class Stop:
    """When a run stops before its last iteration; may be changed when a run is resumed.

    Attributes:
      metric: an evaluation's, such as "evaluation/mean@4/overall", or a mean reward, "reward/mean"
        or "reward/<domain>"; "" never stops early.
      patience: how many values in a row without a better one stop the run: evaluations where the
        metric is of the evaluation, iterations else.
      min_delta: by how much a value must be better than the best one to count as better.
      mode: "max" or "min": which is better.
    """

    metric: str
    patience: int
    min_delta: float
    mode: str

    def __post_init__(self) -> None:
        _require_positive(self, "patience")
        _require(self.min_delta >= 0, "min_delta", self.min_delta, "at least 0")
        _require_choice("mode", self.mode, MODES)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The devices, as a box; one size may be -1 and takes what the others leave. See `mesh`.

    Attributes:
      data: replicas of the parameters; rows of a batch are split.
      fsdp: parameters and optimizer state are split, and rows too.
      tensor: heads, MLP and vocabulary are split.
    """

    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the run is saved.

    Attributes:
      every: iterations between checkpoints; the last iteration is always saved.
      keep: checkpoints kept, the newest.
      best: the metric by which the best checkpoint is kept beside them, as `Stop.metric` names one;
        every iteration that is better than all before is saved. "" for none.
      best_mode: "max" or "min": which is better.
    """

    every: int
    keep: int
    best: str
    best_mode: str

    def __post_init__(self) -> None:
        _require_positive(self, "every", "keep")
        _require_choice("best_mode", self.best_mode, MODES)
