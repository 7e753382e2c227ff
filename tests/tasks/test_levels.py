"""The levels of a run: numbered over the data, nested or refused, and tables of a batch."""

import dataclasses

import numpy as np
import pytest

from fiberjax.layout import make_layout
from fiberjax.tasks import Domain, Example
from fiberjax.tasks.levels import check_names, columns_of, make_levels, of_layout

TREE = (("group", ""), ("topic", "topic"), ("field", "field"), ("domain", "domain"))


def domain(name, *rows):
    """A domain whose examples have these (topic, field)."""
    source = tuple(
        Example(f"{name}{k}", "1", "1", name, (("topic", topic), ("field", field)))
        for k, (topic, field) in enumerate(rows)
    )
    return Domain(name, source, lambda prompt, answer, completion: 0.0)


@pytest.fixture
def domains():
    return (
        domain("algebra", ("sums", "easy"), ("roots", "hard"), ("sums", "easy")),
        domain("words", ("ages", "stories"), ("speeds", "stories")),
    )


def test_cells_are_numbered_over_the_data(domains):
    levels = make_levels(check_names(TREE), domains)
    assert levels.of_layout == ("trajectory", "group", "topic", "field", "domain")
    assert levels.num_cells == {"topic": 4, "field": 3, "domain": 2}
    np.testing.assert_array_equal(levels.cell, [0, 1, 0, 2, 3])
    np.testing.assert_array_equal(levels.parents[0], [0, 1, 2, 2])
    np.testing.assert_array_equal(levels.parents[1], [0, 0, 1])


@pytest.mark.parametrize("depth", range(5))
def test_a_batch_stands_where_its_prompts_do(domains, depth):
    prompts, samples = np.array([4, 0, 2, 1]), 3
    levels = make_levels(check_names(TREE[:depth]), domains)
    layout = make_layout(
        np.ones((12, 2), bool), levels.tables(prompts, samples), num_cells=levels.num_cells
    )
    assert layout.levels == levels.of_layout
    rows = [dict(e.columns) | {"domain": e.domain} for d in domains for e in d.source]
    chosen = [rows[prompt] for prompt in np.repeat(prompts, samples)]
    for name, column in TREE[:depth]:
        table = np.arange(len(layout.sizes[layout.index(name)]))
        cell = np.asarray(layout.lift_from(table, name))[:, 0]
        expected = [row[column] for row in chosen] if column else np.repeat(prompts, samples)
        together = cell[:, None] == cell
        np.testing.assert_array_equal(together, np.equal.outer(expected, expected))


def test_without_prompt_groups_a_column_stands_on_trajectories(domains):
    levels = make_levels(check_names(TREE[1:2]), domains)
    np.testing.assert_array_equal(levels.tables(np.array([3, 0]), 2)["topic"], [2, 2, 0, 0])


def test_levels_that_do_not_nest_are_refused_with_two_rows(domains):
    wrong = domain("words", ("ages", "stories"), ("sums", "stories"))
    with pytest.raises(ValueError) as error:
        make_levels(check_names(TREE), (domains[0], wrong))
    assert str(error.value) == (
        "config.levels: 'topic' does not lie within 'field': domain 'algebra', row 1 and domain "
        "'words', row 2 share the first and not the second"
    )


def test_a_column_that_the_data_lack_is_refused(domains):
    with pytest.raises(ValueError, match="'author', which domain 'algebra', row 1 does not have"):
        make_levels((("author", "author"),), domains)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("group", "must be pairs"),
        (("group",), "must be pairs"),
        ((("group", 1),), "pairs of texts"),
        ((("trajectory", ""),), "'trajectory'"),
        ((("token", ""),), "'token'"),
        ((("state", ""),), "'state'"),
        ((("a/b", ""),), "'a/b'"),
        ((("group", ""), ("group", "domain")), "the name 'group' twice"),
        ((("a", "domain"), ("b", "domain")), "the column 'domain' twice"),
        ((("domain", "domain"), ("group", "")), "it is the finest"),
        ((("group", ""), ("turn", "turn")), r"expected \('turn', 'turn'\), before all others"),
        ((("turn", ""),), r"expected \('turn', 'turn'\), before all others"),
    ],
)
def test_wrong_levels_are_refused_without_data(levels, message):
    with pytest.raises(ValueError, match=message):
        check_names(levels)


def test_only_further_columns_are_read_from_a_file():
    assert columns_of(TREE) == ("topic", "field")
    assert columns_of((("turn", "turn"), *TREE)) == ("topic", "field")


def test_turns_stand_below_the_trajectory(domains):
    levels = check_names((("turn", "turn"), *TREE))
    plain, made = (make_levels(of, domains) for of in (check_names(TREE), levels))
    assert made.turns and not plain.turns and made.names == plain.names
    assert made.of_layout == ("turn", *plain.of_layout) == of_layout(levels)
    assert made.tables(np.array([0, 3]), 2).keys() == plain.tables(np.array([0, 3]), 2).keys()


def test_domains_without_examples_give_tables_of_their_size(domains):
    bare = [dataclasses.replace(each, source=()) for each in domains]
    levels = make_levels(check_names((("group", ""), ("domain", "domain"))), bare)
    assert levels.num_cells == {"domain": 2}
