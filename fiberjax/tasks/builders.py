"""The procedural domains as tensorflow-datasets (array_record files; TensorFlow not needed)."""

import contextlib
import dataclasses
import hashlib
import io
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from fiberjax import buckets, digests, disk, storage
from fiberjax.tasks.domains import Domain
from fiberjax.tasks.examples import SPLITS, Example, Family, Split, draw_examples
from fiberjax.tasks.families import FAMILIES, make_family

# Raise it whenever a family with the same knobs writes other examples than before, so that no
# old file is reused.
VERSION = "1.0.0"

# Of a folder, which file systems take up to 255 bytes of; a longer name is a digest.
_LONGEST_NAME = 200
_FEATURES = ("prompt", "answer", "solution")


@dataclasses.dataclass
class FamilyConfig(tfds.core.BuilderConfig):
    """One data set: a family with its knobs, at one difficulty, of one size and seed.

    Attributes:
      family: the domain.
      difficulty: see ``Family``.
      num_train: training examples.
      num_test: held-out examples.
      seed: of the draws.
    """

    family: Family | None = None
    difficulty: int = 0
    num_train: int = 4000
    num_test: int = 500
    seed: int = 0


def family_config(
    family: Family,
    *,
    difficulty: int = 0,
    num_train: int = 4000,
    num_test: int = 500,
    seed: int = 0,
) -> FamilyConfig:
    """Returns the config whose name states everything that the examples depend on.

    Example:
      >>> family_config(make_family("sort", {"max_length": 6}), difficulty=1).name
      'sort-difficulty=1-min_length=4-max_length=6-symbols=0123456789-4000x500-seed=0'
    """
    knobs = {field.name: getattr(family, field.name) for field in dataclasses.fields(family)}
    parts = [family.name, f"difficulty={difficulty}"]
    parts += [f"{knob}={_path_safe(value)}" for knob, value in knobs.items()]
    parts += [f"{num_train}x{num_test}", f"seed={seed}"]
    name = "-".join(parts)
    if len(name.encode()) > _LONGEST_NAME:
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        name = f"{family.name}-{digest}"
    stated = ", ".join(f"{knob}={value!r}" for knob, value in knobs.items())
    return FamilyConfig(
        name=name,
        version=tfds.core.Version(VERSION),
        description=(
            f"{family.description} Difficulty {difficulty} of {stated}. Procedurally drawn from "
            f"seed {seed}; train and test share no problem."
        ),
        family=family,
        difficulty=difficulty,
        num_train=num_train,
        num_test=num_test,
        seed=seed,
    )


def _path_safe(value: object) -> str:
    """Returns a text for a file name; other characters by their code, so that none collide."""
    if isinstance(value, tuple):
        return "+".join(map(_path_safe, value))
    return "".join(c if c.isalnum() or c == "." else f"%{ord(c):x}" for c in str(value))


class FiberjaxTasks(tfds.core.GeneratorBasedBuilder):
    """Procedural reasoning domains with exact verifiers, in train and test splits."""

    name = "fiberjax_tasks"
    VERSION = tfds.core.Version(VERSION)
    # There are no checksums to look for beside this file: nothing is downloaded. (Looking for
    # them needs importlib_resources, which TFDS does not install on current Pythons.)
    code_path = None
    BUILDER_CONFIGS = [family_config(family()) for family in FAMILIES.values()]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(self.__class__.__doc__ or "") + " " + self.builder_config.description,
            features=tfds.features.FeaturesDict({k: tfds.features.Text() for k in _FEATURES}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # Nothing is downloaded.
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, str]]]:
        config = self.builder_config
        size = config.num_train if split == "train" else config.num_test
        examples = draw_examples(
            config.family, split, size, seed=config.seed, difficulty=config.difficulty
        )
        for key, example in enumerate(examples):
            yield key, {name: getattr(example, name) for name in _FEATURES}


def _example(record: Mapping[str, bytes], domain: str) -> Example:
    """Returns a record as an example; text comes out of the files as bytes."""
    prompt, answer, solution = (record[name].decode() for name in _FEATURES)
    return Example(prompt, answer, solution, domain)


def build(config: FamilyConfig, data_dir: str | os.PathLike[str]) -> FiberjaxTasks:
    """Returns the builder of a config, its files written under ``data_dir`` if absent.

    TFDS writes into a temporary folder and renames it, so an interrupted build leaves nothing
    that looks complete. The digests of the files are listed beside them; where a file is not what
    was written, that is said in one line and all are built anew. Silent otherwise, unless standard
    error is a terminal.
    """
    folder = Path(data_dir) / FiberjaxTasks.name / str(config.name) / VERSION
    if folder.exists():
        problem = _problem(folder, config, data_dir)
        if problem is not None:
            print(f"{folder} is damaged ({problem}): it is built anew")
            # Renamed first: another process finds all of it or nothing.
            leaving = folder.with_name(f"{VERSION}.damaged-{secrets.token_hex(4)}")
            with contextlib.suppress(FileNotFoundError):
                folder.rename(leaving)
            shutil.rmtree(leaving, ignore_errors=True)
    with disk.writing("a data set", folder):
        built = _built(config, data_dir)
    if not digests.listed(folder):
        with (
            disk.writing("a data set", folder),
            contextlib.suppress(PermissionError),
        ):  # Someone else's files are read as they are.
            digests.write(folder, digests.files_of(folder))
    return built


