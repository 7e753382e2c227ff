"""Answers are verified against themselves before training."""

import pytest

from fiberjax.tasks import VERIFIERS, Domain, Example, golds, read_file
from fiberjax.tasks.golds import check_golds
from fiberjax.tasks.rewards import Isolated, Limits, Target, close_all


def domain(verify, answers, solution=None):
    rows = tuple(
        Example(f"{n}?", answer, solution or answer, "sums", where=f"a.jsonl, row {n + 1}")
        for n, answer in enumerate(answers)
    )
    return Domain("sums", rows, verify)


def looked_at(*arguments, **options):
    told = []
    check_golds([domain(*arguments)], 1.0, told.append, **options)
    return told


def boxed(prompt, answer, completion):
    return float(completion == f"\\boxed{{{answer}}}")


@pytest.mark.parametrize("verify", [VERIFIERS["number"], VERIFIERS["exact"], boxed])
def test_answers_that_pay_themselves_in_some_form_go_by(verify):
    assert looked_at(verify, ["1", "2", "{3}"[1:2]]) == []


def test_a_domain_of_answers_in_another_form_is_refused_with_counts_and_the_first_row():
    def odd(prompt, answer, completion):
        return float(answer == completion == "1")

    with pytest.raises(ValueError, match=r"'sums': 2 of 3 answers .*l, row 2: str '2' earns 0"):
        looked_at(odd, ["1", "2", "3"])
    (told,) = looked_at(odd, ["1", "2", "3"], refuse=False)
    assert "2 of 3" in told
    (told,) = looked_at(odd, ["1", "2", "1"])
    assert "1 of 3" in told and "expected" not in told


def test_a_penalty_for_what_is_wrong_is_a_reward_too():
    assert "no answer reaches" in looked_at(lambda p, a, c: float(a == c) - 1.0, ["1"])[0]
    assert looked_at(lambda p, a, c: 2.0 * (a == c) - 1.0, ["1"]) == []
    with pytest.raises(ValueError, match="1 of 1 answers"):
        looked_at(lambda p, a, c: 0.5, ["1"])


def test_of_a_verifier_in_workers_a_sample_is_looked_at(monkeypatch):
    asked = []

    class Spied(Isolated):
        def many(self, cases):
            asked.extend(cases)
            return [float(case.completion == case.answer) for case in cases]

    verify = Spied("spied", Target("nowhere", "", "spied"))
    monkeypatch.setattr(golds, "SAMPLE", 5)
    assert looked_at(verify, [str(n) for n in range(100)]) == []
    prompts = dict.fromkeys(case.prompt for case in asked)
    assert list(prompts) == ["0?", "24?", "49?", "74?", "99?"]
    with pytest.raises(ValueError, match=r"row 1: the verifier does not accept the row's own"):
        looked_at(verify, ["1"], "no")


def test_why_a_reward_fails_on_the_answers_is_told(tmp_path):
    file = tmp_path / "raising.py"
    file.write_text("def f(prompt, answer, completion):\n    return 1 / 0\n")
    verify = Isolated("raising:f", Target("raising", str(file), "f"), Limits(workers=1))
    with pytest.raises(ValueError, match=r"it failed: .*raising\.py, line 2: ZeroDivisionError"):
        looked_at(verify, ["1"])
    close_all()


@pytest.mark.parametrize("answer", ["", "a long sentence that tells how", "x}", "1\n2"])
def test_an_answer_that_is_no_expression_is_refused_by_its_row(tmp_path, answer):
    pytest.importorskip("math_verify")
    (tmp_path / "a.jsonl").write_text(
        f'{{"prompt": "a", "answer": "x+1"}}\n{{"prompt": "b", "answer": {answer!r}}}\n'.replace(
            "'", '"'
        )
    )
    with pytest.raises(ValueError, match=r"a\.jsonl, row 2"):
        read_file(tmp_path / "a.jsonl", verifier="math")
