import json

import numpy as np
import pytest

from fiberjax.tasks import CharVocabulary, Domain, Example, make_family, supervised_batches
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
    return supervised_batches(domains, VOCABULARY, **{**defaults, **options})


def same(one, other):
    for name in ("tokens", "mask", "loss_mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_batch_by_hand():
    source = (Example("S:21=", "12", "12", "sort"),)
    one = Domain("sort", source, make_family("sort").verify)
    batch = next(batches((one,), batch_size=1, max_prompt_tokens=8, max_completion_tokens=5))
    pad, bos, eos = VOCABULARY.pad_id, VOCABULARY.bos_id, VOCABULARY.eos_id
    prompt, solution = VOCABULARY.encode("S:21="), VOCABULARY.encode("12")
    expected = [pad, pad, bos, *prompt, *solution, eos, pad, pad]
    np.testing.assert_array_equal(batch.tokens, [expected])
    np.testing.assert_array_equal(batch.mask, [np.array(expected) != pad])
    np.testing.assert_array_equal(batch.loss_mask, [[0] * 8 + [1, 1, 1, 0, 0]])
    assert batch.tokens.dtype == np.int32 and batch.loss_mask.dtype == bool


def rows(batch):
    return [VOCABULARY.decode(row) for row in batch.tokens]


def test_every_epoch_holds_every_example_once_in_another_order(domains):
    iterator = batches(domains)
    epochs = [[text for _ in range(4) for text in rows(next(iterator))] for _ in range(3)]
    expected = sorted(e.prompt + e.solution for d in domains for e in d.source)
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1] and epochs[1] != epochs[2]
    assert rows(next(batches(domains, seed=1))) != epochs[0][:8]
    assert rows(next(batches(domains))) == epochs[0][:8]


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
        ({"max_prompt_tokens": 9}, r"domain 'sort', row \d+: the prompt has 1\d tokens"),
        (
            {"max_completion_tokens": 20},
            r"domain 'addition', row 1: the solution has 4\d tokens .*max_completion_tokens=20",
        ),
        ({"batch_size": 0}, "a batch of 0 rows"),
        ({"process_count": 3}, "cannot be split over 3"),
    ):
        with pytest.raises(ValueError, match=message):
            batches(domains, **options)
    odd = Domain("odd", (Example("S:1=", "1", "é", "odd"),), make_family("sort").verify)
    with pytest.raises(ValueError, match="domain 'odd', row 1: character 'é' of 'é'"):
        batches((odd,))
