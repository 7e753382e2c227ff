"""The options of an experiment: one frozen dataclass a section, read from a ConfigDict.

`configs/` holds the values as plain ConfigDicts, which the command line may override. Before
anything compiles, `parse` reads each section into the dataclass that documents it, and refuses a
key that is missing, unknown, of another type or out of its bounds by its full path. Bounds stand
beside the types; every number is finite once it is cast, whatever its field. The library below
takes plain values; nothing else sees a ConfigDict.
"""

import dataclasses
import difflib
import json
import typing
import urllib.parse
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fiberjax import bounds, iterations
from fiberjax.bounds import (
    AT_LEAST_0,
    AT_LEAST_1,
    FRACTION,
    NOT_EMPTY,
    POSITIVE,
    Range,
    shown,
)
from fiberjax.mismatch import CORRECTIONS
from fiberjax.optimizers import MOMENT_DTYPES, OPTIMIZERS, SCHEDULES
from fiberjax.step_share import FORMS as STEP_SHARES

Section = TypeVar("Section")

WINDOW = Range("[1, 16777216]")
"""Tokens of a prompt or a completion."""

MESH_SIZE = Range("[-1, 1048576]")
"""Devices along an axis; -1 for those that the others leave."""

TEMPERATURE = Range("[0.001, 1000]")
"""Of sampling: beyond it logits become infinite, or the same."""

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
      ValueError: a missing or unknown key, a value of another type or out of its bounds, or
        whatever the dataclass itself refuses.
    """
    given = {} if given is None else given
    fields = {
        field.name: bounds.base_type(field.type)
        for field in dataclasses.fields(section)  # type: ignore[arg-type]
        if field.name not in given
    }
    check_keys(config, tuple(fields), path)
    values = {name: _typed(config[name], kind, f"{path}.{name}") for name, kind in fields.items()}
    try:
        bounds.check_values(section, values | dict(given))
        return section(**values, **given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_keys(config: Any, expected: tuple[str, ...], path: str) -> None:
    """Refuses a section whose keys are not exactly the expected ones."""
    if not isinstance(config, Mapping) and not hasattr(config, "items"):
        listed = ", ".join(expected)
        raise ValueError(f"{path} must be a section with {listed}; got {shown(config)}")
    for name in config:
        if not isinstance(name, str):
            raise ValueError(f"{path} must have texts for names; got {shown(name)}")
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
            raise ValueError(f"{path} must be a section; got {shown(value)}")
        return value.to_dict() if hasattr(value, "to_dict") else dict(value)
    if kind is float and type(value) is int:
        bounds.check_sound(value, path)
        return float(value)
    kinds = typing.get_args(kind) or (kind,)
    if tuple in kinds and isinstance(value, list):  # As JSON gives it.
        return tuple(value)
    if type(value) not in kinds:
        expected = " or ".join(each.__name__ for each in kinds)
        raise ValueError(f"{path} must be {expected}; got {shown(value)}")
    return value


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}; got {shown(value)}")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, name, value, f"one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class Run:
    """What stands in no section.

    Attributes:
      seed: of everything random.
      iterations: rollouts and their updates, how many times.
      levels: the levels above the trajectory, finest first: pairs of a name and the column of the
        data that says who belongs together; the empty column is the prompt. Before them may stand
        ("turn", "turn"), below the trajectory. See `tasks.levels`.
      advantage: the estimator of advantages, a key of `advantages.ESTIMATORS` or of a plugin.
      plugins: files of your own, or modules, with gates, rewards, estimators and environments; see
        `plugins`.
      writers: where metrics go: "jsonl", always, "tensorboard", and "wandb" (offline, with the
        extra of that name); see `run.writers`.
    """

    seed: Annotated[int, AT_LEAST_0]
    iterations: Annotated[int, AT_LEAST_1]
    levels: tuple
    advantage: str
    plugins: tuple
    writers: tuple

    def __post_init__(self) -> None:
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
      reasoning_gym: data sets of reasoning-gym (extra `reasoning`), each a domain: names with
        commas between them, or a tuple of names and of tuples such as
        `("leg_counting", ("max_animals", 4))`; replaces the families, and stands beside the domains
        of a `file`.
      num_train: training examples a family, or a data set of reasoning-gym.
      num_test: held-out examples of each.
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
      verifier: how answers of `file` are checked, a key of `tasks.VERIFIERS`, a function of your
        own as "module:function" or "file.py:function", or a sum of them, such as
        "number + 0.1*format"; "auto" is the layout's, and "exact" without one.
      verifiers: domains that have another: pairs of a domain and what `verifier` may be.
      duplicates: "once" counts a prompt of several rows once, and trains on none that is held out;
        "keep" counts rows.
      too_long: a prompt that the window does not hold: "refuse" ends, naming the longest; "drop"
        leaves the row out; "truncate" leaves out the beginning of its text.
      pass_threshold: the least reward of a completion that passes. What passes is counted by pass@k
        and by the curriculum's pass rates; advantages and mean@k are of the rewards themselves.
      vocabulary: "characters" of the families, or printable "ascii"; a published model brings its
        own, see `Model`.
    """

    data_dir: Annotated[str, NOT_EMPTY]
    domains: Mapping
    reasoning_gym: str | tuple
    num_train: Annotated[int, Range("[1, 10000000]")]
    num_test: Annotated[int, Range("[1, 10000000]")]
    seed: Annotated[int, AT_LEAST_0]
    file: str | tuple
    test_file: str | tuple
    columns: Mapping
    layout: str | tuple
    keep: tuple
    verifier: str
    verifiers: tuple
    duplicates: str
    too_long: str
    pass_threshold: float
    vocabulary: str

    def __post_init__(self) -> None:
        if self.test_file and not self.file:
            raise ValueError(f"test_file {self.test_file!r} is given without a file")
        if not self.of_rows and not self.domains:
            raise ValueError("domains is empty and there is no file")
        if not self.of_rows:
            given = {"layout": self.layout, "keep": self.keep, "verifiers": self.verifiers}
            given |= {f"columns.{name}": column for name, column in self.columns.items()}
            given["verifier"] = "" if self.verifier == "auto" else self.verifier
            for name, value in given.items():
                if value:
                    raise ValueError(
                        f"{name} = {value!r} says how rows are read, and there is no file"
                    )
        for name in ("file", "test_file", "layout", "keep"):
            value = getattr(self, name)
            known = isinstance(value, str) or all(isinstance(each, str) for each in value)
            _require(known, name, value, "texts")
        for pair in self.verifiers:
            fits = isinstance(pair, tuple | list) and [type(of) for of in pair] == [str, str]
            _require(fits, "verifiers", self.verifiers, "pairs of a domain and a verifier")
        once = len({domain for domain, _ in self.verifiers}) == len(self.verifiers)
        _require(once, "verifiers", self.verifiers, "pairs, each domain once")
        _require_choice("duplicates", self.duplicates, ("once", "keep"))
        _require_choice("too_long", self.too_long, ("refuse", "drop", "truncate"))

    @property
    def of_rows(self) -> bool:
        """Whether prompts are of a file or of reasoning-gym, and not of the families."""
        return bool(self.file or self.reasoning_gym)


