import re

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiberjax.tasks import CharVocabulary, HFVocabulary
from fiberjax.tasks.vocabulary import DEFAULT_CHARACTERS, prompt_ids


def test_default_vocabulary_is_small_and_round_trips():
    vocabulary = CharVocabulary()
    assert vocabulary.size < 64
    ids = vocabulary.encode(DEFAULT_CHARACTERS)
    assert sorted(ids) == list(range(3, vocabulary.size))
    assert vocabulary.decode(ids) == DEFAULT_CHARACTERS
    assert len({vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id}) == 3


@given(st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 70)))
def test_every_id_before_the_end_decodes_to_a_character(ids):
    vocabulary = CharVocabulary()
    ids = [token for token in ids if token != vocabulary.eos_id]
    text = vocabulary.decode([*ids, vocabulary.eos_id, 3, 4])
    assert len(text) == len(ids)
    assert [3 <= token < vocabulary.size for token in ids] == [c != "\ufffd" for c in text]


def test_decoding_hides_nothing_before_the_end():
    vocabulary = CharVocabulary("ab")
    assert vocabulary.decode([3, 4, 2, 3, 0]) == "ab"
    assert vocabulary.decode([0, 1, 3, 4]) == "\ufffd\ufffdab"
    assert vocabulary.decode([3, 4, 0]) == "ab\ufffd"
    assert vocabulary.decode([3, 0, 4]) == "a\ufffdb"
    assert vocabulary.decode([3, 1, 4, 5, -1]) == "a\ufffdb\ufffd\ufffd"
    assert vocabulary.decode([]) == vocabulary.decode([2, 3]) == ""
    assert vocabulary.decode(np.array([3, 4, 2])) == "ab"


def test_unknown_characters_are_named_with_their_text():
    with pytest.raises(ValueError, match=r"character 'é' of 'café' is not in the vocabulary 'acf'"):
        CharVocabulary("acf").encode("café")
    with pytest.raises(ValueError, match=r"distinct characters, got 'aba' with \['a'\] repeated"):
        CharVocabulary("aba")
    with pytest.raises(ValueError, match="distinct characters, got ''"):
        CharVocabulary("")


@pytest.fixture
def tokenizer_file(tmp_path):
    """Words, with gaps between their ids."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "one": 4, "plus": 9}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<bos>"])  # "<eos>" is a word like the others.
    tokenizer.enable_padding(pad_token="<pad>", length=7)
    tokenizer.enable_truncation(4)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def bytes_file(tmp_path):
    """Bytes, as published byte-level tokenizers have them, with special tokens and one that is not.

    Ids: 0 to 255 the bytes, "7" and "5" among them; 256 and 257 special; 258 `<think>`.
    """
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>"])
    path = tmp_path / "bytes.json"
    tokenizer.save(str(path))
    return path


def test_a_tokenizer_file_stands_in(tokenizer_file):
    vocabulary = HFVocabulary(
        tokenizer_file, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    assert (vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id) == (0, 1, 2)
    # Whole texts, without the padding that the file asks for.
    assert vocabulary.encode("one plus one plus one") == [4, 9, 4, 9, 4]
    assert prompt_ids(vocabulary, "one") == [1, 4]
    assert vocabulary.decode([4, 9, 4, 2, 9]) == "one plus one"
    without = HFVocabulary(tokenizer_file, pad_token="<pad>", eos_token="<eos>")
    assert without.bos_id is None and prompt_ids(without, "one") == [4]


def test_ids_may_have_gaps(tokenizer_file):
    vocabulary = HFVocabulary(tokenizer_file, pad_token="<pad>", eos_token="<eos>")
    assert vocabulary.size == 10
    assert all(token < vocabulary.size for token in vocabulary.encode("plus one"))
    assert vocabulary.decode([4, 5, 9, 10, 10**9, -5]) == "one\ufffdplus\ufffd\ufffd\ufffd"
    assert vocabulary.decode([8, 4]) == "\ufffdone"


def test_special_tokens_that_were_drawn_are_text(tokenizer_file, bytes_file):
    words = HFVocabulary(tokenizer_file, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    assert words.decode([0, 1, 4, 9, 1, 4, 2, 9]) == "<pad> <bos> one plus <bos> one"
    assert words.decode([4, 0]) == "one <pad>"
    vocabulary = HFVocabulary(bytes_file, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    (seven,), (five,) = vocabulary.encode("7"), vocabulary.encode("5")
    pad, eos = vocabulary.pad_id, vocabulary.eos_id
    assert vocabulary.size == 259
    assert vocabulary.decode([seven, pad, five, eos]) == "7<|endoftext|>5"
    assert vocabulary.decode([pad, seven, five, pad]) == "<|endoftext|>75<|endoftext|>"
    assert vocabulary.decode([seven, 258, five]) == "7<think>5"
    assert vocabulary.decode([seven, 259, five]) == "7\ufffd5"


@given(ids=st.lists(st.integers(-3, 300)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_drawn_token_is_lost(bytes_file, ids):
    """Between two digits, anything drawn keeps them apart."""
    vocabulary = HFVocabulary(bytes_file, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    (seven,), (five,) = vocabulary.encode("7"), vocabulary.encode("5")
    ids = [token for token in ids if token != vocabulary.eos_id]
    text = vocabulary.decode([seven, *ids, five])
    assert (text == "75") == (not ids) and text[0] == "7" and text[-1] == "5"


def test_text_that_spells_a_special_token_is_refused(tokenizer_file, bytes_file):
    vocabulary = HFVocabulary(bytes_file, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    for token in ("<|endoftext|>", "<|im_end|>"):
        with pytest.raises(ValueError, match=re.escape(f"'7{token}5' encodes to")) as error:
            vocabulary.encode(f"7{token}5")
        assert f"special token {token!r}" in str(error.value)
    with pytest.raises(ValueError, match="special token"):
        prompt_ids(vocabulary, "<|im_end|>")
    for text in ("7<|im_end|5", "<think>7", "<|endoftext |>", ""):
        assert vocabulary.decode(vocabulary.encode(text)) == text
    words = HFVocabulary(tokenizer_file, pad_token="<pad>", eos_token="plus", bos_token="<bos>")
    # The end of sequence is special whether or not the file says so.
    for text, token in (("one <bos> one", "<bos>"), ("one plus one", "plus")):
        with pytest.raises(ValueError, match=f"{text!r} encodes to the special token {token!r}"):
            words.encode(text)


def test_a_bad_tokenizer_file_is_named(tokenizer_file, tmp_path):
    with pytest.raises(ValueError, match=r"missing\.json' does not exist"):
        HFVocabulary(tmp_path / "missing.json", pad_token="<pad>", eos_token="<eos>")
    with pytest.raises(ValueError, match="no token '<end>'"):
        HFVocabulary(tokenizer_file, pad_token="<pad>", eos_token="<end>")
    with pytest.raises(ValueError, match="they must differ"):
        HFVocabulary(tokenizer_file, pad_token="<eos>", eos_token="<eos>")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json' is not a tokenizer file"):
        HFVocabulary(tmp_path / "broken.json", pad_token="<pad>", eos_token="<eos>")
