"""Every text of a run is encoded once, and what is taught is known by its tokens."""

import dataclasses

import numpy as np
import pytest

from fiberjax import experiment
from fiberjax.run.evaluation import evaluate
from fiberjax.tasks import CharVocabulary, Domain, EncodedExamples, Example
from fiberjax.train.rollout import Sampler

VOCABULARY = CharVocabulary()
ROWS = (("1+1=", "2"), ("1+10=", "11"), ("2=", ""))


def encoded(*rows, vocabulary=VOCABULARY, names=("sums",), where=""):
    """Examples of one domain, or with the last row in a second one."""
    examples = [Example(p, s, s, names[0], where=where) for p, s in rows]
    if len(names) == 1:
        domains = (Domain(names[0], tuple(examples), str.__eq__),)
    else:
        domains = tuple(
            Domain(name, tuple(part), str.__eq__)
            for name, part in zip(names, (examples[:-1], examples[-1:]), strict=True)
        )
    return EncodedExamples(domains, vocabulary)


def test_tokens_are_those_of_the_texts():
    examples = encoded(*ROWS)
    for index, (prompt, solution) in enumerate(ROWS):
        ids = [VOCABULARY.bos_id, *VOCABULARY.encode(prompt)]
        np.testing.assert_array_equal(examples.prompts[index], ids)
        np.testing.assert_array_equal(examples.solutions[index], VOCABULARY.encode(solution))
    np.testing.assert_array_equal(examples.prompts.lengths, [5, 6, 3])
    np.testing.assert_array_equal(examples.solutions.span(0, 2), VOCABULARY.encode("211"))
    assert len(examples.prompts) == 3
    assert {rows.ids.dtype for rows in (examples.prompts, examples.solutions)} == {np.dtype("i4")}


def test_solutions_are_not_asked_of_who_needs_none():
    examples = encoded(("1=", "é"))
    examples.check_prompts(3)
    with pytest.raises(ValueError, match="domain 'sums', row 1: character 'é'"):
        examples.check_solutions(9)


@pytest.mark.parametrize(("where", "named"), [("", "domain 'sums', row 2"), ("a, row 7",) * 2])
def test_what_does_not_fit_is_named_by_its_row(where, named):
    examples = encoded(*ROWS, where=where)
    examples.check_prompts(6)
    examples.check_solutions(3)
    with pytest.raises(
        ValueError, match=f"{named}: the prompt has 6 tokens, .*config.window.prompt = 5"
    ):
        examples.check_prompts(5)
    with pytest.raises(ValueError, match=f"{named}: the solution has 3 tokens .*completion = 2"):
        examples.check_solutions(2)


def test_the_digest_is_of_what_is_taught():
    same = [
        encoded(*ROWS),
        encoded(*ROWS, where="elsewhere"),
        encoded(*ROWS, names=("other",)),
        encoded(*ROWS, vocabulary=CharVocabulary(VOCABULARY.characters + "é")),
    ]
    assert len({examples.digest() for examples in same}) == 1
    others = [
        encoded(*ROWS[::-1]),
        encoded(("1+1=", "3"), *ROWS[1:]),
        # The same tokens, divided otherwise.
        encoded(("1+1=", "21"), ("1+10=", "1"), ROWS[2]),
        encoded(*ROWS[:2]),
        encoded(*ROWS, names=("sums", "other")),
        encoded(*ROWS, vocabulary=CharVocabulary(VOCABULARY.characters[::-1])),
    ]
    digests = [examples.digest() for examples in (same[0], *others)]
    assert len(set(digests)) == len(digests)


def test_a_start_encodes_every_text_once(make_config, one_device, monkeypatch):
    texts = []
    encode = CharVocabulary.encode
    monkeypatch.setattr(
        CharVocabulary, "encode", lambda self, text: texts.append(text) or encode(self, text)
    )
    built = experiment.from_config(make_config(), one_device)
    # What a run does until it has its first prompts, and after it.
    stream, supervised = built.prompt_stream(), built.supervised_stream()
    for _ in range(3):
        next(stream), next(supervised)
    monkeypatch.setattr(Sampler, "__call__", all_right)
    for _ in range(2):
        evaluate(built, None, "held out")
    built.prompt_stream(), built.supervised_stream(), built.examples.digest()
    rows = [row for domain in built.train for row in domain.source]
    held_out = [row for domain in built.test for row in domain.source]
    expected = [text for row in rows for text in (row.prompt, row.solution)]
    assert sorted(texts) == sorted(expected + [row.prompt for row in held_out])


def test_other_domains_have_other_tokens(make_config, one_device):
    built = experiment.from_config(make_config(), one_device)
    assert len(built.examples) == 3 * 40
    assert len(dataclasses.replace(built, train=built.train[:1]).examples) == 40


def all_right(self, params, prompts, *, samples, stream, step):
    """Rollouts that all earn 1."""
    from types import SimpleNamespace

    return SimpleNamespace(reward=np.ones(len(prompts.prompts) * samples, np.float32))