TRUNCATED = ("score", "zero", "mask")
"""What becomes of completions that the window cut."""


@dataclasses.dataclass(frozen=True)
class Rewards:
    """What rewards may take, what becomes of them, and what is looked at before training.

    Attributes:
      workers: processes a function that runs apart, the user's own rewards, environment and
        `math`, at most, and no more than there are cores.
      seconds: of processor time that such a function may take for a completion or a reply, and ten
        times as long asleep or waiting; a batched function so much for each.
      megabytes: of memory that it may take beyond its imports.
      failed: what becomes of a completion for which it raises, takes more, or ends its process:
        "zero" pays 0 and counts it, as `verifier/failed`, or ends the episode there and counts it
        as `turns/failed`; "stop" ends the run.
      format: the regular expression that the verifier `format` wants a whole completion to match,
        in the syntax of RE2; "" for none.
      truncated: what becomes of a completion that did not end by itself: "score" pays what its text
        pays, "zero" pays 0; "mask" leaves it out of the loss and its group's statistics.
      overlong_cache: tokens over which the punishment of long completions grows, from 0 to −1; 0
        for none.
      overlong_from: tokens up to which a completion costs nothing; 0 punishes within the last
        `overlong_cache` tokens of the window.
      golds: before training, answers of a file are verified against themselves. "refuse" ends where
        less than half of a domain's are paid, "tell" says so and goes on, "skip" does not look.
      shown: completions a domain that are shown before training, of a file's held-out prompts, with
        what was taken for their answer and the reward; 0 shows none.
    """

    workers: Annotated[int, AT_LEAST_1]
    seconds: Annotated[float, POSITIVE]
    megabytes: Annotated[float, POSITIVE]
    failed: str
    format: str
    truncated: str
    overlong_cache: Annotated[int, AT_LEAST_0]
    overlong_from: Annotated[int, AT_LEAST_0]
    golds: str
    shown: Annotated[int, AT_LEAST_0]

    def __post_init__(self) -> None:
        _require_choice("failed", self.failed, ("zero", "stop"))
        _require_choice("truncated", self.truncated, TRUNCATED)
        _require_choice("golds", self.golds, ("refuse", "tell", "skip"))
        if self.overlong_from > 0 and self.overlong_cache == 0:
            raise ValueError(
                f"overlong_from = {self.overlong_from} is given without an overlong_cache"
            )

    def overlong_start(self, window: int) -> int:
        """The most tokens that cost nothing, in a window of so many.

        Raises:
          ValueError: nothing in the window would be punished.
        """
        start = self.overlong_from if self.overlong_from > 0 else window - self.overlong_cache
        if self.overlong_cache > 0 and not 0 <= start < window:
            raise ValueError(
                f"config.rewards.overlong_cache = {self.overlong_cache} and overlong_from = "
                f"{self.overlong_from} punish nothing or everything of config.window.completion = "
                f"{window} tokens"
            )
        return start


