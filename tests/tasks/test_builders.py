import doctest
import importlib
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

import fiberjax.tasks
from fiberjax.tasks import FAMILIES, Example, Examples, load, make_family
from fiberjax.tasks.builders import FiberjaxTasks, build, family_config
from fiberjax.tasks.examples import draw_examples

SMALL = {"num_train": 40, "num_test": 10}


def rows(domain):
    return [domain.source[i] for i in range(len(domain.source))]


def test_every_family_comes_back_as_it_was_drawn(tmp_path):
    for split, count in (("train", 40), ("test", 10)):
        domains = load(tuple(FAMILIES), split, tmp_path, **SMALL)
        assert [d.name for d in domains] == list(FAMILIES)
        for domain in domains:
            expected = draw_examples(make_family(domain.name), split, count)
            assert set(rows(domain)) == set(expected)
            assert all(isinstance(e, Example) for e in rows(domain))
            assert all(domain.verify(e.prompt, e.answer, e.solution) for e in rows(domain))


def test_the_same_config_gives_the_same_rows_in_the_same_order(tmp_path):
    one = load(("sort",), "train", tmp_path / "a", **SMALL)
    other = load(("sort",), "train", tmp_path / "b", **SMALL)
    assert rows(one[0]) == rows(other[0])


def test_files_are_reused_and_every_option_has_its_own(tmp_path):
    load(("sort",), "train", tmp_path, **SMALL)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.array_record*")}
    assert len(files) == 2
    load(("sort",), "test", tmp_path, **SMALL)
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.array_record*")}
    options = (
        {"difficulty": {"sort": 1}},
        {"knobs": {"sort": {"max_length": 6}}},
        {"knobs": {"sort": {"symbols": "ab/."}}},
        {"seed": 1},
        {"num_test": 11},
    )
    for number, option in enumerate(options, start=2):
        domain = load(("sort",), "train", tmp_path, **{**SMALL, **option})[0]
        assert len(domain.source) == 40
        assert len(list(tmp_path.rglob("*.array_record*"))) == 2 * number


def test_an_interrupted_build_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        yield from list(draw_examples(make_family("sort"), "train", 3))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fiberjax.tasks.builders.draw_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(("sort",), "train", tmp_path, **SMALL)
    assert len(load(("sort",), "train", tmp_path, **SMALL)[0].source) == 40


@pytest.mark.parametrize(
    ("kind", "listed"),
    [
        ("*-train.array_record*", True),
        ("dataset_info.json", True),
        ("features.json", True),
        ("*-train.array_record*", False),
        ("dataset_info.json", False),
    ],
)
def test_damaged_files_are_built_anew(tmp_path, capsys, kind, listed):
    whole = rows(load(("sort",), "train", tmp_path, **SMALL)[0])
    (damaged,) = tmp_path.rglob(kind)
    before = damaged.read_bytes()
    if listed:  # One bit.
        damaged.write_bytes(before[:60] + bytes([before[60] ^ 1]) + before[61:])
    else:
        next(tmp_path.rglob("digests.*")).unlink()
        damaged.write_bytes(before[:60])
    assert rows(load(("sort",), "train", tmp_path, **SMALL)[0]) == whole
    (line,) = capsys.readouterr().out.splitlines()
    assert str(damaged.parent) in line and "is damaged (" in line and "it is built anew" in line
    assert damaged.name in line or not listed
    assert len(list(tmp_path.rglob("*.array_record*"))) == 2
    load(("sort",), "train", tmp_path, **SMALL)
    assert capsys.readouterr().out == "" and list(tmp_path.rglob("digests.*"))


def test_a_build_that_another_process_overtakes_reads_its_files(tmp_path, monkeypatch):
    config = family_config(make_family("sort"), num_train=20, num_test=5)
    overtaken = []

    def overtake(*args, **options):
        if not overtaken:
            overtaken.append(True)
            build(config, tmp_path)
        return draw_examples(*args, **options)

    monkeypatch.setattr("fiberjax.tasks.builders.draw_examples", overtake)
    assert len(build(config, tmp_path).as_data_source(split="train")) == 20
    assert len(list(tmp_path.rglob("*.array_record*"))) == 2


def test_a_build_that_finds_the_files_of_another_process_reads_them(tmp_path, monkeypatch):
    """They came between its first look, which saw none, and its own writing."""
    prepare = FiberjaxTasks.download_and_prepare
    others = []

    def overtaken(builder, *args, **kwargs):
        if not others:
            others.append(True)
            build(builder.builder_config, tmp_path)
        return prepare(builder, *args, **kwargs)

    monkeypatch.setattr(FiberjaxTasks, "download_and_prepare", overtaken)
    (train,) = load(["sort"], "train", tmp_path, num_train=4, num_test=2)
    assert others and len(train.source) == 4


def test_builds_are_quiet_without_a_terminal(tmp_path, capfd):
    load(("sort",), "train", tmp_path, **SMALL)
    assert capfd.readouterr() == ("", "")


def test_the_builder_is_an_ordinary_tfds_builder(tmp_path):
    builder = build(family_config(make_family("sort"), num_train=20, num_test=5), tmp_path)
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == {"train": 20, "test": 5}
    assert "Sort digits. Difficulty 0 of min_length=4" in builder.info.description
    again = tfds.builder_from_directory(str(builder.data_dir))
    record = again.as_data_source(split="test")[0]
    assert set(record) == {"prompt", "answer", "solution"} and isinstance(record["prompt"], bytes)
    listed = FiberjaxTasks.builder_configs
    assert len(listed) == len(FAMILIES) and all(config.description for config in listed.values())


def test_examples_joins_domains_in_order(tmp_path):
    domains = load(("sort", "reverse"), "test", tmp_path, **SMALL)
    examples = Examples(domains)
    assert len(examples) == 20
    assert list(examples) == rows(domains[0]) + rows(domains[1])
    assert [examples.domain_of(i) for i in (0, 9, 10, 19)] == [0, 0, 1, 1]
    assert examples[np.int64(10)] == domains[1].source[0]
    for index in (-1, 20):
        with pytest.raises(IndexError):
            examples[index]
    with pytest.raises(ValueError, match="distinct names"):
        Examples(domains + domains[:1])
    with pytest.raises(ValueError, match="at least one"):
        Examples(())


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="split is 'dev'"):
        load(("sort",), "dev", tmp_path)
    with pytest.raises(ValueError, match="unknown domain 'sorts'"):
        load(("sorts",), "train", tmp_path)
    with pytest.raises(ValueError, match="difficulty names domain 'reverse', the domains are sort"):
        load(("sort",), "train", tmp_path, difficulty={"reverse": 1})
    with pytest.raises(ValueError, match="knobs names domain 'reverse'"):
        load(("sort",), "train", tmp_path, knobs={"reverse": {}})
    with pytest.raises(ValueError, match="too few distinct prompts"):
        load(("reverse",), "train", tmp_path, knobs={"reverse": {"letters": "a"}})
    with pytest.raises(ValueError, match="num_train is 0, expected at least 1"):
        load(("sort",), "train", tmp_path, num_train=0)


@pytest.mark.parametrize(
    "module", sorted(p.stem for p in pathlib.Path(fiberjax.tasks.__file__).parent.glob("*.py"))
)
def test_docstring_examples(module):
    name = "fiberjax.tasks" if module == "__init__" else f"fiberjax.tasks.{module}"
    assert doctest.testmod(importlib.import_module(name)).failed == 0
