"""From the options of the data to a tokenizer and the domains of a run."""

import dataclasses
import itertools
import string
from collections.abc import Mapping, Sequence
from typing import Any

from fiberjax import options
from fiberjax.bounds import shown
from fiberjax.tasks import reasoning
from fiberjax.tasks.builders import load
from fiberjax.tasks.domains import Domain
from fiberjax.tasks.examples import Split, example_rng
from fiberjax.tasks.families import VERIFIERS, make_family
from fiberjax.tasks.files import Reader, ignore
from fiberjax.tasks.published import read_vocabulary
from fiberjax.tasks.reading.checks import Tell
from fiberjax.tasks.rewards import Verifier
from fiberjax.tasks.vocabulary import CharVocabulary, Vocabulary


def make_vocabulary(tasks: options.Tasks, model: options.Model, rows: int = 0) -> Vocabulary:
    """The tokenizer: a published model's, "characters" of the families, or printable "ascii".

    Args:
      tasks: the options.
      model: the options.
      rows: of the embedding, 0 where it is not known.

    Raises:
      ValueError: there is none of that name, or the model's is not as expected.
    """
    if model.published:
        return read_vocabulary(model, rows)
    name = tasks.vocabulary
    if name == "characters":
        return CharVocabulary()
    if name == "ascii":
        return CharVocabulary(string.printable[:-3])
    raise ValueError(
        f"config.tasks.vocabulary must be 'characters' or 'ascii'; got {name!r} (a tokenizer of a "
        "published model is config.model.folder's, or config.model.tokenizer)"
    )


Loaded = tuple[tuple[Domain, ...], tuple[Domain, ...]]
"""The training and the held-out domains, in one order."""


def load_domains(
    tasks: options.Tasks,
    keep: Sequence[str] = (),
    *,
    verifiers: Mapping[str, Verifier] = VERIFIERS,
    tell: Tell = ignore,
) -> Loaded:
    """The training and held-out domains, in one order.

    Those of a file and of reasoning-gym, where the config names either; else the families.

    Args:
      tasks: the options.
      keep: further columns of a file.
      verifiers: the table that verifiers are names of.
      tell: is told, a line each, what the rows of a file hide.

    Raises:
      ValueError: as they are read.
    """
    own = dict(tasks.verifiers)
    drawn = reasoning.named(tasks.reasoning_gym)
    loaded: list[Loaded] = []
    if tasks.file:
        of_file = {domain: of for domain, of in own.items() if domain not in drawn}
        loaded.append(_of_file(tasks, of_file, keep, verifiers, tell))
    elif strange := [domain for domain in own if drawn and domain not in drawn]:
        raise ValueError(
            f"config.tasks.verifiers names domain {strange[0]!r}, the domains are "
            f"{', '.join(drawn)}"
        )
    if drawn:
        loaded.append(
            reasoning.read(
                drawn,
                num_train=tasks.num_train,
                num_test=tasks.num_test,
                seed=tasks.seed,
                verifiers=verifiers,
                verifier_of=own,
                tell=tell,
            )
        )
    if not loaded:
        loaded.append(_of_families(tasks))
    train, test = (tuple(itertools.chain(*of)) for of in zip(*loaded, strict=True))
    return train, test


def _of_file(
    tasks: options.Tasks,
    verifier_of: Mapping[str, str],
    keep: Sequence[str],
    verifiers: Mapping[str, Verifier],
    tell: Tell,
) -> Loaded:
    layout = tasks.layout
    if isinstance(layout, str) and "," in layout:
        layout = tuple(name.strip() for name in layout.split(","))
    reader = Reader(
        columns=tasks.columns,
        layout=layout,
        verifier={"": tasks.verifier} | dict(verifier_of),
        keep=keep,
        row=tasks.keep,
        verifiers=verifiers,
        pass_threshold=tasks.pass_threshold,
        distinct=tasks.duplicates == "once",
        tell=tell,
    )
    return reader.read_splits(tasks.file, tasks.test_file)


def _of_families(tasks: options.Tasks) -> Loaded:
    knobs, difficulty = check_families(tasks)

    def read(split: Split) -> tuple[Domain, ...]:
        return load(
            tuple(knobs),
            split,
            tasks.data_dir,
            difficulty=difficulty,
            knobs=knobs,
            num_train=tasks.num_train,
            num_test=tasks.num_test,
            seed=tasks.seed,
        )

    return read("train"), read("test")


def check_families(tasks: options.Tasks) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """The knobs and the difficulty of each family that a config names; nothing is built.

    Raises:
      ValueError: a family or a knob that does not exist, or one that draws no example; names it.
    """
    knobs: dict[str, dict[str, Any]] = {}
    difficulty: dict[str, int] = {}
    for name, values in tasks.domains.items():
        path = f"config.tasks.domains.{name}"
        if values is None:
            continue
        if not hasattr(values, "items"):
            raise ValueError(f"{path} must be a section of knobs, or None; got {shown(values)}")
        knobs[name] = dict(values)
        harder = difficulty[name] = knobs[name].pop("difficulty", 0)
        if type(harder) is not int or not -1000 <= harder <= 1000:
            raise ValueError(
                f"{path}.difficulty must be a whole number from -1000 to 1000; got {shown(harder)}"
            )
        try:
            family = make_family(name, knobs[name])
            for index in range(4):  # Both ends of the sizes show by what they draw.
                family.generate(example_rng(tasks.seed, name, index), harder)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if not knobs:
        raise ValueError("config.tasks.domains names no domain")
    return knobs, difficulty


def named_domains(
    tasks: options.Tasks, keep: Sequence[str] = ()
) -> tuple[tuple[Domain, ...], tuple[Domain, ...]]:
    """The domains of a config without their examples, where their number is all that matters.

    A file is read all the same: only it says how many domains and cells it has.
    """
    if tasks.file:
        # Whose rewards are whose does not matter, and need not be found.
        tasks = dataclasses.replace(tasks, verifier="any", verifiers=(), pass_threshold=0.0)
        train, test = _of_file(tasks, {}, keep, {"any": lambda *_: 0.0}, ignore)
    else:
        train, test = (), ()
    names = list(reasoning.named(tasks.reasoning_gym))
    if not tasks.file and not names:
        names = list(check_families(tasks)[0])
    domains = tuple(Domain(name, (), lambda prompt, answer, completion: 0.0) for name in names)
    return (*train, *domains), (*test, *domains)


def no_domains(
    tasks: options.Tasks, keep: Sequence[str] = ()
) -> tuple[tuple[Domain, ...], tuple[Domain, ...]]:
    """No domain at all, where the policy is all that matters; reads nothing."""
    del tasks, keep
    return (), ()
