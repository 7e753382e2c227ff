import dataclasses
import json

import numpy as np
import pytest

from fiberjax.tasks import (
    CharVocabulary,
    Domain,
    EncodedExamples,
    Example,
    make_family,
    supervised_batches,
)
from fiberjax.tasks.examples import draw_examples

VOCABULARY = CharVocabulary()


def domain(name, count):
    family = make_family(name)
    return Domain(name, tuple(draw_examples(family, "train", count)), family.verify)


@pytest.fixture(scope="module")
def domains():
    return (domain("sort", 10), domain("addition", 22))


def batches(domains, **options):
    defaults = {"batch_size": 8, "max_prompt_tokens": 14, "max_completion_tokens": 44}
    return supervised_batches(EncodedExamples(domains, VOCABULARY), **{**defaults, **options})


def same(one, other):
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def packed_examples(batch):
    """The examples of a batch as `prompt + solution`, in the order of their rows."""
    return [
        VOCABULARY.decode(row[ids == segment][1:])
        for row, ids in zip(batch.tokens, batch.segment_ids, strict=True)
        for segment in range(1, ids.max() + 1)
    ]


def test_a_batch_by_hand():
    source = (Example("S:21=", "12", "12", "sort"),)
    one = Domain("sort", source, make_family("sort").verify)
    batch = next(batches((one,), batch_size=1, max_prompt_tokens=13, max_completion_tokens=9))
    pad, bos, eos = VOCABULARY.pad_id, VOCABULARY.bos_id, VOCABULARY.eos_id
    prompt, solution = VOCABULARY.encode("S:21="), VOCABULARY.encode("12")
    example = [bos, *prompt, *solution, eos]
    np.testing.assert_array_equal(batch.tokens, [[*example, *example, *[pad] * 4]])
    np.testing.assert_array_equal(batch.segment_ids, [[1] * 9 + [2] * 9 + [0] * 4])
    np.testing.assert_array_equal(batch.positions[0, :18], [*range(9), *range(9)])
    np.testing.assert_array_equal(batch.loss_mask, [([0] * 6 + [1] * 3) * 2 + [0] * 4])
    assert batch.tokens.dtype == np.int32 and batch.loss_mask.dtype == bool


def test_packing_keeps_every_example_whole_and_fills_rows(domains):
    iterator = batches(domains)
    drawn = [next(iterator) for _ in range(40)]
    whole = {e.prompt + e.solution for d in domains for e in d.source}
    found = [text for batch in drawn for text in packed_examples(batch)]
    assert set(found) == whole
    # Both domains come as often as they have examples.
    assert np.mean([text[0] == "S" for text in found]) == pytest.approx(10 / 32, abs=0.05)
    assert np.mean([batch.segment_ids > 0 for batch in drawn]) > 0.85


def test_the_order_is_another_every_epoch_and_for_every_seed(domains):
    iterator = batches(domains)
    first, second = next(iterator), [next(iterator) for _ in range(5)][-1]
    same(next(batches(domains)), first)
    assert packed_examples(second) != packed_examples(first)
    assert packed_examples(next(batches(domains, seed=1))) != packed_examples(first)


def test_resume_is_exact(domains):
    iterator = batches(domains)
    for _ in range(5):
        next(iterator)
    state = json.dumps(iterator.get_state())
    following = [next(iterator) for _ in range(6)]
    resumed = batches(domains)
    resumed.set_state(json.loads(state))
    for batch in following:
        same(next(resumed), batch)


def test_processes_share_one_global_batch(domains):
    whole = next(batches(domains))
    parts = [next(batches(domains, process_index=i, process_count=2)) for i in range(2)]
    np.testing.assert_array_equal(whole.tokens, np.concatenate([p.tokens for p in parts]))


def test_errors(domains):
    for options, message in (
        (
            {"max_prompt_tokens": 9},
            r"domain 'addition', row 1: the prompt has 13 tokens, the longest of",
        ),
        (
            {"max_completion_tokens": 20},
            r"'addition', row 1: the solution has 4\d tokens .*config\.window\.completion = 20",
        ),
        ({"batch_size": 0}, "a batch of 0 rows"),
        ({"process_count": 3}, "cannot be split over 3"),
    ):
        with pytest.raises(ValueError, match=message):
            batches(domains, **options)
    odd = Domain("odd", (Example("S:1=", "1", "é", "odd"),), make_family("sort").verify)
    with pytest.raises(ValueError, match="domain 'odd', row 1: character 'é' of 'é'"):
        batches((odd,))


def targets(batch):
    """Prompt and target tokens of every example of a batch, as (prompt, target) tuples."""
    found = []
    for row, ids, mask in zip(batch.tokens, batch.segment_ids, batch.loss_mask, strict=True):
        for segment in range(1, ids.max() + 1):
            here = ids == segment
            found.append((tuple(row[here & ~mask]), tuple(row[here & mask])))
    return found


def test_flawed_solutions_differ_by_one_token_of_their_domain(domains):
    right = {
        (VOCABULARY.bos_id, *VOCABULARY.encode(e.prompt)): VOCABULARY.encode(e.solution)
        for d in domains
        for e in d.source
    }
    alphabets = [{t for e in d.source for t in VOCABULARY.encode(e.solution)} for d in domains]
    iterator = batches(domains, flawed=0.4)
    found = [pair for _ in range(40) for pair in targets(next(iterator))]
    spoilt = {}
    for prompt, target in found:
        solution = right[prompt]
        assert len(target) == len(solution) + 1 and target[-1] == VOCABULARY.eos_id
        wrong = [(i, t) for i, (t, s) in enumerate(zip(target, solution, strict=False)) if t != s]
        assert len(wrong) <= 1
        if wrong:
            spoilt.setdefault(prompt, set()).add(wrong[0])
            assert wrong[0][1] in alphabets[0 if prompt[1] == VOCABULARY.encode("S")[0] else 1]
    share = np.mean([list(target[:-1]) != right[prompt] for prompt, target in found])
    assert share == pytest.approx(0.4, abs=0.05)
    spoilt_all = targets(next(batches(domains, flawed=1.0)))
    assert all(list(target[:-1]) != right[prompt] for prompt, target in spoilt_all)
    # Another flaw each time an example comes by.
    assert max(map(len, spoilt.values())) > 5


def test_flaws_resume_and_follow_the_seed(domains):
    iterator = batches(domains, flawed=1.0)
    first = next(iterator)
    state = iterator.get_state()
    second = next(iterator)
    resumed = batches(domains, flawed=1.0)
    resumed.set_state(state)
    same(next(resumed), second)
    same(next(batches(domains, flawed=1.0)), first)
    assert targets(next(batches(domains, flawed=1.0, seed=1))) != targets(first)


def test_a_domain_of_one_token_stays_right():
    source = (Example("B:(=", ")", ")", "brackets"),)
    one = Domain("brackets", source, make_family("brackets").verify)
    batch = next(batches((one,), flawed=1.0, batch_size=1))
    assert {target for _, target in targets(batch)} == {
        (*VOCABULARY.encode(")"), VOCABULARY.eos_id)
    }
