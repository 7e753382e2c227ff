import json

import pyarrow
import pyarrow.parquet
import pytest

from fiberjax.tasks import VERIFIERS, CharVocabulary, EncodedExamples, Example, read_file

ROWS = [
    {"prompt": "1+1=", "answer": "2"},
    {"prompt": "2+2=", "answer": "4", "domain": "big", "solution": "4"},
    {"prompt": "1+2=", "answer": "3", "domain": None, "solution": None},
]


def jsonl(path, rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_both_formats_give_the_same_domains(tmp_path, kind):
    path = tmp_path / f"sums.{kind}"
    if kind == "jsonl":
        jsonl(path, ROWS)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROWS[1], ROWS[0], ROWS[2]]), path)
    domains = read_file(path)
    by_name = {d.name: list(d.source) for d in domains}
    assert by_name == {
        "sums": [Example("1+1=", "2", "2", "sums"), Example("1+2=", "3", "3", "sums")],
        "big": [Example("2+2=", "4", "4", "big")],
    }
    assert domains[0].verify("1+1=", "2", " 2 ") == 1.0


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "answer": "b"}\r\n\n  \n')
    assert list(read_file(path)[0].source) == [Example("a", "b", "b", "a")]


def test_gsm8k_and_svamp_rows(tmp_path):
    gsm = jsonl(
        tmp_path / "gsm8k.jsonl",
        [{"question": "48 and half?", "answer": "48/2 = 24\n48+24 = 72\n#### 72"}],
    )
    domain = read_file(gsm, columns={"prompt": "question"}, verifier="numeric")[0]
    example = domain.source[0]
    assert domain.name == "gsm8k" and example.prompt == "48 and half?"
    assert domain.verify(example.prompt, example.answer, example.solution) == 1.0
    assert domain.verify(example.prompt, example.answer, "I think\n#### $72.00") == 1.0
    assert domain.verify(example.prompt, example.answer, "#### 73") == 0.0
    svamp = jsonl(
        tmp_path / "svamp.jsonl",
        [{"Body": "Ann has 3.", "Question": "How many?", "Answer": "3.0", "Equation": "3"}],
    )
    columns = {"prompt": ["Body", "Question"], "answer": "Answer"}
    domain = read_file(svamp, columns=columns, verifier={"svamp": "numeric"})[0]
    assert domain.source[0].prompt == "Ann has 3. How many?"
    assert domain.verify("", domain.source[0].answer, "3") == 1.0


def test_a_tenth_of_the_prompts_is_held_out(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "answer": "x"} for i in range(500)])
    train, test, every = (
        {e.prompt for e in read_file(path, split=split)[0].source}
        for split in ("train", "test", None)
    )
    assert train | test == every and not train & test and 25 < len(test) < 80


