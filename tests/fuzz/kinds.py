"""What is mutated, and what must come of it: a right run, or one `ValueError` that names the thing.

Each kind makes an input from a seed, tries it, and says which words the error must hold. Nothing
here builds a data set or compiles a program.
"""

import contextlib
import dataclasses
import functools
import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny
from ml_collections import ConfigDict

from fiberjax import experiment, gates, model_folder, options
from fiberjax.bounds import named
from fiberjax.gates import GATES
from fiberjax.layout import STATE as STATE_LEVEL
from fiberjax.policy import TransformerConfig, rope, weights
from fiberjax.presets import PRESETS
from fiberjax.run import identity
from fiberjax.run.checkpoints import Checkpoints, Damaged
from fiberjax.tasks import loading
from fiberjax.tasks.domains import Domain
from fiberjax.tasks.examples import draw_examples
from fiberjax.tasks.families import make_family
from fiberjax.tasks.files import Reader
from fiberjax.tasks.published import read_vocabulary

from . import mutate

DATA = Path(__file__).parents[1] / "data"
LEVELS = ("trajectory", "group", "domain")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
      make: a generator of random numbers -> an input, as data.
      run: an input and an empty folder -> the words of which an error must hold one; it raises
        whatever the library raises.
    """

    make: Callable[[np.random.Generator], Any]
    run: Callable[[Any, Path], None]
    words: Callable[[Path], Sequence[str]]


# Configs.


@functools.cache
def _configs() -> tuple[dict[str, Any], ...]:
    found = [
        tiny.get_config(name).to_dict() for name in ("fiberpo_domain", "grpo", "silent_sequence")
    ]
    files = tiny.get_config().to_dict()
    files["lora"]["rank"] = 2
    files["curriculum"]["domain_probability"] = {"sort": 0.5}
    files["tasks"]["domains"] |= {
        "countdown": {"max_target": 20, "max_number": 9, "difficulty": 1},
        "brackets": {"close_probability": 0.3},
        "addition": {"min_digits": 2, "max_digits": 2},
        "modular": {"digits": 1, "moduli": (3, 7)},
    }
    files["policy"] |= {"rope_type": "linear", "rope_scaling": (("factor", 2.0),)}
    files["window"] = {"prompt": 24, "completion": 40}
    return (*found, files)


def _make_config(rng: np.random.Generator) -> Any:
    which = int(rng.integers(len(_configs())))
    return which, mutate.edits(rng, _configs()[which])


def drawn(
    tasks: options.Tasks, keep: Sequence[str] = ()
) -> tuple[tuple[Domain, ...], tuple[Domain, ...]]:
    """A few examples of each domain, drawn and not built into files."""
    if tasks.file:
        return loading.load_domains(tasks, keep)
    knobs, difficulty = loading.check_families(tasks)
    made = {name: make_family(name, of) for name, of in knobs.items()}

    def split(name: str, most: int) -> tuple[Domain, ...]:
        return tuple(
            Domain(
                of.name,
                tuple(draw_examples(of, name, min(most, 4), difficulty=difficulty[of.name])),
                of.verify,
            )
            for of in made.values()
        )

    try:
        return split("train", tasks.num_train), split("test", tasks.num_test)
    except ValueError as error:
        raise ValueError(f"config.tasks.domains: {error}") from None


def build(config: ConfigDict) -> experiment.Experiment:
    """An experiment, all of it checked, with a few examples in place of its data sets."""
    with named("config"):
        built = experiment.from_config(config, jax.devices()[:1], drawn)
        experiment.check_data(built)
    return built


def _run_config(case: Any, folder: Path) -> None:
    which, edits = case
    tree = mutate.applied(_configs()[which], edits)
    build(ConfigDict(tree))


# Gates.


def _make_gate(rng: np.random.Generator) -> Any:
    name = list(PRESETS)[int(rng.integers(len(PRESETS)))]
    tree = json.loads(json.dumps(PRESETS[name]))
    spec = GATES[tree["name"]]
    for key in (*spec.budgets, *spec.options, "dual_clip"):
        if rng.random() < 0.3 and key != "budgets":
            tree[key] = float(10.0 ** rng.uniform(-50, 45))
    return mutate.applied(tree, mutate.edits(rng, tree))


def _run_gate(case: Any, folder: Path) -> None:
    gate, budgets = gates.from_config(case, LEVELS)
    hash(gate)
    for leaf in jax.tree.leaves(budgets):
        assert leaf.dtype == np.float32 and np.all(np.isfinite(leaf)) and np.all(leaf > 0), budgets
    assert dict(gate.options).get("level", STATE_LEVEL) in (*LEVELS, STATE_LEVEL)


# Files of rows.

ROWS = [
    {"prompt": "1+2=", "answer": "3", "domain": "sum", "other": [1, None]},
    {"prompt": "2+2=", "answer": 4, "domain": "sum", "solution": "2+2 is 4", "other": []},
    {"prompt": "rev abc", "answer": ["cba", "cba "], "domain": "turn", "other": [2]},
    {"prompt": [{"role": "user", "content": "ab"}], "answer": "ba", "domain": "turn"},
    *({"prompt": f"{i}+1=", "answer": str(i + 1), "domain": "sum"} for i in range(40)),
]
ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".jsonl.gz", ".parquet.gz")


def _written(rows: Any, ending: str) -> bytes:
    """Rows in a format; those that it cannot hold as texts."""
    ending, _, zipped = ending.partition(".gz") if ending.endswith(".gz") else (ending, "", None)
    if ending == ".jsonl":
        data = "\n".join(json.dumps(row) for row in rows).encode()
    elif ending == ".json":
        data = json.dumps(rows).encode()
    elif ending == ".csv":
        data = b"prompt,answer\n" + b"\n".join(f'"{i}+1=",{i + 1}'.encode() for i in range(20))
    else:
        plain = [{k: str(v) for k, v in row.items()} for row in rows if isinstance(row, dict)]
        table = pa.Table.from_pylist(plain or [{"prompt": "1"}])
        extra = pa.array([b"\xff"] * len(table), pa.binary())
        table = table.append_column("unused", extra)
        buffer = io.BytesIO()
        if ending == ".parquet":
            pq.write_table(table, buffer)
        else:
            with pa.ipc.new_stream(buffer, table.schema) as stream:
                stream.write_table(table)
        data = buffer.getvalue()
    return data if zipped is None else gzip.compress(data)


def _make_file(rng: np.random.Generator) -> Any:
    ending = ENDINGS[int(rng.integers(len(ENDINGS)))]
    rows = ROWS
    if rng.random() < 0.6:
        rows = mutate.applied(ROWS, mutate.edits(rng, ROWS[:4]))
    try:
        data = _written(rows, ending)
    except (ValueError, TypeError, OverflowError, pa.ArrowException):
        data = _written(ROWS, ending)
    return ending, mutate.damaged(rng, data) if rng.random() < 0.6 else data


def _run_file(case: Any, folder: Path) -> None:
    ending, data = case
    path = folder / f"rows{ending}"
    path.write_bytes(data)
    Reader().read_splits(path)


# Tokenizers.


@functools.cache
def _tokenizer() -> dict[str, Any]:
    import tokenizers

    words = ["<pad>", "</s>", *"0123456789+=abc", "ab", "bc"]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({w: i for i, w in enumerate(words)}, [("a", "b"), ("b", "c")])
    )
    made.add_special_tokens(["<pad>", "</s>"])
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    found: dict[str, Any] = json.loads(made.to_str())
    return found


def _make_tokenizer(rng: np.random.Generator) -> Any:
    text = json.dumps(mutate.applied(_tokenizer(), mutate.edits(rng, _tokenizer())))
    data = text.encode("utf-8", "surrogatepass")
    return mutate.damaged(rng, data) if rng.random() < 0.2 else data


def _run_tokenizer(case: Any, folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(case)
    model = ConfigDict(tiny.get_config().model)
    model.tokenizer = str(path)
    model.overrides = ConfigDict({"pad": "<pad>", "end": ("</s>",)})
    vocabulary = read_vocabulary(options.parse(options.Model, model, "config.model"))
    for text in ("1+2=", "abc"):
        try:
            ids = vocabulary.encode_prompt(text)
        except ValueError as error:
            assert text in str(error), error
            continue
        assert all(0 <= token < vocabulary.size for token in ids), (ids, vocabulary.size)
        vocabulary.decode(ids)
    assert all(0 <= token < vocabulary.size for token in (vocabulary.pad_id, *vocabulary.end_ids))


# Folders of models.

CHECKPOINTS = tuple(sorted(folder.name for folder in (DATA / "checkpoints").iterdir()))


def _make_model(rng: np.random.Generator) -> Any:
    name = CHECKPOINTS[int(rng.integers(len(CHECKPOINTS)))]
    source = DATA / "checkpoints" / name
    if rng.random() < 0.7:
        tree = json.loads((source / "config.json").read_text())
        text = json.dumps(mutate.applied(tree, mutate.edits(rng, tree)))
        data = text.encode("utf-8", "surrogatepass")
        return name, "config.json", mutate.damaged(rng, data) if rng.random() < 0.1 else data
    file = next(iter(sorted(source.glob("*.safetensors"))))
    data = file.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    return name, file.name, mutate.damaged(rng, data[:size]) + data[size:]


def _run_model(case: Any, folder: Path) -> None:
    name, file, data = case
    for path in sorted((DATA / "checkpoints" / name).iterdir()):
        if path.suffix in (".json", ".safetensors"):
            shutil.copy(path, folder)
    (folder / file).write_bytes(data)
    shape = model_folder.read_shape(str(folder))
    policy = TransformerConfig(**shape)
    frequency, scale = rope.frequencies(
        policy.head_dim, policy.rope_theta, policy.rope_type, policy.rope_scaling
    )
    assert np.all(np.isfinite(frequency)) and np.isfinite(scale), (frequency, scale)
    try:
        weights.check(folder, policy)
    except ValueError as error:
        assert str(folder) in str(error), error
        raise


# What runs have saved.


@functools.cache
def _saved() -> tuple[dict[str, Any], ...]:
    old = json.loads((DATA / "run_v0" / "config.json").read_text())
    new = json.loads(tiny.get_config().to_json_best_effort())
    return old, {"version": identity.migrations.VERSION, "plugin_digests": {}} | new


def _make_run(rng: np.random.Generator) -> Any:
    tree = _saved()[int(rng.integers(2))]
    text = json.dumps(mutate.applied(tree, mutate.edits(rng, tree)))
    data = text.encode("utf-8", "surrogatepass")
    return mutate.damaged(rng, data) if rng.random() < 0.2 else data


def _run_run(case: Any, folder: Path) -> None:
    (folder / "config.json").write_bytes(case)
    config = identity.read_config(folder)
    try:
        identity.settle(folder, tiny.get_config())
    except ValueError as error:
        assert "another config" in str(error), error
    build(config)


# What describes a checkpoint.

STATE = {"params": np.arange(6, dtype=np.float32), "step": np.int32(3)}
HOST = {"stream": {"at": 3, "rates": [0.5, None]}, "before": {"measure": [1.0]}}


@functools.cache
def _checkpoint() -> dict[str, bytes]:
    """The files of a checkpoint, by their names in it."""
    with tempfile.TemporaryDirectory() as name, Checkpoints(name, keep=1) as saved:
        saved.save(1, jax.tree.map(jnp.asarray, STATE), HOST)
        folder = Path(name) / "1"
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _make_checkpoint(rng: np.random.Generator) -> Any:
    # Not of the arrays' own bytes, which any others would do for.
    names = [name for name in _checkpoint() if "d" not in Path(name).parts]
    names = [name for name in names if _checkpoint()[name] and "ocdbt." not in name]
    name, listed = names[int(rng.integers(len(names)))], bool(rng.random() < 0.3)
    data = _checkpoint()[name]
    try:
        tree = json.loads(data)
    except ValueError:
        return listed, name, mutate.damaged(rng, data)
    if rng.random() < 0.3 or not isinstance(tree, dict | list) or not tree:
        return listed, name, mutate.damaged(rng, data)
    text = json.dumps(mutate.applied(tree, mutate.edits(rng, tree)))
    return listed, name, text.encode("utf-8", "surrogatepass")


def _run_checkpoint(case: Any, folder: Path) -> None:
    listed, changed, data = case
    for name, content in (_checkpoint() | {changed: data}).items():
        path = folder / "checkpoints" / "1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if listed or not name.startswith("digests."):
            path.write_bytes(content)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), STATE)
    with contextlib.redirect_stdout(None):  # That it is read unchecked.
        try:
            with Checkpoints(folder / "checkpoints", keep=1) as saved:
                found = saved.restore(shapes)
        except Damaged as error:
            raise ValueError(str(error)) from None
    assert found is not None and isinstance(found.host, dict)
    if listed:
        assert found.host == HOST
        assert all(np.array_equal(found.state[name], STATE[name]) for name in STATE)


def _config_words(folder: Path) -> Sequence[str]:
    return ("config.", "config:", "config ")


KINDS: dict[str, Kind] = {
    "config": Kind(_make_config, _run_config, _config_words),
    "gate": Kind(_make_gate, _run_gate, lambda folder: ("config.gate",)),
    "data file": Kind(_make_file, _run_file, lambda folder: (f"{folder}/rows",)),
    "tokenizer": Kind(_make_tokenizer, _run_tokenizer, lambda folder: ("config.model.",)),
    "model folder": Kind(_make_model, _run_model, lambda folder: ("config.model.", str(folder))),
    "saved config": Kind(_make_run, _run_run, lambda folder: ("config.", "config:", str(folder))),
    "written checkpoint": Kind(_make_checkpoint, _run_checkpoint, lambda folder: (str(folder),)),
}