@dataclasses.dataclass(frozen=True)
class Window:
    """The static shape of a sequence, in tokens.

    Attributes:
      prompt: P, columns of the prompt, begin of sequence included.
      completion: C, columns of the completion, end of sequence included; of all turns and replies
        where there are several.
    """

    prompt: Annotated[int, WINDOW]
    completion: Annotated[int, WINDOW]


@dataclasses.dataclass(frozen=True)
class Turns:
    """Episodes of several turns, between which an environment answers; see `tasks.environments`.

    Attributes:
      environment: who answers the policy, a key of `tasks.environments.ENVIRONMENTS` or of a
        plugin; "" for nobody, and one turn.
      limit: turns of the policy in an episode, at most. All turns and the replies between them
        share the columns of `window.completion`: a turn has at most `(completion − (limit − 1) ·
        reply) / limit` tokens, end of sequence included.
      reply: tokens of a reply at most, with all that a chat writes around it; more are cut off.
      role: who answers, as a chat template has it: "user" or "tool".
      read: what verifiers read: "last", the policy's last turn, or "all", turns and replies with
        U+001E between them.
    """

    environment: str
    limit: Annotated[int, AT_LEAST_1]
    reply: Annotated[int, AT_LEAST_0]
    role: str
    read: str

    def __post_init__(self) -> None:
        _require_choice("role", self.role, ("user", "tool"))
        _require_choice("read", self.read, ("last", "all"))
        if self.environment:
            _require(self.limit >= 2, "limit", self.limit, "at least 2 with an environment")
            _require(self.reply >= 1, "reply", self.reply, "at least 1 with an environment")
        else:
            _require(self.limit == 1, "limit", self.limit, "1 without an environment")
            _require(self.reply == 0, "reply", self.reply, "0 without an environment")


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

    rank: Annotated[int, AT_LEAST_0]
    alpha: Annotated[float, POSITIVE]
    targets: tuple
    base_dtype: str


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

    directory: Annotated[str, NOT_EMPTY]
    steps: Annotated[int, AT_LEAST_0]
    batch_size: Annotated[int, AT_LEAST_1]
    flawed: Annotated[float, FRACTION]
    optimizer: str
    learning_rate: Annotated[float, POSITIVE]
    weight_decay: Annotated[float, AT_LEAST_0]

    def __post_init__(self) -> None:
        _require_choice("optimizer", self.optimizer, OPTIMIZERS)


