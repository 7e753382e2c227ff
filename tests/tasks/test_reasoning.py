"""Problems of reasoning-gym as domains: by a stand-in, and by itself where it is installed."""

import importlib.util
import sys
from pathlib import Path

import pytest

from fiberjax.tasks import reasoning
from fiberjax.tasks.examples import split_of_text
from fiberjax.tasks.loading import load_domains, named_domains
from fiberjax.tasks.rewards import SHIPPED, Case, close_all, rewards_of

INSTALLED = importlib.util.find_spec("reasoning_gym") is not None
STAND_INS = Path(__file__).parents[1] / "stand_ins"


@pytest.fixture
def stand_in(monkeypatch):
    """reasoning-gym is the stand-in, here and in workers."""
    monkeypatch.syspath_prepend(str(STAND_INS))
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    close_all()
    for name in ("reasoning_gym", "reasoning_gym.factory"):
        sys.modules.pop(name, None)


def read(*entries, **changes):
    told = []
    options = dict(num_train=30, num_test=5, seed=0, verifiers=SHIPPED, verifier_of={})
    options |= {"tell": told.append} | changes
    return reasoning.read(reasoning.named(entries), **options)


def test_problems_are_distinct_split_by_their_question_and_a_function_of_the_seed(stand_in):
    (train,), (test,) = read("doubling")
    assert train.name == test.name == "doubling"
    assert (len(train.source), len(test.source)) == (30, 5)
    for domain, split in ((train, "train"), (test, "test")):
        questions = [example.prompt for example in domain.source]
        assert len(set(questions)) == len(questions)
        assert {split_of_text(question) for question in questions} == {split}
    again = read("doubling")[0][0]
    assert [e.prompt for e in again.source] == [e.prompt for e in train.source]
    other = read("doubling", seed=10**6)[0][0]
    assert [e.prompt for e in other.source] != [e.prompt for e in train.source]


def test_knobs_reach_the_data_set(stand_in):
    ((train,), _) = read(("doubling", ("largest", 500)))
    assert all(example.row["reasoning_gym"]["metadata"]["number"] < 500 for example in train.source)


def paid(domain, *texts):
    example = domain.source[0]
    cases = [Case(example.prompt, example.answer, text, example.row) for text in texts]
    return rewards_of(domain.verify, domain.name, cases)


def test_the_data_sets_own_scorer_pays_and_its_crash_is_counted(stand_in):
    ((train,), _) = read("doubling")
    right = str(2 * train.source[0].row["reasoning_gym"]["metadata"]["number"])
    texts = (right, f"so <answer> {right} </answer>!", f"<answer>{right}", "7", "", "boom", " ")
    rewards = paid(train, *texts)
    assert rewards.reward.tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert rewards.failed.tolist() == [False] * 5 + [True, False]
    ((train,), _) = read("doubling", verifier_of={"doubling": "reasoning_gym_score"})
    assert paid(train, right, "7").reward.tolist() == pytest.approx([1, 0.01])


def test_a_problem_without_an_answer_of_its_own_is_paid_all_the_same(stand_in):
    ((train,), _) = read("doubling")
    example = next(e for e in train.source if e.answer == "")
    number = example.row["reasoning_gym"]["metadata"]["number"]
    cases = [Case(example.prompt, "", text, example.row) for text in (str(2 * number), "")]
    assert rewards_of(train.verify, train.name, cases).reward.tolist() == [1, 0]


@pytest.mark.parametrize(
    "entries, message",
    [
        (("dou",), "no data set 'dou'; those with such a name are doubling"),
        ((("doubling", ("largest", 0)),), "largest must be at least 1"),
        ((("doubling", ("smallest", 0)),), "unexpected keyword argument 'smallest'"),
        ((("doubling", ("largest", 3)),), "too few distinct problems: found 3 of 30 for train, 0"),
        (("doubling", "doubling"), "config.tasks.reasoning_gym names 'doubling' twice"),
        ((("doubling", "largest"),), "expected a name, or a name and pairs"),
        (((),), "expected a name"),
    ],
)
def test_what_cannot_be_drawn_is_refused(stand_in, monkeypatch, entries, message):
    monkeypatch.setattr(reasoning, "_BARREN", 50)
    with pytest.raises(ValueError, match=r"config\.tasks\.reasoning_gym") as error:
        read(*entries)
    assert message in str(error.value)


@pytest.mark.skipif(INSTALLED, reason="reasoning-gym is installed")
def test_the_extra_is_named_where_it_is_missing():
    with pytest.raises(ValueError, match="uv sync --inexact --extra reasoning"):
        read("gcd")


def test_domains_stand_beside_those_of_a_file(stand_in, make_config, tmp_path):
    from fiberjax import options

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{n}+1=", "answer": "{n + 1}"}}\n' for n in range(40)))
    config = make_config().tasks
    config.reasoning_gym, config.num_train, config.num_test = "doubling", 12, 3
    tasks = options.parse(options.Tasks, config, "config.tasks")
    train, test = load_domains(tasks)
    assert [domain.name for domain in train] == [domain.name for domain in test] == ["doubling"]
    config.file, config.verifiers = str(rows), (("doubling", "number"), ("rows", "number"))
    tasks = options.parse(options.Tasks, config, "config.tasks")
    train, test = load_domains(tasks)
    assert [domain.name for domain in train] == ["rows", "doubling"]
    assert [len(domain.source) for domain in test][1] == 3
    assert train[1].verify("", "2", "2.0") == 1.0
    assert [domain.name for domain in named_domains(tasks)[0]] == ["rows", "doubling"]
    config.file = ""
    tasks = options.parse(options.Tasks, config, "config.tasks")
    with pytest.raises(ValueError, match="names domain 'rows', the domains are doubling"):
        load_domains(tasks)


@pytest.mark.skipif(not INSTALLED, reason="needs the extra reasoning")
def test_real_data_sets_pay_their_own_answers():
    names = ("gcd", "leg_counting", "spell_backward", "basic_arithmetic", "number_sorting")
    train, _ = read(*names, num_train=8, num_test=2)
    try:
        for domain in train:
            for example in domain.source:
                texts = (example.answer, f"<answer>{example.answer}</answer>", "", example.prompt)
                cases = [Case(example.prompt, example.answer, of, example.row) for of in texts]
                rewards = rewards_of(domain.verify, domain.name, cases)
                assert rewards.reward.tolist() == [1, 1, 0, 0], example
    finally:
        close_all()
