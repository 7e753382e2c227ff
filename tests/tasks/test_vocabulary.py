import pytest
import tokenizers
from hypothesis import given
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
def test_every_id_decodes(ids):
    assert isinstance(CharVocabulary().decode(ids), str)


def test_decoding_hides_ends_but_not_holes():
    vocabulary = CharVocabulary("ab")
    assert vocabulary.decode([0, 0, 1, 3, 4, 2, 3, 3]) == "ab"
    assert vocabulary.decode([3, 4, 0, 0]) == "ab"
    assert vocabulary.decode([3, 0, 4]) == "a\ufffdb"
    assert vocabulary.decode([3, 1, 4, 5, -1]) == "a\ufffdb\ufffd\ufffd"
    assert vocabulary.decode([]) == vocabulary.decode([2, 3]) == ""


def test_unknown_characters_are_named_with_their_text():
    with pytest.raises(ValueError, match=r"character 'é' of 'café' is not in the vocabulary 'acf'"):
        CharVocabulary("acf").encode("café")
    with pytest.raises(ValueError, match=r"distinct characters, got 'aba' with \['a'\] repeated"):
        CharVocabulary("aba")
    with pytest.raises(ValueError, match="distinct characters, got ''"):
        CharVocabulary("")


@pytest.fixture
def tokenizer_file(tmp_path):
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "one": 4, "plus": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_a_tokenizer_file_stands_in(tokenizer_file):
    vocabulary = HFVocabulary(
        tokenizer_file, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    assert (vocabulary.size, vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id) == (
        6,
        0,
        1,
        2,
    )
    assert vocabulary.encode("one plus one") == [4, 5, 4]
    assert prompt_ids(vocabulary, "one") == [1, 4]
    assert vocabulary.decode([0, 1, 4, 5, 4, 2, 5]) == "one plus one"
    assert vocabulary.decode([4, 10**9, -5]) == "one"
    without = HFVocabulary(tokenizer_file, pad_token="<pad>", eos_token="<eos>")
    assert without.bos_id is None and prompt_ids(without, "one") == [4]


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
