"""A run that nothing pays says so, and why."""

import json
import types

import pytest
import tiny

from fiberjax.run import loop
from fiberjax.run.unpaid import Unpaid
from fiberjax.tasks import Domain, Example


def watch(iterations=3, **tasks):
    example = Example("1+1=", "#### " + "2" * 100, "2", "sums")
    sums, words = (Domain(name, (example,), lambda *_: 0.0) for name in ("sums", "words"))
    return Unpaid(
        types.SimpleNamespace(
            training=types.SimpleNamespace(unpaid_iterations=iterations),
            domain_names=("sums", "words"),
            tasks=types.SimpleNamespace(
                **{"file": "a.jsonl", "verifier": "exact", "verifiers": ()} | tasks
            ),
            window=types.SimpleNamespace(completion=8),
            train=(sums, words),
        )
    )


def scalars(equal=0.5, cut=0.0, **rewards):
    found = {"frac_reward_zero_std": equal, "response_length/clip_ratio": cut}
    return found | {f"reward/{name}": reward for name, reward in rewards.items()}


def said(watched, *iterations):
    return [watched.observe(number, row) for number, row in enumerate(iterations)]


def test_a_domain_that_is_never_paid_is_named_with_its_verifier():
    row = scalars(sums=0.0, words=0.5)
    first, second, third, later = said(watch(), row, row, row, row)
    assert first is second is later is None
    assert "in the first 3 iterations no completion of 'sums' was paid anything" in third
    assert "config.tasks.verifier = 'exact'" in third and "'#### 2222" in third
    assert "words" not in third and "2" * 61 not in third
    assert "the family's own" in said(watch(file=""), row, row, row)[2]


def test_a_domain_s_own_verifier_is_the_one_that_is_named():
    row = scalars(sums=0.0, words=0.5)
    told = said(watch(1, verifiers=(("sums", "math"),)), row)[0]
    assert "config.tasks.verifier = 'math'" in told


def test_rewards_that_failed_are_the_likely_cause():
    row = scalars(sums=0.0, words=0.5) | {"verifier/failed": 3.0}
    assert "Rewards failed for 6 completions" in said(watch(2), row, row)[1]


def test_a_run_that_ends_sooner_is_told_of_at_its_end():
    nothing, paid = scalars(equal=1.0, sums=0.0, words=0.0), scalars(sums=0.5, words=0.5)
    short = watch()
    assert said(short, nothing, nothing) == [None, None]
    assert short.at_end().startswith("in the first 2 iterations the rewards of every prompt group")
    untouched, whole, learning = watch(), watch(2), watch()
    said(whole, nothing, nothing)
    said(learning, paid)
    assert untouched.at_end() is whole.at_end() is learning.at_end() is None


def test_groups_without_a_spread_are_told():
    row = scalars(equal=1.0, sums=1.0, words=0.5)
    found = said(watch(), row, row, row)[2]
    assert "the rewards of every prompt group were all equal" in found and "too easy" in found


def test_answers_that_are_cut_are_the_likely_cause():
    row = scalars(equal=1.0, cut=0.75, sums=0.0, words=0.0)
    assert "75% of the answers were cut at config.window.completion = 8" in said(watch(1), row)[0]


@pytest.mark.parametrize(
    "rows",
    [
        [scalars(sums=0.0, words=0.0), scalars(sums=0.1), scalars(words=0.1)],
        [scalars(equal=1.0, sums=1.0), scalars(equal=1.0, sums=1.0), scalars(equal=0.9, sums=1.0)],
        [scalars(words=-1.0), scalars(), scalars()],
    ],
    ids=["one payment", "one spread", "a domain that was not drawn"],
)
def test_one_sign_of_life_is_enough(rows):
    assert said(watch(), *rows) == [None] * 3


def test_it_may_be_told_to_go_on():
    assert said(watch(0), scalars(equal=1.0, sums=0.0)) == [None]


@pytest.mark.parametrize("last", [scalars(equal=1.0, sums=1.0), scalars(sums=0.0, words=0.0)])
@pytest.mark.parametrize("earlier", [scalars(sums=0.5, words=0.5), scalars(1.0, 0.4, sums=0.0)])
def test_a_resumed_run_is_judged_by_all_that_it_did(earlier, last):
    whole, begun, resumed, older = watch(), watch(), watch(), watch()
    expected = said(whole, earlier, earlier, last)[2]
    said(begun, earlier, earlier)
    resumed.set_state(json.loads(json.dumps(begun.get_state())))
    assert resumed.observe(2, last) == expected
    assert resumed.observe(3, last) is None
    older.set_state(None)
    assert older.observe(2, last) is older.at_end() is None


def test_a_checkpoint_keeps_what_was_paid(build, tmp_path, monkeypatch):
    found = []
    observe = Unpaid.observe

    def kept(self, iteration, scalars):
        before = self.get_state()
        told = observe(self, iteration, scalars)
        found.append((before, self.get_state()))
        return told

    monkeypatch.setattr(Unpaid, "observe", kept)
    changed = {"warm_start__steps": 0, "training__unpaid_iterations": 5}
    for iterations in (1, 2):
        built = build(iterations=iterations, **changed)
        loop.run(built, tmp_path / "run", tiny.get_config().to_json_best_effort())
    (_, end), (begin, _) = found
    assert begin == end and end["seen"] == 1


def test_a_run_that_nothing_pays_stops_saved_and_may_go_on(build, tmp_path):
    changed = {"warm_start__steps": 0, "iterations": 2, "training__unpaid_iterations": 1}
    built, text = build(**changed), tiny.get_config().to_json_best_effort()
    with pytest.raises(SystemExit, match="stopped: in the first iteration the"):
        loop.run(built, tmp_path / "run", text)
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()
    loop.run(built, tmp_path / "run", text)
    assert (tmp_path / "run" / "evaluation.json").is_file()


def test_a_run_that_is_over_before_it_would_stop_says_what_it_saw(build, tmp_path, capsys):
    built = build(warm_start__steps=0, iterations=1)
    loop.run(built, tmp_path / "run", tiny.get_config().to_json_best_effort())
    assert "in the first iteration the rewards of every prompt group" in capsys.readouterr().out
