"""A user's own prompts, from files to domains: checked row by row before anything compiles."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

from fiberjax.tasks.domains import Domain
from fiberjax.tasks.examples import SPLITS, Example, Split, split_of_text
from fiberjax.tasks.families import VERIFIERS
from fiberjax.tasks.reading import checks
from fiberjax.tasks.reading.checks import Tell
from fiberjax.tasks.reading.columns import (
    Columns,
    check_row,
    fields_of,
    record_of,
    top_columns,
    value_at,
)
from fiberjax.tasks.reading.formats import (
    Source,
    find_sources,
    missing_shards,
    read_rows,
    shown,
    shown_path,
    without_split,
)
from fiberjax.tasks.reading.layouts import LAYOUTS, Layout
from fiberjax.tasks.rewards import (
    READERS,
    Case,
    Verifier,
    combine,
    isolated_in,
    names_of,
    passes,
    rewards_of,
)
from fiberjax.tasks.rewards.marked import marked_answer
from fiberjax.tasks.vocabulary import shorten

AUTO = "auto"
"""The verifier of the layout; `exact` where there is none."""

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def ignore(line: str) -> None:
    """Tells nobody."""
    del line


@dataclasses.dataclass(frozen=True)
class Reader:
    """How rows become examples.

    Attributes:
      columns: field -> column, where the names differ: ``{"prompt": "question"}``; a dotted path
        into nested columns, ``"reward_model.ground_truth"``; or several, joined by a space:
        ``("Body", "Question")``.
      layout: names of ``LAYOUTS``, one for all paths or one for each; "" for none. ``columns``
        goes before it.
      verifier: a name of ``verifiers`` or a sum of them, for all domains or by domain (that of
        ``""`` for the rest, or ``"auto"``); ``"auto"`` is the layout's, and ``"exact"`` without.
      keep: columns kept as ``Example.columns``: texts, whole numbers or truth values.
      row: columns kept as ``Example.row``, whatever they hold.
      verifiers: the table of names; ``tasks.VERIFIERS`` by default.
      pass_threshold: the least reward that a row's own solution must earn.
      distinct: whether a prompt that stands in several rows counts once.
      tell: is told, a line each, what the data hides and what was done about it.
    """

    columns: Columns | None = None
    layout: str | Sequence[str] = ""
    verifier: str | Mapping[str, str] = AUTO
    keep: Sequence[str] = ()
    row: Sequence[str] = ()
    verifiers: Mapping[str, Verifier] = dataclasses.field(default_factory=lambda: VERIFIERS)
    pass_threshold: float = 1.0
    distinct: bool = True
    tell: Tell = ignore
    _made: dict[str, Verifier] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        fields_of(self.columns)
        for name in self._layouts:
            if name and name not in LAYOUTS:
                raise ValueError(f"layout is {name!r}, expected one of {', '.join(LAYOUTS)}, or ''")
        # Before any file is read; by domain, as each is met.
        for name in [self.verifier] if isinstance(self.verifier, str) else self.verifier.values():
            if name != AUTO:
                combine(name, self.verifiers)

    @property
    def _layouts(self) -> tuple[str, ...]:
        return (self.layout,) if isinstance(self.layout, str) else tuple(self.layout)

    def read(self, paths: Paths, split: Split | None = None) -> tuple[Domain, ...]:
        """The domains of some paths, in order of first appearance.

        Args:
          paths: a file, a folder, a glob, or several of them.
          split: keep one split only: a tenth of the prompts, chosen by their hash, is ``"test"``.
            None keeps every row.

        Raises:
          ValueError: names the file, and the row (counted from 1) where there is one.
        """
        if split is not None and split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}, or None")
        verify_of: dict[str, Verifier] = {}
        examples: list[Example] = []
        for sources, layout in self._entries(paths):
            examples += self._examples(sources, layout, verify_of)
        self._check_named(verify_of, paths)
        self._check_kept(examples, paths)
        kept = self._once(examples, verify_of, _named(paths))
        chosen = [e for e in kept if split is None or self._split_of(e) == split]
        if not chosen:
            raise ValueError(
                f"{_named(paths)}: none of its {len(examples)} rows falls into split {split!r}"
            )
        return _domains(chosen, verify_of)

    def read_splits(
        self, file: Paths, test_file: Paths = ()
    ) -> tuple[tuple[Domain, ...], tuple[Domain, ...]]:
        """The training and the held-out domains, in one order.

        What is held out: the rows of ``test_file``; without one, those files of a folder or a glob
        that are called test, or validation; without any, a tenth of the prompts, by their hash.
        A prompt that is held out is not trained on. A domain without held-out rows is trained on
        all the same.

        Raises:
          ValueError: names the file, and the row (counted from 1) where there is one.
        """
        verify_of: dict[str, Verifier] = {}
        train: list[Example] = []
        test: list[Example] = []
        names: list[str] = []
        for sources, layout in self._entries(file):
            trained, held_out = self._parted(sources)
            names += [source.name for source in trained]
            rows = self._examples(trained, layout, verify_of)
            if test_file:
                train += rows
            elif held_out:
                train += rows
                test += self._examples(_renamed(held_out, names), layout, verify_of)
            else:
                rows = self._once(rows, verify_of, _named([source.path for source in sources]))
                train += [row for row in rows if self._split_of(row) == "train"]
                test += [row for row in rows if self._split_of(row) == "test"]
        if test_file:
            for sources, layout in self._entries(test_file):
                held_out = self._parted(sources)[1] or sources
                test += self._examples(_renamed(held_out, names), layout, verify_of)
        self._check_named(verify_of, file)
        self._check_kept(train, file)
        train = self._once(train, verify_of, _named(file))
        if self.verifier == AUTO and not any(self._layouts):
            checks.tell_of_solutions(train, marked_answer, self.tell, _named(file))
        test = self._once(test, verify_of, _named(test_file or file) + ", held out")
        for rows, what in ((train, "to train on"), (test, "to hold out")):
            if not rows:
                raise ValueError(f"{_named(file)}: its rows leave none {what}")
        if self.distinct:
            train = list(checks.without(train, test, self.tell))
        return _in_one_order(_domains(train, verify_of), _domains(test, verify_of), _named(file))

    def _entries(self, paths: Paths) -> Iterator[tuple[tuple[Source, ...], str]]:
        """The files of each path, and its layout."""
        every = listed(paths)
        layouts = self._layouts
        if len(layouts) not in (1, len(every)):
            raise ValueError(
                f"layout names {len(layouts)} layouts for {len(every)} files or folders, expected "
                "one for all, or one for each"
            )
        layouts = layouts * len(every) if len(layouts) == 1 else layouts
        for path, layout in zip(every, layouts, strict=True):
            sources = find_sources(path)
            missing = missing_shards(sources)
            if missing and len(listed(paths)) == 1:
                self.tell(f"{shown_path(path)}: shards are missing ({missing})")
            yield sources, layout

    def _parted(self, sources: Sequence[Source]) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
        """The files to train on and those held out, as far as their names say."""
        by_split: dict[str, list[Source]] = {}
        for source in sources:
            by_split.setdefault(source.split, []).append(source)
        train = tuple(by_split.get("train", []) + by_split.get("", []))
        test = tuple(by_split.get("test", by_split.get("validation", [])))
        if not train or not test:
            return tuple(sources), ()
        if len(by_split.keys() & {"test", "validation"}) == 2:
            first = shown_path(by_split["validation"][0].path)
            self.tell(f"{first} is not read: beside validation there is test, which is held out")
        return train, test

    def _examples(
        self, sources: Sequence[Source], layout: str, verify_of: dict[str, Verifier]
    ) -> list[Example]:
        """The examples of some files; notes the verifier of each domain."""
        examples: list[Example] = []
        for source in sources:
            found = list(self._of_file(source, LAYOUTS.get(layout), verify_of))
            if not found:
                raise ValueError(f"{shown_path(source.path)}: the file has no rows")
            examples += found
        return examples

    def _check_named(self, verify_of: Mapping[str, Verifier], paths: Paths) -> None:
        """Refuses a verifier of a domain that there is none of."""
        for name in () if isinstance(self.verifier, str) else self.verifier:
            if name and name not in verify_of:
                raise ValueError(
                    f"verifier names domain {name!r}, {_named(paths)} has {', '.join(verify_of)}"
                )

    def _check_kept(self, examples: Sequence[Example], paths: Paths) -> None:
        """Refuses a column for rewards that no row has anything in."""
        for column in self.row:
            if all(example.row[column] is None for example in examples):
                raise ValueError(
                    f"keep names {column!r}, in which no row of {_named(paths)} has anything"
                )

    def _of_file(
        self, source: Source, layout: Layout | None, verify_of: dict[str, Verifier]
    ) -> Iterator[Example]:
        spellings = [fields_of(self.columns, layout.columns if layout else None)]
        if layout and layout.spelling:
            spellings.append(fields_of(self.columns, layout.spelling))
        wanted = [path for fields in spellings for paths in fields.values() for path in paths]
        wanted += [*self.keep, *self.row, *(layout.reads if layout else ())]
        fields: Mapping[str, tuple[str, ...]] | None = None
        for number, row in read_rows(source.path, top_columns(wanted)):
            where = f"{shown_path(source.path)}, row {number}"
            check_row(row, where)
            if layout and layout.prepare:
                row = layout.prepare(row, where)
            if fields is None:
                told = (f for f in spellings if value_at(row, f["prompt"][0]) is not None)
                fields = next(told, spellings[0])
            record = record_of(row, fields, where)
            domain = record.domain or source.name
            example = Example(
                record.prompt,
                record.answers[0],
                record.solution or record.answers[0],
                domain,
                columns=tuple((column, _label(row, column, where)) for column in self.keep),
                where=where,
                answers=record.answers,
                messages=record.messages,
                row={column: value_at(row, column) for column in self.row},
            )
            expression = self._expression(domain, layout)
            if expression not in self._made:
                self._made[expression] = combine(expression, self.verifiers)
            verify = self._made[expression]
            if verify_of.setdefault(domain, verify) is not verify:
                raise ValueError(
                    f"{where}: domain {domain!r} has rows of two layouts, and these have different "
                    "verifiers"
                )
            _check_answers(example, verify, names_of(expression), self.pass_threshold)
            yield example

    def _expression(self, domain: str, layout: Layout | None) -> str:
        name = self.verifier
        if not isinstance(name, str):
            name = name.get(domain, name.get("", AUTO))
        if name == AUTO:
            name = layout.verifier if layout else "exact"
        return name

    def _split_of(self, example: Example) -> Split:
        """The split of a row, by what it asks; rows that ask the same stand on one side."""
        if example.messages or not self.distinct:
            return split_of_text(example.identity)
        return split_of_text(example.prompt)  # There is no other that asks the same.

    def _once(
        self, examples: list[Example], verify_of: Mapping[str, Verifier], whose: str
    ) -> list[Example]:
        """Every prompt once; as they are where that is asked for."""
        if not self.distinct:
            return examples

        def agree(one: Example, other: Example) -> bool:
            if checks.same_answers(one, other):
                return True
            verify = verify_of[one.domain]
            return verify is verify_of[other.domain] and all(
                _accepts(verify, a, b.answer, self.pass_threshold)
                for a, b in ((one, other), (other, one))
            )

        return list(checks.distinct(examples, agree, self.tell, whose))


def read_file(
    path: Paths,
    *,
    split: Split | None = None,
    columns: Columns | None = None,
    layout: str | Sequence[str] = "",
    verifier: str | Mapping[str, str] = AUTO,
    keep: Sequence[str] = (),
    verifiers: Mapping[str, Verifier] = VERIFIERS,
    pass_threshold: float = 1.0,
    tell: Tell = ignore,
) -> tuple[Domain, ...]:
    r"""Returns the domains of a file, a folder, a glob or several, in order of first appearance.

    A row holds ``prompt``, a text or a chat, and ``answer``, a text, a number or a list of all that
    are accepted; optionally ``domain`` (the file's stem where it is missing) and ``solution`` (the
    answer where it is missing). Arguments and errors are those of ``Reader``.
    """
    reader = Reader(
        columns=columns,
        layout=layout,
        verifier=verifier,
        keep=keep,
        verifiers=verifiers,
        pass_threshold=pass_threshold,
        tell=tell,
    )
    return reader.read(path, split)


def read_pairs(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Returns the prompt and the solution of every row of a file, the answer for want of one.

    Raises:
      ValueError: names the file, and the row (counted from 1) where there is one.
    """
    pairs = []
    for source in find_sources(path):
        for number, row in read_rows(source.path):
            where = f"{shown_path(source.path)}, row {number}"
            record = record_of(row, fields_of(None), where)
            pairs.append((record.prompt, record.solution or record.answers[0]))
    return pairs


