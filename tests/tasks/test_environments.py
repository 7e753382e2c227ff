"""Who answers between turns: what a calculator reads, what a reply becomes, what is taught."""

import re
import time
from pathlib import Path

import folders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberjax import options, plugins
from fiberjax.tasks import CharVocabulary, Domain, EncodedExamples, make_family, published
from fiberjax.tasks.environments import (
    SEPARATOR,
    Apart,
    Turns,
    calculator,
    environments_of,
    make_turns,
    solved,
)
from fiberjax.tasks.examples import Example, example_rng
from fiberjax.tasks.rewards import Limits, Target, close_all, workers
from fiberjax.tasks.rewards.base import Failed
from fiberjax.tasks.supervised import supervised_batches

VOCABULARY = CharVocabulary()
TURNS = Turns(calculator, limit=2, reply=8)
BOS, EOS = VOCABULARY.bos_id, VOCABULARY.eos_id
EXAMPLE = Example("calc:12*7=", "84", f"<calc>12*7</calc>{SEPARATOR}84", "calculation")


@pytest.mark.parametrize(
    ("turn", "reply"),
    [
        ("<calc>12*7</calc>", "84"),
        ("First <calc>1+1</calc>, then <calc> 2 \N{MULTIPLICATION SIGN} 3 </calc>.", "6"),
        ("<calc>7\N{MINUS SIGN}9</calc>", "-2"),
        ("<calc>(1+2)/4</calc>", "3/4"),
        ("<calc>1/0</calc>", "error"),
        ("<calc>__import__('os')</calc>", "error"),
        ("<calc>9**9**9</calc>", "error"),
        ("<calc></calc>", "error"),
        ("<calc>1+1", None),
        ("1+1</calc>", None),
        ("<calc><calc>1+1</calc>", "2"),
        ("84", None),
        ("", None),
    ],
)
def test_the_calculator_answers_what_it_is_asked(turn, reply):
    assert calculator(EXAMPLE, [turn]) == reply
    assert calculator(EXAMPLE, ["<calc>5</calc>", "5", turn]) == reply


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="<calc>/0123456789+-*() \x00é"))
def test_the_calculator_is_total_and_short(text):
    for turn in (text, f"<calc>{text}</calc>", "<calc>" + "9*" * 60 + "9</calc>"):
        reply = calculator(EXAMPLE, [turn])
        assert reply is None or len(reply) < 200


def test_solutions_call_as_often_as_asked():
    for calls, few, many in ((0.0, 0, 0), (0.5, 30, 70), (1.0, 100, 100)):
        family = make_family("calculation", {"calls": calls})
        drawn = [family.generate(example_rng(0, family.name, k)) for k in range(100)]
        called = [of for of in drawn if SEPARATOR in of.solution]
        assert few <= len(called) <= many
        for of in called:
            first, last = of.solution.split(SEPARATOR)
            assert calculator(of, [first]) == last == of.answer
            assert family.verify(of.prompt, of.answer, last) == 1.0
            assert family.verify(of.prompt, of.answer, first) == 0.0
            assert family.verify(of.prompt, of.answer, of.solution) == 1.0


def test_a_reply_stands_between_begins_and_loses_what_has_no_place():
    encode = VOCABULARY.encode
    assert TURNS.encode_reply(VOCABULARY, "84", EOS) == ([BOS, *encode("84"), BOS], True)
    assert TURNS.encode_reply(VOCABULARY, "", EOS) == ([BOS, BOS], True)
    # Too long by its end, and what is not in the vocabulary anywhere.
    assert TURNS.encode_reply(VOCABULARY, "1234567", EOS) == ([BOS, *encode("123456"), BOS], False)
    assert TURNS.encode_reply(VOCABULARY, "8\x1b\ud8004Z", EOS) == (
        [BOS, *encode("84"), BOS],
        False,
    )


def test_verifiers_read_the_last_turn_or_all():
    said = ["<calc>12*7</calc>", "84", "84"]
    assert TURNS.text(said) == "84" and TURNS.text([]) == ""
    assert Turns(calculator, 2, 8, read="all").text(said) == SEPARATOR.join(said)


def test_a_solution_is_taught_with_the_replies_and_without_their_loss():
    ids, own = solved(VOCABULARY, TURNS, EXAMPLE)
    first, last = (VOCABULARY.encode(text) for text in EXAMPLE.solution.split(SEPARATOR))
    reply = [BOS, *VOCABULARY.encode("84"), BOS]
    assert ids == [*first, EOS, *reply, *last]
    assert own == [True] * (len(first) + 1) + [False] * len(reply) + [True] * len(last)
    for turns in (Turns(), Turns(lambda example, said: None, 2, 8)):
        with pytest.raises(ValueError, match=r"the solution goes on after '<calc>12\*7</calc>'"):
            solved(VOCABULARY, turns, EXAMPLE)