GOOD = {"prompt": "p", "answer": "a"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"rows\.jsonl: the file has no rows"),
        (["\n\n"], r"the file has no rows"),
        ([GOOD, {"prompt": "p"}], r"rows\.jsonl, row 2: no answer .looked for answer; the row has"),
        ([GOOD, {"prompt": "p", "answer": None}], r"row 2: no answer"),
        ([{"prompt": "p", "answer": " "}], r"row 1: no answer"),
        ([{"answer": "a"}], r"row 1: no prompt"),
        ([{}], r"row 1: no prompt"),
        (
            [GOOD, "\n", {"prompt": "p", "answer": True}],
            r"row 3: answer is bool True, expected tex",
        ),
        (
            [{"prompt": "p", "answer": {"a": 1}}],
            r"row 1: answer is dict \{'a': 1\}, expected text or",
        ),
        (
            [{"prompt": ["p"], "answer": "a"}],
            r"row 1: prompt, message 1 is str 'p', expected an obj",
        ),
        ([{"prompt": 7, "answer": "a"}], r"row 1: prompt is int 7, expected text"),
        ([{**GOOD, "domain": 1.5}], r"row 1: domain is float 1.5, expected text or a whole number"),
        (
            [{**GOOD, "domain": "a\x1b[2J"}],
            r"row 1: domain is str 'a\\x1b\[2J', expected a name wi",
        ),
        ([{**GOOD, "solution": True}], r"row 1: solution is bool True, expected text"),
        ([GOOD, "{'prompt'}\n"], r"row 2: invalid JSON \(Expecting property name"),
        (["[" * 100_000 + "\n"], r"row 1: invalid JSON"),
        (['{"prompt": ' + "9" * 5000 + "}\n"], r"row 1: invalid JSON"),
        (["[1]\n"], r"row 1: expected an object of named fields, got list \[1\]"),
        (
            [{**GOOD, "solution": "b"}],
            r"row 1: the verifier does not accept the row's own solution",
        ),
    ],
)
def test_bad_rows_are_one_clear_error(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_file(jsonl(tmp_path / "rows.jsonl", rows))


def test_bad_files_are_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.jsonl: no such file"):
        read_file(tmp_path / "missing.jsonl")
    with pytest.raises(
        ValueError, match=r"ends in '\.xls', expected \.jsonl, \.json, \.csv, \.par"
    ):
        read_file(tmp_path / "rows.xls")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"folder\.jsonl: no such file"):
        read_file(tmp_path / "folder.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "answer": "a"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl, row 1: not UTF-8 text"):
        read_file(tmp_path / "latin.jsonl")
    for content in (b"", b"not parquet at all"):
        (tmp_path / "broken.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.parquet: not a readable Parquet file"):
            read_file(tmp_path / "broken.parquet")
    empty = pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(empty, tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty\.parquet: the file has no rows"):
        read_file(tmp_path / "empty.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["p", "q"]}), tmp_path / "half.parquet")
    with pytest.raises(ValueError, match=r"half\.parquet, row 1: no answer"):
        read_file(tmp_path / "half.parquet")


def test_a_prompt_that_does_not_fit_names_its_row_and_length(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [GOOD, "\n", {"prompt": "1234", "answer": "1"}])
    examples = EncodedExamples(read_file(path), CharVocabulary())
    with pytest.raises(
        ValueError, match=r"rows\.jsonl, row 3: the prompt has 5 tokens, .*config.window.prompt = 4"
    ):
        examples.check_prompts(4)
    examples.check_prompts(5)
    path = jsonl(tmp_path / "rows.jsonl", [GOOD, {"prompt": "ü", "answer": "1"}])
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 2: character 'ü' of 'ü' is not in"):
        EncodedExamples(read_file(path), CharVocabulary()).check_prompts(4)


def test_a_solution_must_pass(tmp_path, monkeypatch):
    monkeypatch.setitem(VERIFIERS, "partial", lambda prompt, answer, completion: 0.5)
    path = jsonl(tmp_path / "rows.jsonl", [{**GOOD, "solution": "b"}])
    assert read_file(path, verifier="partial", pass_threshold=0.5)
    with pytest.raises(ValueError, match="does not accept the row's own solution str 'b'"):
        read_file(path, verifier="partial")


def test_bad_options_are_named(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [GOOD])
    with pytest.raises(ValueError, match="unknown verifier 'fuzzy', expected one of exact, number"):
        read_file(path, verifier="fuzzy")
    with pytest.raises(ValueError, match=r"verifier names domain 'x', .*rows\.jsonl has rows"):
        read_file(path, verifier={"x": "exact"})
    with pytest.raises(ValueError, match="columns names 'question', expected one of prompt"):
        read_file(path, columns={"question": "prompt"})
    with pytest.raises(ValueError, match="columns gives no column for 'prompt'"):
        read_file(path, columns={"prompt": ()})
    with pytest.raises(ValueError, match=r"no prompt \(looked for text; the row has prompt, ans"):
        read_file(path, columns={"prompt": "text"})
    with pytest.raises(ValueError, match="split is 'dev'"):
        read_file(path, split="dev")
    with pytest.raises(ValueError, match="none of its 1 rows falls into split 'test'"):
        read_file(path, split="test")
    with pytest.raises(ValueError, match="the answer str 'a' does not name one number"):
        read_file(path, verifier="numeric")