def listed(paths: Paths) -> list[str]:
    """Every path; a text that names no file may hold several, between commas."""
    if isinstance(paths, os.PathLike):
        return [os.fspath(paths)]
    if isinstance(paths, str):
        if "," in paths and not os.path.exists(paths):
            named = [path.strip() for path in paths.split(",") if path.strip()]
            return named or [paths]
        return [paths]
    return [os.fspath(path) for path in paths]


def _named(paths: Paths) -> str:
    """Some paths in short, for errors."""
    first, *rest = map(shown_path, listed(paths))
    return f"{first} and {len(rest)} more" if rest else first


def _renamed(held_out: Sequence[Source], names: Sequence[str]) -> list[Source]:
    """Held-out files called as those trained on are: `gsm8k_test` as `gsm8k_train`."""
    distinct = list(dict.fromkeys(names))

    def called(name: str) -> str:
        alike = [n for n in distinct if without_split(n) == without_split(name)]
        found = [n for n in distinct if n == name] or alike or distinct
        return found[0] if len(found) == 1 else name

    return [dataclasses.replace(source, name=called(source.name)) for source in held_out]


def _domains(examples: Sequence[Example], verify_of: Mapping[str, Verifier]) -> tuple[Domain, ...]:
    by_domain: dict[str, list[Example]] = {}
    for example in examples:
        by_domain.setdefault(example.domain, []).append(example)
    return tuple(Domain(name, tuple(rows), verify_of[name]) for name, rows in by_domain.items())