@pytest.mark.parametrize("flawed", [0.0, 1.0])
def test_the_warm_start_never_teaches_what_others_say(flawed):
    domain = Domain("calculation", (EXAMPLE,), lambda *of: 1.0)
    examples = EncodedExamples((domain,), VOCABULARY, TURNS)
    batches = supervised_batches(
        examples, batch_size=4, max_prompt_tokens=16, max_completion_tokens=28, flawed=flawed
    )
    for _ in range(3):
        batch = next(batches)
        assert batch.tokens.shape == (4, 44)
        for row, taught, kind in zip(batch.tokens, batch.loss_mask, batch.segment_ids, strict=True):
            row, taught = row[kind == 1], taught[kind == 1]
            at = np.flatnonzero(row == BOS)[1:]  # The prompt begins with one too.
            assert VOCABULARY.decode(row[at[0] + 1 : at[1]]) == "84"
            expected = np.ones(len(row), bool)
            expected[: len(examples.prompts[0])] = expected[at[0] : at[1] + 1] = False
            np.testing.assert_array_equal(taught, expected)
            assert (row[expected] == EOS).sum() == 2
            assert (VOCABULARY.decode(row[at[1] + 1 :]) == "84") or flawed
    plain = EncodedExamples((domain,), VOCABULARY, Turns(lambda example, said: "85", 2, 8))
    assert plain.digest() != examples.digest()


def test_a_chat_ends_the_turn_and_begins_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "make_frame", folders.frame_here)
    folder = folders.write_tokenizer(tmp_path / "model")
    vocabulary = published.read_vocabulary(folders.model(folder, system="Be brief."))
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "12*7?"}]
    before = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert vocabulary.encode_prompt("12*7?") == before
    turn = [*vocabulary.encode("Let me ask."), folders.END]
    for role, text in (("user", "84 é<|im_end|>"), ("tool", "")):
        answered = [
            {"role": "assistant", "content": "Let me ask."},
            {"role": role, "content": text},
        ]
        whole = theirs.apply_chat_template(chat + answered[:1])["input_ids"]
        assert whole[: len(before) + len(turn)] == before + turn
        turns = Turns(calculator, 2, reply=99, role=role)
        ids, held = turns.encode_reply(vocabulary, text, turn[-1])
        assert held and folders.END not in ids[:1]
        assert vocabulary.decode_reply(ids, role) == text
        if folders.SPECIAL[2] not in text:  # Theirs would obey it.
            whole = theirs.apply_chat_template(chat + answered, add_generation_prompt=True)
            assert before + turn + ids == whole["input_ids"]
        # A turn that ended otherwise is ended first.
        assert turns.encode_reply(vocabulary, text, folders.PAD)[0] == [folders.END, *ids]
    # Cut within its text, never within what stands around it.
    ids, held = Turns(calculator, 2, reply=len(ids) + 3).encode_reply(vocabulary, "12345", turn[-1])
    assert not held and vocabulary.decode_reply(ids) == "123"


def test_without_a_chat_a_reply_is_its_text(tmp_path):
    folder = folders.write_tokenizer(tmp_path / "model", template=None)
    vocabulary = published.read_vocabulary(folders.model(folder))
    assert vocabulary.encode_reply("84") == vocabulary.encode("84")
    assert vocabulary.encode_reply("") == [] and vocabulary.decode_reply([]) == ""


OWN = str(Path(__file__).with_name("own_environments.py"))
ASKED = Example("p", "a", "a", "d", row={"kept": "k"})


def apart(name="bad", **limits):
    limits = {"seconds": 0.3, "megabytes": 256.0, "workers": 1} | limits
    return Apart(name, Target("own_environments", OWN, name, "ENVIRONMENTS"), Limits(**limits))


@pytest.fixture(scope="module")
def bad():
    yield apart()
    close_all()


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ("hang", r"took more than 0\.3 s of processor time"),
        ("bomb", r"needed more than 256 MB"),
        ("die", r"its process was ended by SIGABRT"),
        ("leave", r"SystemExit: 3"),
        ("number", r"ValueError: replied 5, expected a text or None"),
        ("long", r"ValueError: replied 100001 characters, expected at most 100000"),
    ],
)
def test_what_an_environment_does_wrong_is_the_end_of_one_episode(bad, turn, why):
    said = [(ASKED, (text,)) for text in ("good", turn, "over", "good")]
    first, failed, over, last = Turns(bad, 2, 8).replies(said)
    assert first == last == "pk1" and over is None
    assert isinstance(failed, Failed) and re.search(why, failed.why)
    assert bad.trouble == failed.why
    with pytest.raises(ValueError, match="the environment bad failed: "):
        bad(ASKED, (turn,))


def test_an_environment_that_sleeps_is_killed(monkeypatch):
    monkeypatch.setattr(workers, "SLACK", 1)
    environment = apart(seconds=0.05)
    environment.load()
    began = time.monotonic()
    (reply,) = environment.many([(ASKED, ("sleep",))])
    assert "waiting" in reply.why and time.monotonic() - began < 30
    close_all()


def test_a_failing_environment_may_stop_the_run():
    turns = Turns(apart(stops=True), 2, 8)
    message = (
        r"environment bad failed in domain 'd' for the prompt 'p' and the turn 'leave': .*Exit"
    )
    with pytest.raises(ValueError, match=message):
        turns.replies([(ASKED, ("good",)), (ASKED, ("leave",))])
    close_all()


def test_environments_of_plugins_run_in_workers():
    (plugin,) = plugins.load_all((OWN,))
    found = environments_of({"calculator": calculator}, (plugin,), Limits(workers=1))
    assert found["calculator"] is calculator
    assert found["bad"](ASKED, ("good", "reply", "good")) == "pk3"
    with pytest.raises(
        ValueError, match=r"environment one cannot be loaded: .*takes \(example\), e"
    ):
        make_turns(options.Turns("one", 2, 8, "user", "last"), 28, VOCABULARY, found)
    close_all()
