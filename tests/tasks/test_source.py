import json
from collections import Counter

import numpy as np
import pytest

from fiberjax.tasks import (
    CharVocabulary,
    Domain,
    EncodedExamples,
    Example,
    Examples,
    PromptStream,
    make_family,
    prompt_batch,
    reward_completions,
)
from fiberjax.tasks.examples import draw_examples

VOCABULARY = CharVocabulary()


def domain(name, count):
    family = make_family(name)
    return Domain(name, tuple(draw_examples(family, "train", count)), family.verify)


@pytest.fixture(scope="module")
def domains():
    return (domain("sort", 16), domain("addition", 64))


def stream(domains, **options):
    defaults = {"num_prompts": 8, "max_prompt_tokens": 14, "total_steps": 10}
    return PromptStream(EncodedExamples(domains, VOCABULARY), **{**defaults, **options})


def same(one, other):
    for name in ("tokens", "mask", "prompt_index", "domain"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.prompts == other.prompts and one.answers == other.answers


def rollout(batch, step):
    """Rewards as a run would find them: some function of the prompt and the step."""
    rng = np.random.default_rng([step, *batch.prompt_index.tolist()])
    return rng.integers(0, 2, (len(batch.prompts), 4)).astype(np.float32)


def test_a_batch_by_hand():
    source = (Example("S:21=", "12", "12", "sort"), Example("S:5=", "5", "5", "sort"))
    domains = (Domain("a", source[:1], str.__eq__), Domain("b", source[1:], str.__eq__))
    examples = EncodedExamples(domains, VOCABULARY)
    batch = prompt_batch(examples, np.array([1, 0, 1]), 7)
    pad, bos = VOCABULARY.pad_id, VOCABULARY.bos_id
    np.testing.assert_array_equal(
        batch.tokens,
        [
            [pad, pad, bos, *VOCABULARY.encode("S:5=")],
            [pad, bos, *VOCABULARY.encode("S:21=")],
            [pad, pad, bos, *VOCABULARY.encode("S:5=")],
        ],
    )
    np.testing.assert_array_equal(batch.mask, batch.tokens != pad)
    np.testing.assert_array_equal(batch.domain, [1, 0, 1])
    np.testing.assert_array_equal(batch.prompt_index, [1, 0, 1])
    assert batch.prompts == ["S:5=", "S:21=", "S:5="] and batch.answers == ["5", "12", "5"]
    assert batch.tokens.dtype == np.int32 and batch.mask.dtype == bool
    with pytest.raises(ValueError, match="row 1 has 6 tokens, the window holds 5"):
        prompt_batch(examples, np.array([1, 0]), 5)


def test_rewards_keep_samples_with_their_prompt(domains):
    batch = next(stream(domains))
    examples = Examples(domains)
    right = [examples[int(i)].solution for i in batch.prompt_index]
    completions = [text for good in right for text in (good, "no")]
    rewards = reward_completions(domains, batch, completions).reward
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards, np.tile([1.0, 0.0], (8, 1)))
    for wrong in ([], right[:-1], [*right, "x"]):
        with pytest.raises(ValueError, match="completions for 8 prompts"):
            reward_completions(domains, batch, wrong)


def rewarded_by(verify):
    """Rewards of one completion of one prompt, under a verifier of one's own."""
    one = Domain("own", (Example("S:21=", "12", "12", "own"),), verify)
    batch = prompt_batch(EncodedExamples((one,), VOCABULARY), np.array([0]), 7)
    return reward_completions((one,), batch, ["15"]).reward


@pytest.mark.parametrize(
    ("given", "reward"),
    [
        (True, 1.0),
        (np.False_, 0.0),
        (3, 3.0),
        (-0.5, -0.5),
        (np.float64(0.25), 0.25),
        (np.int8(-2), -2.0),
        (np.array(0.75, np.float16), 0.75),
    ],
)
def test_a_reward_is_any_finite_number(given, reward):
    assert rewarded_by(lambda *_: given)[0, 0] == reward