def _in_one_order(
    train: tuple[Domain, ...], test: tuple[Domain, ...], where: str
) -> tuple[tuple[Domain, ...], tuple[Domain, ...]]:
    """The held-out domains in the order of those trained on."""
    names = [domain.name for domain in train]
    by_name = {domain.name: domain for domain in test}
    if set(by_name) - set(names):
        raise ValueError(
            f"held-out rows are of domains {shorten(str(sorted(set(by_name) - set(names))), 300)}, "
            f"which {where} does not have; it has {shorten(', '.join(names), 300)}"
        )
    return train, tuple(by_name[name] for name in names if name in by_name)


def _label(row: Mapping, column: str, where: str) -> str:
    """Returns what a row says in a column that groups rows, as text."""
    value = value_at(row, column)
    if not isinstance(value, str | int) or value == "":
        raise ValueError(
            f"{where}: column {column!r} is {shown(value)}, expected a text or a whole number"
        )
    return str(value)


def _accepts(verify: Verifier, example: Example, completion: str, pass_threshold: float) -> bool:
    """Whether a completion passes for one of the accepted answers."""
    cases = [Case(example.prompt, answer, completion, example.row) for answer in example.answers]
    rewards = rewards_of(verify, example.domain, cases).reward
    return bool(passes(rewards.max(), pass_threshold))


def _check_answers(
    example: Example, verify: Verifier, names: Sequence[str], pass_threshold: float
) -> None:
    """Refuses a row that no completion, or not its own solution, could solve."""
    for name in names:
        what, read = READERS.get(name, ("", None))
        for answer in example.answers:
            if read is not None and read(answer) is None:
                raise ValueError(
                    f"{example.where}: the answer {shown(answer)} does not {what}, as the verifier "
                    f"{name!r} needs it"
                )
    if example.solution in example.answers or isolated_in(verify):
        return  # What runs in workers is asked for many rows at once: see `golds`.
    if not _accepts(verify, example, example.solution, pass_threshold):
        raise ValueError(
            f"{example.where}: the verifier does not accept the row's own solution "
            f"{shown(example.solution)} for the answer {shown(example.answer)}"
        )