ENGINES = ("own", "http")
"""Who draws completions."""

CACHE_DTYPES = ("", "bfloat16", "int8")
"""What keys and values are kept in while sampling; "" is the compute dtype."""


@dataclasses.dataclass(frozen=True)
class Server:
    """The server that draws completions where config.rollout.engine is "http".

    Not read otherwise. How vLLM and SGLang are started: docs/rollouts.md.

    Attributes:
      url: "http://host:port", what stands before "/v1/completions".
      model: the name that the server has for the policy.
      folder: where the policy's weights are written before every iteration; the server must see it
        by the same path.
      reload: path of the request that makes the server read them.
      reload_body: what the request says, JSON; "{folder}" in one of its texts is that folder.
      dtype: "float32" or "bfloat16", of the weights there.
      timeout: seconds that one answer may take.
      retries: how often a request is made again, with the same seed, where nobody answers or the
        server says that the fault is its own.
      concurrency: requests at a time.
    """

    url: str
    model: str
    folder: str
    reload: str
    reload_body: str
    dtype: str
    timeout: Annotated[float, POSITIVE]
    retries: Annotated[int, AT_LEAST_0]
    concurrency: Annotated[int, AT_LEAST_1]

    def __post_init__(self) -> None:
        _require_choice("dtype", self.dtype, ("float32", "bfloat16"))
        _require(self.reload.startswith("/"), "reload", self.reload, "a path that begins with /")
        try:
            json.loads(self.reload_body)
        except ValueError as error:
            raise ValueError(
                f"reload_body must be JSON ({error}), got {self.reload_body!r}"
            ) from None

    def check(self) -> None:
        """Refuses what a server that is asked must have."""
        try:
            address = urllib.parse.urlsplit(self.url)
            fits = address.scheme in ("http", "https") and bool(address.hostname)
            fits = fits and (address.port or 1) > 0 and not address.query
        except ValueError:
            fits = False
        _require(fits, "url", self.url, "like 'http://127.0.0.1:8000'")
        for name in ("model", "folder"):
            _require(bool(getattr(self, name)), name, getattr(self, name), "given")


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
      slots: in place of such parts, completions decoded at a time on each row shard, in evaluations
        too: one that ends makes place for one that waits, so that a long answer holds nobody up.
        The cache holds these, `max_rows` is not read, and the draws are the same; 0 leaves it at
        parts. See docs/rollouts.md.
      cache_dtype: what the cache keeps keys and values in, in evaluations too: "", the policy's
        compute dtype; "bfloat16"; or "int8", each vector of a head and column with a scale of its
        own. Fewer bytes than the compute dtype make a sampler that disagrees with the trainer, so
        training.mismatch must then correct it. See docs/rollouts.md.
      engine: who draws completions, in evaluations too: "own", the compiled loop on the mesh, or
        "http", a server that speaks OpenAI's completions; see `Server`. Its log-probabilities are
        not those of the trainer to the last digit, so training.mismatch must then correct them.
      resample: leaves groups whose rewards are all equal out of the updates, and draws further
        prompts in their place: the largest multiple of `prompts` that an iteration draws. What is
        missing then is padding, which no mean counts. 0 or 1 trains on what is drawn.
      lag: L: the rollouts of an iteration are sampled by the policy of L iterations before it, or
        of the start, so that sampling need not wait for the updates; see docs/asynchronous.md. Old
        log-probabilities are still the trainer's when an iteration begins, so training.mismatch
        must correct what lies between. 0 samples with the policy of the iteration.
      devices: that sample and do nothing else, the last of all devices; config.mesh is then over
        the others. 0: sampling and updates take turns on all. Others need a lag.
      shuffle_rewards: a control experiment: advantages are made of rewards that were permuted over
        the whole batch, so that a run can learn nothing from them. Metrics and the curriculum see
        the true rewards.
    """

    prompts: Annotated[int, Range("[1, 262144]")]
    samples: Annotated[int, AT_LEAST_1]
    temperature: Annotated[float, TEMPERATURE]
    top_k: Annotated[int, AT_LEAST_0]
    top_p: Annotated[float, Range("(0, 1]")]
    max_rows: Annotated[int, AT_LEAST_0]
    slots: Annotated[int, AT_LEAST_0]
    cache_dtype: str
    engine: str
    resample: Annotated[int, AT_LEAST_0]
    lag: Annotated[int, AT_LEAST_0]
    devices: Annotated[int, AT_LEAST_0]
    shuffle_rewards: bool

    def __post_init__(self) -> None:
        _require_choice("engine", self.engine, ENGINES)
        _require_choice("cache_dtype", self.cache_dtype, CACHE_DTYPES)
        if self.engine == "http" and (self.top_k or self.top_p < 1):
            raise ValueError(
                f"engine = 'http' does not say how much mass top_k = {self.top_k} and top_p = "
                f"{self.top_p} keep, which the ratios need: expected top_k = 0 and top_p = 1.0"
            )
        if self.devices and (self.lag == 0 or self.engine == "http"):
            raise ValueError(
                f"devices = {self.devices} sample while others update, which lag = {self.lag} and "
                f"engine = {self.engine!r} do not let them: expected a lag of at least 1 and "
                "engine = 'own', or devices = 0"
            )
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
      packing: puts several trajectories into a row for scores and updates, so that ragged answers
        waste no tokens; the result is the same. Of several micro-batches whole ones are saved. A
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
        "on_policy" says what they are compared with, and "levels" multiplies the shares of all
        levels (see `step_share.FORMS`); "none" takes whole steps. Not for "sgd", whose steps are
        short by themselves.
      target_kl: nats a token, as `actor/ppo_kl_k3` is logged: updates on a batch are left out once
        the policy is farther than that from where it stood before the first of them; 0 leaves none
        out.
      edge: what the gate's ratios are taken over: "update", the policy before the first update on
        the rollouts, as the trainer computes it; or "direct", the sampler, which has the mismatch
        within.
      old_log_probs: who computes the log-probabilities of the policy before the first update: the
        "trainer", or the "sampler", which has them already. They are then the sampler's, and the
        trainer scores one micro-batch of an iteration to see that they agree.
      old_log_probs_gap: nats a token, in the mean, that they may differ by; beyond, the run stops.
      mismatch: correction for sampler and trainer disagreeing: "none"; of tokens "truncate"
        (weights capped), "mask" (dropped beyond the cap or below one over it) or "icepop" (dropped
        beyond the cap or below the floor); of trajectories "truncate_trajectory" (the product of
        the ratios, capped) or "reject" (dropped where their geometric mean is beyond the cap or
        below the floor). Only "none" goes with the direct edge. "uncorrected" is "none" where that
        would be refused, under a lag or of a server: it says that it is meant.
      router_replay: of a mixture of experts, sends each token of the updates to the experts that
        the policy before them sent it to, in every layer: ratios then tell of weights, and not of
        tokens that went elsewhere. Shares of experts stay those of the current policy.
      mismatch_cap: the cap, a ratio above 1.
      mismatch_floor: the floor, a ratio below 1.
      chunk: as many logits exist at a time, on a device, as so many columns have; 0: as 64 MiB
        hold.
      nonfinite: what follows where a log ratio, a loss or a gradient is NaN or infinite: "skip"
        leaves the update out, says so and counts it, and stops the run, saved, after five in a row;
        "stop" ends at the first one with an error. Either ends where parameters or moments are not
        finite, which are never saved.
      unpaid_iterations: the run stops where in so many first iterations the rewards of every prompt
        group were equal, or every reward of a domain was 0; 0 never stops it.
    """

    epochs: Annotated[int, AT_LEAST_1]
    minibatches: Annotated[int, AT_LEAST_1]
    micro_batches: Annotated[int, AT_LEAST_1]
    packing: bool
    weighting: str
    entropy_coefficient: float
    kl_coefficient: Annotated[float, AT_LEAST_0]
    kl_estimator: str
    kl_ratio_weight: bool
    target_kl: Annotated[float, AT_LEAST_0]
    edge: str
    step_share: str
    old_log_probs: str
    old_log_probs_gap: Annotated[float, Range("(0, inf)")]
    mismatch: str
    router_replay: bool
    mismatch_cap: Annotated[float, Range("(1, inf)")]
    mismatch_floor: Annotated[float, Range("(0, 1)")]
    chunk: Annotated[int, AT_LEAST_0]
    nonfinite: str
    unpaid_iterations: Annotated[int, AT_LEAST_0]

    def __post_init__(self) -> None:
        _require_choice("weighting", self.weighting, ("trajectory", "token", "constant"))
        _require_choice("kl_estimator", self.kl_estimator, ("k2", "k3"))
        _require_choice("step_share", self.step_share, ("none", *STEP_SHARES))
        _require_choice("edge", self.edge, ("update", "direct"))
        _require_choice("old_log_probs", self.old_log_probs, ("trainer", "sampler"))
        _require_choice("nonfinite", self.nonfinite, ("skip", "stop"))
        _require_choice("mismatch", self.mismatch, ("none", "uncorrected", *CORRECTIONS))
        if self.edge == "direct" and self.mismatch != "none":
            raise ValueError(
                f'edge = "direct" has the mismatch within, and mismatch = {self.mismatch!r} would '
                'correct it twice: expected edge = "update" or mismatch = "none"'
            )
        if self.old_log_probs == "sampler" and (self.mismatch != "none" or self.router_replay):
            raise ValueError(
                'old_log_probs = "sampler" scores no rollouts, which a mismatch '
                f"({self.mismatch!r}) and router_replay ({self.router_replay}) need: expected "
                '"trainer", or mismatch = "none" and router_replay = False'
            )

    @property
    def scored(self) -> bool:
        """Whether ratios are over log-probabilities that the trainer computed itself."""
        return self.edge == "update" and self.old_log_probs == "trainer"


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
    learning_rate: Annotated[float, POSITIVE]
    warmup_steps: Annotated[int, AT_LEAST_0]
    b1: Annotated[float, Range("[0, 1)")]
    b2: Annotated[float, Range("[0, 1)")]
    weight_decay: Annotated[float, AT_LEAST_0]
    decay_all: bool
    clip_norm: Annotated[float, AT_LEAST_0]
    moment_dtype: str

    def __post_init__(self) -> None:
        _require_choice("name", self.name, OPTIMIZERS)
        _require_choice("schedule", self.schedule, SCHEDULES)
        _require_choice("moment_dtype", self.moment_dtype, tuple(MOMENT_DTYPES))