@pytest.mark.parametrize(
    "given", [float("nan"), float("inf"), -np.inf, 1e39, 10**400, None, "1", "0.5", [1.0], 1j]
)
def test_another_reward_names_domain_prompt_and_value(given):
    with pytest.raises(
        ValueError, match=r"domain 'own' returned .* prompt 'S:21=' .*'15'"
    ) as error:
        rewarded_by(lambda *_: given)
    assert repr(given) in str(error.value)


def test_resume_is_exact_at_every_step(domains):
    whole, states, batches = stream(domains), [], []
    for step in range(6):
        states.append(json.dumps(whole.get_state()))
        batches.append(next(whole))
        whole.observe(batches[-1].prompt_index, rollout(batches[-1], step))
    for start in range(6):
        resumed = stream(domains)
        resumed.set_state(json.loads(states[start]))
        for step in range(start, 6):
            assert json.dumps(resumed.get_state()) == states[step]
            batch = next(resumed)
            same(batch, batches[step])
            resumed.observe(batch.prompt_index, rollout(batch, step))
        np.testing.assert_array_equal(resumed.pass_rate, whole.pass_rate)


def test_orbax_saves_and_restores_the_stream(domains, tmp_path):
    from orbax.checkpoint import v1

    saved = stream(domains)
    batch = next(saved)
    saved.observe(batch.prompt_index, rollout(batch, 0))
    v1.save_checkpointables(tmp_path / "step", {"prompts": saved})
    restored = stream(domains)
    v1.load_checkpointables(tmp_path / "step", {"prompts": restored})
    same(next(restored), next(saved))


def test_draws_depend_on_seed_and_step(domains):
    one, other = stream(domains), stream(domains, seed=1)
    first, second = next(one), next(one)
    assert first.prompts != second.prompts and first.prompts != next(other).prompts
    same(first, next(stream(domains)))


def test_no_prompt_comes_twice_until_its_domain_has_run_out(domains):
    indices = next(stream(domains, num_prompts=40)).prompt_index
    sort = indices[indices < 16]
    # √16 : √64 gives the first domain a third of 40; it holds 16.
    assert len(set(indices.tolist())) == len(indices) and len(sort) > 0
    few = next(stream(domains, num_prompts=40, domain_probability={"sort": 1.0})).prompt_index
    assert set(Counter(few.tolist()).values()) == {2, 3} and len(set(few.tolist())) == 16


def test_domains_are_drawn_by_square_root_or_as_told(domains):
    def share(**options):
        one = stream(domains, num_prompts=12, **options)
        return np.mean([np.mean(next(one).domain == 0) for _ in range(150)])

    assert share() == pytest.approx(1 / 3, abs=0.05)
    assert share(domain_probability={"sort": 0.8}) == pytest.approx(0.8, abs=0.05)
    assert share(domain_probability={"sort": 0.0}) == 0.0


def test_every_part_of_a_batch_sees_every_domain(domains):
    batch = next(stream(domains, num_prompts=32))
    assert set(batch.domain[:16].tolist()) == set(batch.domain[16:].tolist()) == {0, 1}


def test_prompts_are_drawn_by_curriculum(domains):
    one = stream(domains[1:], num_prompts=4, start=0.5, end=0.5)
    rates = np.linspace(0, 1, 64)
    one.pass_rate = rates
    drawn = np.concatenate([next(one).prompt_index for _ in range(400)])
    assert 63 not in drawn
    assert np.mean(rates[drawn]) == pytest.approx(0.5, abs=0.02)
    # The Gaussian's width, a little more for drawing without replacement.
    assert np.std(rates[drawn]) == pytest.approx(0.15, abs=0.03)


def test_untried_prompts_come_before_those_far_from_the_target(domains):
    one = stream(domains[1:], num_prompts=4)
    one.observe(np.arange(60), np.zeros((60, 1)))
    assert sorted(next(one).prompt_index.tolist()) == [60, 61, 62, 63]


def test_when_everything_is_solved_everything_counts_again(domains):
    one = stream(domains)
    one.observe(np.arange(80), np.ones((80, 1)))
    assert len(next(one).prompts) == 8
    one.observe(np.array([3]), np.array([[0.0]]))
    # One prompt of the first domain is unsolved again: it is all there is to draw.
    assert set(next(one).prompt_index.tolist()) == {3}


