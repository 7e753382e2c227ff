import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiberjax.tasks import CharVocabulary
from fiberjax.tasks.vocabulary import DEFAULT_CHARACTERS


def test_default_vocabulary_is_small_and_round_trips():
    vocabulary = CharVocabulary()
    assert vocabulary.size < 64
    ids = vocabulary.encode(DEFAULT_CHARACTERS)
    assert sorted(ids) == list(range(3, vocabulary.size))
    assert vocabulary.decode(ids) == DEFAULT_CHARACTERS
    assert vocabulary.encode_prompt("12") == [vocabulary.bos_id, *vocabulary.encode("12")]
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