CONTROLS = ("none", "anneal", "kl", "effective_sample_size")
"""What the gate's budgets, or the length of steps, follow."""

CONTROLLED = ("budgets", "steps")
"""What a control multiplies."""


@dataclasses.dataclass(frozen=True)
class Control:
    """Budgets, or steps, that follow the run; see `run.control`.

    Attributes:
      of: what the factor multiplies: "budgets", every width of the gate; or "steps", every update.
      kind: "none" leaves them as they are set; "anneal" multiplies them by a factor that goes in a
        straight line from 1 to `end`; "kl" and "effective_sample_size" by one that holds the
        measure of each iteration's updates to `target`.
      target: for "kl" nats a token, as `actor/ppo_kl_k3` is logged; for "effective_sample_size" a
        fraction, as `is_ratio/effective_sample_size/trajectory` is. Not read by the others.
      gain: how much of what is missing an iteration makes up, in (0, 1].
      end: of "anneal", the factor of the last iteration.
      largest: the factor stays between one over this and this.
    """

    of: str
    kind: str
    target: Annotated[float, AT_LEAST_0]
    gain: Annotated[float, Range("(0, 1]")]
    end: Annotated[float, POSITIVE]
    largest: Annotated[float, AT_LEAST_1]

    def __post_init__(self) -> None:
        _require_choice("of", self.of, CONTROLLED)
        _require_choice("kind", self.kind, CONTROLS)
        if self.kind == "kl":
            _require(self.target > 0, "target", self.target, "a KL above 0, nats a token")
        if self.kind == "effective_sample_size":
            _require(0 < self.target < 1, "target", self.target, "a fraction in (0, 1)")
        if self.kind == "anneal":
            within = 1 / self.largest <= self.end <= self.largest
            expected = f"a factor from {1 / self.largest:g} to largest = {self.largest:g}"
            _require(within, "end", self.end, expected)


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

    start: Annotated[float, FRACTION]
    end: Annotated[float, FRACTION]
    sigma: Annotated[float, POSITIVE]
    rate: Annotated[float, Range("(0, 1]")]
    profile_samples: Annotated[int, AT_LEAST_0]
    domain_probability: Mapping

    def __post_init__(self) -> None:
        for name, value in self.domain_probability.items():
            number = type(value) in (int, float) and FRACTION.refusal(name, value) is None
            expected = "a number in [0, 1], or None"
            _require(number or value is None, f"domain_probability.{name}", value, expected)


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

    prompts: Annotated[int, AT_LEAST_1]
    samples: Annotated[int, AT_LEAST_1]
    batch: Annotated[int, AT_LEAST_1]
    every: Annotated[int, AT_LEAST_0]
    curve_prompts: Annotated[int, AT_LEAST_1]
    temperature: Annotated[float, AT_LEAST_0]
    top_k: Annotated[int, AT_LEAST_0]
    top_p: Annotated[float, Range("(0, 1]")]

    def __post_init__(self) -> None:
        if self.temperature != 0:
            refused = TEMPERATURE.refusal("temperature", self.temperature)
            _require(refused is None, "temperature", self.temperature, "0 or in [0.001, 1000]")
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
      rollouts: iterations whose rollouts are kept whole in `rollouts/`, with their tokens, numbers
        and advantages (`run.kept_files`): parts such as "5", "every 20", "every 20 from 1" or
        "last 2", with commas between; "" keeps none.
      rollouts_megabytes: that `rollouts/` may hold; what finds no room is not kept, which is said.
    """

    samples: Annotated[int, AT_LEAST_1]
    every: Annotated[int, AT_LEAST_0]
    show_every: Annotated[int, AT_LEAST_0]
    megabytes: Annotated[float, POSITIVE]
    rollouts: str
    rollouts_megabytes: Annotated[float, POSITIVE]

    def __post_init__(self) -> None:
        try:
            iterations.parse(self.rollouts)
        except ValueError as error:
            raise ValueError(f"rollouts {error}") from None


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """When a run looks at what its gate does; see `train.diagnose`.

    Nothing of it changes what is trained, and it may be changed when a run is resumed.

    Attributes:
      every: iterations from one whose updates are looked at, level by level, to the next; the first
        is one of them, and so is any whose rollouts are kept. 0 looks at none.
    """

    every: Annotated[int, AT_LEAST_0]

    def due(self, iteration: int) -> bool:
        """Whether an iteration, counted from 1, is one of those looked at.

        >>> [iteration for iteration in range(1, 13) if Diagnostics(5).due(iteration)]
        [1, 5, 10]
        """
        return self.every > 0 and (iteration == 1 or iteration % self.every == 0)


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
    patience: Annotated[int, AT_LEAST_1]
    min_delta: Annotated[float, AT_LEAST_0]
    mode: str

    def __post_init__(self) -> None:
        _require_choice("mode", self.mode, MODES)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The devices, as a box; one size may be -1 and takes what the others leave. See `mesh`.

    Attributes:
      data: replicas of the parameters; rows of a batch are split.
      fsdp: parameters and optimizer state are split, and rows too. On TPUs -1 splits them no finer
        than into whole tiles, and what it leaves goes to data; see `shardings.tiled_parts`.
      sequence: the columns of every row are split, for answers too long for one device, and
        parameters further than fsdp does; sampling splits rows instead.
      tensor: heads, MLP and vocabulary are split.
    """

    data: Annotated[int, MESH_SIZE]
    fsdp: Annotated[int, MESH_SIZE]
    sequence: Annotated[int, MESH_SIZE]
    tensor: Annotated[int, MESH_SIZE]


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

    every: Annotated[int, AT_LEAST_1]
    keep: Annotated[int, AT_LEAST_1]
    best: str
    best_mode: str

    def __post_init__(self) -> None:
        _require_choice("best_mode", self.best_mode, MODES)