@contextlib.contextmanager
def _near(config: FamilyConfig, data_dir: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder on the disk with a config's files, if there are any; new ones go into the bucket."""
    if not storage.remote(data_dir):
        yield storage.place(data_dir)
        return
    there = storage.place(data_dir) / FiberjaxTasks.name / str(config.name) / VERSION
    with tempfile.TemporaryDirectory() as near:
        folder = Path(near) / FiberjaxTasks.name / str(config.name) / VERSION
        found = buckets.entries(there)
        for name in found:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            buckets.download(there / name, folder / name)
        # What is built anew has the same digests as what was whole before.
        sound = digests.listed(folder) and digests.problem(folder) is None
        yield Path(near)
        if not sound:
            for name in found:
                buckets.drop(there / name)
            buckets.upload_folder(folder, there)


def _problem(folder: Path, config: FamilyConfig, data_dir: str | os.PathLike[str]) -> str | None:
    """What is wrong with a data set's files; None for nothing.

    Without a list of digests, as of an earlier version, they must be readable at least.
    """
    try:
        return digests.problem(folder)
    except FileNotFoundError:
        pass
    try:
        builder = _builder(config, data_dir)
        if not builder.is_prepared():
            return "its info is missing"
        for split, size in (("train", config.num_train), ("test", config.num_test)):
            if len([_example(of, "") for of in builder.as_data_source(split=split)]) != size:
                return f"{split} has not {size} examples"
    except Exception as error:  # Whatever reads bytes that are no records.
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _built(config: FamilyConfig, data_dir: str | os.PathLike[str]) -> FiberjaxTasks:
    try:
        with _quiet():
            _builder(config, data_dir).download_and_prepare()
    except OSError:
        # Another process may have put the same files there first; then they are as good.
        if not _builder(config, data_dir).is_prepared():
            raise
    # Made anew: one from before another process's files were there believes that it has no splits.
    return _builder(config, data_dir)


def _builder(config: FamilyConfig, data_dir: str | os.PathLike[str]) -> FiberjaxTasks:
    # TFDS wants the configs it lists by name, and only the others as objects.
    known = FiberjaxTasks.builder_configs.get(config.name)
    return FiberjaxTasks(
        config=config.name if known == config else config,
        data_dir=os.fspath(data_dir),
        file_format="array_record",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's banner away, and its progress bars where nobody watches them."""
    watched = sys.stderr is not None and sys.stderr.isatty()
    if not watched:
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if not watched:
            tfds.enable_progress_bar()


def load(
    domains: Sequence[str],
    split: Split,
    data_dir: str | os.PathLike[str],
    *,
    difficulty: Mapping[str, int] | None = None,
    knobs: Mapping[str, Mapping[str, object]] | None = None,
    num_train: int = 4000,
    num_test: int = 500,
    seed: int = 0,
) -> tuple[Domain, ...]:
    """Returns one split of each domain, built first if its files are absent.

    Args:
      domains: names of ``FAMILIES``, in the order the run counts them.
      split: ``"train"`` or ``"test"``.
      data_dir: where the files are.
      difficulty: by domain; 0 where not given.
      knobs: by domain, the knobs that differ from the family's defaults.
      num_train: training examples per domain.
      num_test: held-out examples per domain.
      seed: of the draws.

    Raises:
      ValueError: unknown split, domain or knob, or a family with too few distinct prompts.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    for option, size in (("num_train", num_train), ("num_test", num_test)):
        if size < 1:
            raise ValueError(f"{option} is {size}, expected at least 1")
    difficulty = {} if difficulty is None else difficulty
    knobs = {} if knobs is None else knobs
    for option, given in (("difficulty", difficulty), ("knobs", knobs)):
        for name in given:
            if name not in domains:
                raise ValueError(
                    f"{option} names domain {name!r}, the domains are {', '.join(domains)}"
                )
    families = [make_family(name, knobs.get(name)) for name in domains]
    loaded = []
    for family in families:
        config = family_config(
            family,
            difficulty=difficulty.get(family.name, 0),
            num_train=num_train,
            num_test=num_test,
            seed=seed,
        )
        # Read once: whoever goes through examples does not go through files.
        with _near(config, data_dir) as near:
            records = build(config, near).as_data_source(split=split)
            examples = tuple(_example(record, family.name) for record in records)
        loaded.append(Domain(family.name, examples, family.verify))
    return tuple(loaded)
