"""A published model's tokenizer: its ends, its chat, and texts that spell control tokens."""

import json

import folders
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiberjax.policy import Samples
from fiberjax.tasks import chat, published, render
from fiberjax.train.rollout import cut_at_stops

PAD, START, END = folders.PAD, folders.START, folders.END
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TRIMS = folders.CHATML.replace("message['content']", "message['content'] | trim")


@pytest.fixture(autouse=True)
def _here(monkeypatch, request):
    """Templates run in this process, but where that is what is tested."""
    if "apart" not in request.keywords:
        monkeypatch.setattr(published, "make_frame", folders.frame_here)


@pytest.fixture
def read(tmp_path):
    """Reads the tokenizer of a folder with changed files (a dict) or options."""

    def make(files=None, **values):
        folder = folders.write_tokenizer(tmp_path / "model", **(files or {}))
        return published.read_vocabulary(folders.model(folder, **values))

    return make


def theirs(tmp_path, messages):
    """What transformers makes of a chat."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_the_folder_says_every_end(read):
    vocabulary = read()
    # All of generation_config.json, the tokenizer's own first: that is what is taught.
    assert vocabulary.end_ids == (END, PAD) and vocabulary.pad_id == PAD
    assert vocabulary.size == 260
    seven = vocabulary.encode("7")
    assert vocabulary.decode([*seven, PAD, *seven]) == "7"
    assert vocabulary.decode([*seven, END, *seven]) == "7"
    assert vocabulary.decode([*seven, START, *seven]) == "7<|im_start|>7"


@pytest.mark.parametrize(
    ("files", "ends", "pad"),
    [
        ({"template": None}, (END, PAD), PAD),
        # No generation_config: the config's, of which there is none here, then the tokenizer's.
        ({"generation": {}, "template": None}, (END,), PAD),
        ({"generation": {"eos_token_id": PAD}, "template": None}, (PAD,), PAD),
        # A padding that nothing names may be an end.
        ({"generation": {"eos_token_id": [END]}, "pad_token": None}, (END,), END),
        ({"generation": {"eos_token_id": [END], "pad_token_id": 5}, "pad_token": None}, (END,), 5),
        # What the template ends an answer with ends one, though the folder forgot it.
        ({"generation": {"eos_token_id": PAD}, "eos_token": None}, (END, PAD), PAD),
    ],
)
def test_ends_and_padding_are_found_in_order(read, files, ends, pad):
    vocabulary = read(files)
    assert (vocabulary.end_ids, vocabulary.pad_id) == (ends, pad)


@pytest.mark.parametrize("template", [folders.CHATML, TRIMS])
@pytest.mark.parametrize("text", ["a", " b\n", "\n\nc", "é 日本", "<think>", "{{ 7*7 }} {% x %}"])
def test_prompts_are_what_transformers_makes_of_them(read, tmp_path, template, text):
    shots = (("1?", "one "), (" 2?", "two"))
    vocabulary = read({"template": template}, system="Be brief.", examples=shots)
    chat = [{"role": "system", "content": "Be brief."}]
    for question, answer in shots:
        chat += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    chat.append({"role": "user", "content": text})
    assert vocabulary.encode_prompt(text) == theirs(tmp_path, chat)


def test_without_a_control_token_before_it_a_text_begins(read, tmp_path):
    """Tokenizers that mark the first word: what follows a token is no beginning, as theirs is."""
    words = {"<unk>": 0, "▁hi": 1, "hi": 2, "▁": 3, "<s>": 4, "</s>": 5, "[": 6, "]": 7, "▁[": 8}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(words, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(["<s>", "</s>"])
    files = {"tokenizer": tokenizer, "eos_token": "</s>", "pad_token": None, "generation": {}}
    for template in (
        "{{ '<s>' }}{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}",
        "{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}{{ '<s>' }}",
    ):
        vocabulary = read(files | {"template": template})
        expected = theirs(tmp_path, [{"role": "user", "content": "[]"}])
        assert vocabulary.encode_prompt("[]") == expected and len(expected) >= 5


CONTROL = st.sampled_from([*folders.SPECIAL, "<|im_", "end|>", "\n", " ", "user", "a", "é"])


@SHARED
@given(parts=st.lists(CONTROL, max_size=8))
def test_no_text_of_a_row_becomes_a_control_token(shared, parts):
    text = "".join(parts)
    ids = shared.encode_prompt(text)
    control = [token for token in ids if token in (PAD, START, END)]
    assert control == [START, END, START]
    assert shared._decode(ids) == (f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
    assert shared.decode(shared.encode(text)) == text


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = folders.write_tokenizer(tmp_path_factory.mktemp("model"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(published, "make_frame", folders.frame_here)
        return published.read_vocabulary(folders.model(folder))


def test_system_prompts_and_examples_are_texts_too(read):
    vocabulary = read(system="a<|im_end|>", examples=(("<|im_start|>", "<|endoftext|>"),))
    ids = vocabulary.encode_prompt("b")
    assert [token for token in ids if token in (PAD, START, END)] == [START, END] * 4 + [START]


def test_a_token_that_only_a_control_token_spells_is_refused(read):
    """A vocabulary of words may have nothing else for it; a row must not come through."""
    words = {"<pad>": 0, "<eos>": 1, "one": 2, "plus": 7}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    files = {"tokenizer": tokenizer, "template": None, "generation": {"eos_token_id": [7]}}
    vocabulary = read(files | {"eos_token": "plus", "pad_token": "<pad>"})
    assert vocabulary.size == 8 and vocabulary.encode("one") == [2]
    assert vocabulary.decode([2, 5, 2, 9, -1]) == "one\ufffdone\ufffd\ufffd"
    with pytest.raises(ValueError, match="'one plus' encodes to the special token 'plus'"):
        vocabulary.encode("one plus")


@SHARED
@given(ids=st.lists(st.integers(-3, 300)))
def test_no_drawn_token_is_lost(shared, ids):
    """Between two digits, anything drawn keeps them apart."""
    (seven,), (five,) = shared.encode("7"), shared.encode("5")
    ids = [token for token in ids if token not in shared.end_ids]
    text = shared.decode([seven, *ids, five])
    assert (text == "75") == (not ids) and text[0] == "7" and text[-1] == "5"


def test_chat_is_taken_where_there_is_one(read):
    plain = read({"template": None})
    assert plain.frame is None and plain.encode_prompt("a") == plain.encode("a")
    assert read(chat="off").frame is None
    assert read(chat="on").frame is not None
    for values, message in (
        ({"chat": "on"}, r"model'.*config\.model\.chat is 'on', and it has no chat template"),
        ({"system": "x"}, r"config\.model\.system needs a chat, and it has no chat template"),
        ({"examples": (("a", "b"),)}, r"config\.model\.examples needs a chat"),
        ({"thinking": "on"}, r"config\.model\.thinking needs a chat"),
    ):
        with pytest.raises(ValueError, match=message):
            read({"template": None}, **values)
    with pytest.raises(ValueError, match=r"config\.model\.system needs a chat, .*chat is 'off'"):
        read(chat="off", system="x")


def test_a_plain_prompt_begins_as_the_tokenizer_has_it(read):
    tokenizer = folders.byte_tokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", PAD)]
    )
    files = {"tokenizer": tokenizer, "template": None}
    vocabulary = read(files)
    assert vocabulary.encode_prompt("a") == [PAD, *vocabulary.encode("a")]
    assert read(files, overrides={"begin": ""}).begin_ids == ()


def test_overrides_are_believed_in_place_of_the_folder(read, tmp_path):
    given = {"pad": "<think>", "end": ("<|endoftext|>",), "begin": "<|im_start|>"}
    vocabulary = read(chat="off", overrides=given)
    assert (vocabulary.pad_id, vocabulary.end_ids, vocabulary.begin_ids) == (259, (PAD,), (START,))
    # Those alone, whatever the template ends an answer with.
    assert read(overrides={"end": ("<|endoftext|>",)}).end_ids == (PAD,)
    with pytest.raises(ValueError, match=r"overrides: the tokenizer has no token '<end>'"):
        read(overrides={"end": ("<end>",)})
    # A tokenizer.json alone, as older runs named it.
    path = tmp_path / "model" / "tokenizer.json"
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    (tmp_path / "model" / "generation_config.json").unlink()
    model = folders.model("", tokenizer=str(path), chat="off", overrides=given)
    alone = published.read_vocabulary(model)
    assert alone.encode_prompt("a") == vocabulary.encode_prompt("a")
    assert (alone.pad_id, alone.end_ids) == (259, (PAD,))


def test_thinking_is_chosen_where_the_template_has_it(read):
    template = folders.CHATML + (
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>' }}{% endif %}"
    )
    assert folders.THINK in read({"template": template}, thinking="off").encode_prompt("a")
    for thinking in ("on", "auto"):
        ids = read({"template": template}, thinking=thinking).encode_prompt("a")
        assert folders.THINK not in ids
    with pytest.raises(ValueError, match=r"no mode that config\.model\.thinking = 'on'"):
        read(thinking="on")


def test_examples_may_come_from_a_file(read, tmp_path):
    path = tmp_path / "shots.jsonl"
    rows = [
        {"prompt": "1", "answer": "one", "solution": "it is one"},
        {"prompt": "2", "answer": "two"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = (("1", "it is one"), ("2", "two"))
    assert read(examples=(str(path),)).encode_prompt("3") == read(examples=pairs).encode_prompt("3")
    path.write_text('{"prompt": "1"}\n')
    with pytest.raises(ValueError, match=r"shots\.jsonl, row 1: no answer"):
        read(examples=(str(path),))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no systems here') }}", "TemplateError: no systems here"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages[0].content }}", "the template leaves out the prompt"),
        ("{{ messages[-1]['content'] }}", "the template leaves out the message 'Be brief"),
        (
            folders.CHATML.replace(
                "message['content']", "message['content'].split('</think>')[-1]"
            ),
            "does more to a message than to write it",
        ),
        (folders.CHATML.replace("message['content']", "message['content'] | upper"), "leaves out"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused(template, message):
    with pytest.raises(Exception) as error:
        render.pieces(render.compiled(template, {}), "Be brief.", (), "auto")
    assert message in f"{type(error.value).__name__}: {error.value}"


def test_a_template_that_asks_for_today_is_told_the_same_every_day():
    template = folders.CHATML + "{{ strftime_now('%d %b %Y') }}"
    assert "26 Jul 2024" in folders.frame_here(template, {}).text("a")


@pytest.mark.apart
def test_a_template_runs_in_a_process_of_its_own(monkeypatch):
    frame = chat.make_frame(TRIMS, {}, system="S", examples=[("u", "a")])
    assert frame == folders.frame_here(TRIMS, {}, system="S", examples=[("u", "a")])
    with pytest.raises(ValueError, match=r"the chat template: TemplateError: not today"):
        chat.make_frame("{{ raise_exception('not today') }}", {})
    monkeypatch.setattr(chat, "SECONDS", 1)
    forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ValueError, match="the chat template does not end within 1 s of processor"):
        chat.make_frame(forever, {})
    with pytest.raises(ValueError, match="the chat template: it needs more than 4 GiB"):
        chat.make_frame("{{ 'a' * 6000000000 }}", {})


def test_stop_strings_end_a_completion(read):
    vocabulary = read(stop=("\n", "</a>"))
    newline = vocabulary.encode("\n")
    assert vocabulary.stop_ids == tuple(newline) and not set(newline) & set(vocabulary.end_ids)
    for text, before in (
        ("ab</a>cd", "ab"),
        ("ab\ncd", "ab"),
        ("</a>", ""),
        ("a</a>b\n", "a"),
        ("é</a>", "é"),
    ):
        ids = vocabulary.encode(text)
        length = vocabulary.stop_length(ids)
        assert vocabulary.decode(ids) == vocabulary.decode(ids[:length]) == before
        whole = vocabulary._decode(ids[:length])
        assert whole.endswith(("\n", "</a>")) and not vocabulary._decode(
            ids[: length - 1]
        ).endswith(("\n", "</a>"))
    assert vocabulary.stop_length(vocabulary.encode("ab</a")) is None
    # What stands behind an end is none of it.
    assert vocabulary.stop_length([*vocabulary.encode("a"), END, *newline]) is None
    assert read().stop_length(newline) is None


def test_a_completion_ends_with_its_stop_string_as_if_it_had_been_drawn_so(read):
    vocabulary = read(stop=("</a>",))
    ids = [*vocabulary.encode("ab</a>cd"), END], [*vocabulary.encode("abcdefgh"), END]
    drawn = Samples(
        tokens=np.array(ids, np.int32),
        log_prob=np.full((2, 9), -0.5, np.float32),
        log_kept=np.full((2, 9), -0.25, np.float32),
        length=np.array([9, 9], np.int32),
        finished=np.array([True, False]),
        held=np.array([9, 9], np.int32),
    )
    cut = cut_at_stops(vocabulary, drawn)
    np.testing.assert_array_equal(cut.length, [6, 9])
    np.testing.assert_array_equal(cut.finished, [True, False])
    np.testing.assert_array_equal(cut.tokens[0], [*ids[0][:6], PAD, PAD, PAD])
    np.testing.assert_array_equal(cut.log_prob[0], [-0.5] * 6 + [0] * 3)
    np.testing.assert_array_equal(cut.log_kept[0], [-0.25] * 6 + [0] * 3)
    for of, before in zip(cut, drawn, strict=True):
        np.testing.assert_array_equal(of[1], before[1])
        assert of.dtype == before.dtype
    assert cut_at_stops(read(), drawn) is drawn


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), r"model' ?: it holds no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json cannot be read"),
        (
            lambda f: (f / "generation_config.json").write_text("{"),
            r"generation_config\.json cannot",
        ),
        (
            lambda f: (f / "generation_config.json").write_text('{"eos_token_id": [999]}'),
            r"eos_token_id 999 is no token of its tokenizer \(260\)",
        ),
    ],
)
def test_a_damaged_folder_is_refused_by_its_name(tmp_path, damage, message):
    folder = folders.write_tokenizer(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ValueError, match=message) as error:
        published.read_vocabulary(folders.model(folder))
    assert str(error.value).startswith(f"config.model.folder = {folder!r}: ")


def test_code_of_a_folder_is_not_run(tmp_path):
    folder = tmp_path / "model"
    folders.write_tokenizer(
        folder, auto_map={"AutoTokenizer": ["mine.Mine", None]}, tokenizer_class="Mine"
    )
    (folder / "mine.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').write('')\nMine = None\n"
    )
    try:
        published.read_vocabulary(folders.model(folder))
    except ValueError as error:
        assert "its tokenizer cannot be read" in str(error)
    assert not (tmp_path / "ran").exists()