@pytest.mark.parametrize(("threshold", "share"), [(1.0, 0.25), (0.9, 0.5), (0.0, 0.75)])
def test_what_passes_is_what_reaches_the_threshold(domains, threshold, share):
    one = stream(domains, pass_threshold=threshold)
    # As rollouts keep them: in float32, in which 0.9 lies below 0.9 in float64.
    one.observe(np.array([5]), np.array([[7.0, 0.9, 0.5, -3.0]], np.float32))
    assert one.pass_rate[5] == share


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_one_global_draw(domains, count):
    whole = stream(domains)
    parts = [stream(domains, process_index=i, process_count=count) for i in range(count)]
    for step in range(3):
        batch, shards = next(whole), [next(part) for part in parts]
        np.testing.assert_array_equal(batch.tokens, np.concatenate([s.tokens for s in shards]))
        assert batch.prompts == [p for s in shards for p in s.prompts]
        for one in (whole, *parts):
            one.observe(batch.prompt_index, rollout(batch, step))


def test_further_batches_of_a_step_try_other_prompts_at_the_same_target(domains):
    one, plain = stream(domains), stream(domains)
    first = next(one)
    same(first, next(plain))
    second = one.further(1, first.prompt_index)
    tried = np.concatenate([first.prompt_index, second.prompt_index])
    third = one.further(2, tried)
    both = np.concatenate([tried, third.prompt_index])
    assert len(set(both.tolist())) == 3 * 8
    same(second, one.further(1, first.prompt_index))
    np.testing.assert_array_equal(second.prompt_index, plain._draw(0, 1, first.prompt_index))
    # They leave the stream where it is.
    assert one.get_state() == plain.get_state()
    same(next(one), next(plain))
    # Where a domain has run out, its prompts come again: each once before one comes twice.
    few = stream(domains, num_prompts=16, domain_probability={"sort": 1.0})
    first = next(few)
    again = few.further(1, first.prompt_index).prompt_index
    assert sorted(again.tolist()) == sorted(first.prompt_index.tolist()) == list(range(16))
    part = stream(domains, num_prompts=12, domain_probability={"sort": 1.0})
    first = next(part).prompt_index
    again = part.further(1, first).prompt_index
    assert set(again.tolist()) >= set(range(16)) - set(first.tolist()) and len(set(again)) == 12


def test_processes_share_the_further_draws(domains):
    whole = stream(domains)
    parts = [stream(domains, process_index=i, process_count=2) for i in range(2)]
    tried = next(whole).prompt_index
    for part in parts:
        next(part)
    shards = [part.further(1, tried) for part in parts]
    batch = whole.further(1, tried)
    assert batch.prompts == [p for s in shards for p in s.prompts]


def test_stream_errors(domains):
    for options, message in (
        (
            {"max_prompt_tokens": 9},
            r"domain 'addition', row 1: the prompt has 13 tokens, the longest of 75",
        ),
        ({"domain_probability": {"sorts": 0.1}}, "domain_probability names 'sorts', expected one"),
        ({"domain_probability": {"sort": 1.1}}, "overrides are"),
        ({"num_prompts": 0}, "a batch of 0 rows"),
        ({"process_count": 3}, "a batch of 8 rows cannot be split over 3 processes"),
        ({"process_index": 1}, r"process_index is 1, expected 0\.\.0"),
        ({"total_steps": 0}, "total is 0"),
        ({"sigma": 0.0}, "sigma is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            stream(domains, **options)
    with pytest.raises(ValueError, match="domain 'empty' has no examples"):
        stream((Domain("empty", (), str.__eq__),))
    with pytest.raises(
        ValueError, match=r"saved prompt stream is over Examples\(sort=16, addition"
    ):
        stream(domains[:1]).set_state(stream(domains).get_state())
    with pytest.raises(ValueError, match="character '2' of"):
        PromptStream(
            EncodedExamples(domains, CharVocabulary("S:=")),
            num_prompts=1,
            max_prompt_tokens=20,
            total_steps=1,
        )
