"""Data as people have it: every format, layout and case is read rightly or refused by its row."""

import decimal
import gzip
import json

import pyarrow
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
import pytest

from fiberjax.tasks import (
    LAYOUTS,
    VERIFIERS,
    CharVocabulary,
    Domain,
    EncodedExamples,
    Example,
    prompt_batch,
    read_file,
    reward_completions,
)
from fiberjax.tasks.files import Reader, read_pairs
from fiberjax.tasks.fitting import check_answers, fit_prompts

DAPO = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "Solve: 2+2. Answer on last line."}],
    "reward_model": {"ground_truth": "4", "style": "rule"},
    "extra_info": {"index": "a1"},
}
CHAT = [{"role": "system", "content": "Be short"}, {"role": "user", "content": "2+2"}]
ROWS = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]
TEXTS = [("a", "b"), ("c", "d")]


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def arrow(path, rows):
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    return path


def written(path, rows):
    """Writes rows in the format that the name says."""
    name = path.name.removesuffix(".gz")
    plain = path.with_name(name)
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
    elif name.endswith(".arrow"):
        arrow(plain, rows)
    elif name.endswith(".csv"):
        pyarrow.csv.write_csv(pyarrow.Table.from_pylist(rows), plain)
    elif name.endswith(".json"):
        plain.write_text(json.dumps(rows, indent=1))
    else:
        jsonl(plain, rows)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def rows_of(domains):
    return [example for domain in domains for example in domain.source]


def texts(domains):
    return [(example.prompt, example.answer) for example in rows_of(domains)]


KINDS = ("jsonl", "json", "csv", "parquet", "arrow")


@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind}.gz" for kind in KINDS)])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    domains = read_file(written(tmp_path / f"sums.{kind}", ROWS))
    assert texts(domains) == TEXTS and [domain.name for domain in domains] == ["sums"]
    assert rows_of(domains)[1].where == f"{tmp_path}/sums.{kind}, row 2"


def test_an_arrow_file_and_lines_called_json_are_read_too(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(tmp_path / "file.arrow", table.schema) as file:
        file.write_table(table)
    assert texts(read_file(tmp_path / "file.arrow")) == TEXTS
    assert texts(read_file(jsonl(tmp_path / "lines.json", ROWS))) == TEXTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,answer\na,b,c\n", r"row 1: 3 cells, the header has 2"),
        (b"prompt,prompt\na,b\n", r"the header has 'prompt', expected distinct"),
        (b",,prompt,answer\n0,0,a,b\n", r"the header has '', expected distinct"),
        (b"prompt,answer\na,\n", r"row 1: no answer"),
        (b"prompt,answer\na,caf\xe9\n", r"not UTF-8"),
        (b'prompt,answer\na,"b\n', r"row 1: invalid CSV"),
    ],
)
def test_a_bad_csv_is_one_clear_error(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / "a.csv")


def test_a_csv_as_pandas_writes_it(tmp_path):
    """With the index first, a chat as Python writes it, and cells of any length."""
    long = "a" * 200_000
    cell = str(CHAT).replace('"', '""')
    (tmp_path / "a.csv").write_text(f',prompt,answer\n0,"{cell}",4\n1,{long},5\n')
    chat, text = rows_of(read_file(tmp_path / "a.csv"))
    assert chat.messages == (("system", "Be short"), ("user", "2+2")) and text.prompt == long


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]",
        "[{'role': 'user', 'content': " + "[" * 9999 + "}]",
        "[{'role': 'user', 'content': " + "-" * 99999 + "1}]",
        "[{'role': 'user', 'content': '" + "a" * 2**21 + "'}]",
        "[{'role': 'user', 'content': open('a')}]",
    ],
    ids=["array", "brackets", "minus", "long", "call"],
)
def test_a_chat_of_python_that_cannot_be_read_is_refused(tmp_path, text):
    path = jsonl(tmp_path / "m.jsonl", [{"prompt": text, "answer": "4"}])
    with pytest.raises(ValueError, match=r"row 1: prompt is str .* expected JSON$"):
        read_file(path)


def test_one_object_over_several_lines_is_told_what_was_expected(tmp_path):
    for name, expected in (("a.json", "an array, or one object"), ("a.jsonl", "one object")):
        (tmp_path / name).write_text(json.dumps(ROWS[0], indent=2))
        with pytest.raises(ValueError, match=rf"row 1: .*, expected {expected} a line$"):
            read_file(tmp_path / name)


def test_csv_cells_are_texts(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,answer\n"a, ""b""\nc",007\n')
    assert texts(read_file(tmp_path / "a.csv")) == [('a, "b"\nc', "007")]


def test_a_damaged_file_is_refused_by_its_name(tmp_path):
    whole = written(tmp_path / "a.jsonl.gz", ROWS).read_bytes()
    for name, content in (
        ("cut.jsonl.gz", whole[:-9]),
        ("plain.jsonl.gz", b"{}"),
        ("cut.arrow", arrow(tmp_path / "a.arrow", ROWS).read_bytes()[:100]),
        ("cut.parquet", written(tmp_path / "a.parquet", ROWS).read_bytes()[:100]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: not a readable \w+ file"):
            read_file(tmp_path / name)


# What a column may hold, and what it is read as; None where it is refused.
@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (4, ("4",)),
        (0.5, ("0.5",)),
        (145.0, ("145",)),
        (-0.0, ("0",)),
        (1e21, ("1000000000000000000000",)),
        (["4", "four"], ("4", "four")),
        ([4, "4", 0.25], ("4", "0.25")),
        (True, None),
        ([], None),
        (["4", None], None),
        (["4", " "], None),
        ({"value": 4}, None),
    ],
)
def test_answers_are_texts_numbers_or_lists_of_them(tmp_path, answer, accepted):
    for kind in ("jsonl", "parquet"):
        if kind == "parquet" and isinstance(answer, list) and len({*map(type, answer)}) > 1:
            continue  # No column of a table.
        path = written(tmp_path / f"a.{kind}", [{"prompt": "p", "answer": answer}])
        if accepted is None:
            with pytest.raises(ValueError, match=r"row 1: (no )?answer"):
                read_file(path)
        else:
            (example,) = rows_of(read_file(path))
            assert example.answers == accepted and example.answer == accepted[0]


@pytest.mark.parametrize(
    ("of", "value", "text"),
    [
        (pyarrow.float16(), 0.1, "0.1"),
        (pyarrow.float32(), 0.1, "0.1"),
        (pyarrow.float64(), 0.1, "0.1"),
        (pyarrow.list_(pyarrow.float32()), [0.1], "0.1"),
        (pyarrow.float32(), 16777216.0, "16777216"),
        (pyarrow.decimal128(5, 2), decimal.Decimal("1.50"), "1.5"),
    ],
)
def test_floats_of_tables_are_their_shortest_text(tmp_path, of, value, text):
    table = pyarrow.table({"prompt": ["p"], "answer": pyarrow.array([value], of)})
    pyarrow.parquet.write_table(table, tmp_path / "f.parquet")
    (example,) = rows_of(read_file(tmp_path / "f.parquet"))
    assert example.answer == text


def test_floats_of_dictionaries_and_maps_are_their_shortest_text(tmp_path):
    narrow = pyarrow.array([0.1], pyarrow.float32())
    pairs = pyarrow.map_(pyarrow.string(), pyarrow.list_(pyarrow.float32()))
    table = pyarrow.table(
        {
            "prompt": ["p"],
            "answer": narrow.dictionary_encode(),
            "keys": pyarrow.array([[("a", [0.1])]], pairs),
        }
    )
    with pyarrow.ipc.new_file(tmp_path / "f.arrow", table.schema) as file:
        file.write_table(table)
    (domain,) = Reader(row=("keys",)).read(tmp_path / "f.arrow")
    (example,) = domain.source
    assert example.answer == "0.1" and example.row["keys"] == [("a", [0.1])]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(tmp_path, text):
    path = jsonl(tmp_path / "a.jsonl", ['{"prompt": "p", "answer": ' + text + "}"])
    with pytest.raises(ValueError, match=r"row 1: answer is float -?(nan|inf), expected text or a"):
        read_file(path)


@pytest.mark.parametrize("field", ["prompt", "answer", "domain", "solution"])
def test_half_a_surrogate_pair_is_refused(tmp_path, field):
    row = {"prompt": "p", "answer": "a", field: "x\ud800y"}
    path = jsonl(tmp_path / "a.jsonl", [ROWS[0], row])
    with pytest.raises(ValueError, match=rf"row 2: {field} is str 'x\\ud800y', whose character 2"):
        read_file(path)


def test_several_accepted_answers_pay_the_best_of_them(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "12", "answer": ["4", "22"]}])
    domains = read_file(path)
    batch = prompt_batch(EncodedExamples(domains, CharVocabulary()), [0], 4)
    rewards = reward_completions(domains, batch, ["22", "4", "2"]).reward
    assert rewards.tolist() == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_nested_columns_and_chats(tmp_path, kind):
    columns = {"prompt": "prompt", "answer": "reward_model.ground_truth"}
    (example,) = rows_of(read_file(written(tmp_path / f"d.{kind}", [DAPO]), columns=columns))
    assert example.prompt == "Solve: 2+2. Answer on last line." and example.answer == "4"
    assert example.messages == (("user", example.prompt),)
    path = written(tmp_path / f"m.{kind}", [{"messages": CHAT, "answer": "4"}])
    (example,) = rows_of(read_file(path, columns={"prompt": "messages"}))
    assert example.messages == (("system", "Be short"), ("user", "2+2")) and example.prompt == "2+2"
    (row,) = rows_of(
        Reader(columns=columns, row=("extra_info.index",)).read(tmp_path / f"d.{kind}")
    )
    assert row.row == {"extra_info.index": "a1"}


def test_a_column_for_rewards_that_no_row_has_is_refused(tmp_path):
    rows = [{"prompt": f"{n}?", "answer": "1", "hint": "h" if n == 3 else None} for n in range(40)]
    path = jsonl(tmp_path / "r.jsonl", rows)
    assert sum(e.row["hint"] is not None for e in rows_of(Reader(row=("hint",)).read(path))) == 1
    message = r"keep names 'hints', in which no row of .*r\.jsonl has anything"
    for read in (Reader(row=("hint", "hints")).read, Reader(row=("hint", "hints")).read_splits):
        with pytest.raises(ValueError, match=message):
            read(path)


def test_what_a_chat_ends_in_is_its_solution(tmp_path):
    chat = [*CHAT, {"role": "assistant", "content": " 4 "}]
    path = jsonl(tmp_path / "m.jsonl", [{"prompt": chat, "answer": "4"}])
    (example,) = rows_of(read_file(path))
    assert example.solution == " 4 " and len(example.messages) == 2
    chat[-1]["content"] = "5"
    jsonl(path, [{"prompt": chat, "answer": "4"}])
    with pytest.raises(ValueError, match="does not accept the row's own solution str '5'"):
        read_file(path)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "a chat of no message, expected one that ends in a user's"),
        (CHAT[:1], "a chat of system, expected one that ends"),
        ([CHAT[1], CHAT[0], CHAT[1]], "a system message that is not the first"),
        ([{"role": "tool", "content": "x"}], "message 1 has the role str 'tool', expected system"),
        ([{"role": "user", "content": None}], "message 1, content is NoneType None, expected text"),
        ([{"role": "user", "content": " "}], "no prompt"),
    ],
)
def test_a_chat_of_another_kind_is_refused(tmp_path, chat, message):
    path = jsonl(tmp_path / "m.jsonl", [{"prompt": chat, "answer": "4"}])
    with pytest.raises(ValueError, match=f"row 1: .*{message}"):
        read_file(path)


@pytest.mark.parametrize(
    "chat",
    [
        json.dumps(CHAT),
        [{"from": "system", "value": "Be short"}, {"from": "human", "value": "2+2"}],
        [CHAT[0], {"role": "user", "content": [{"type": "text", "text": "2+2"}]}],
    ],
)
def test_chats_in_other_spellings_are_the_same_chat(tmp_path, chat):
    path = jsonl(tmp_path / "m.jsonl", [{"prompt": chat, "answer": "4"}])
    (example,) = rows_of(read_file(path))
    assert example.prompt == "2+2"
    assert example.messages == (("system", "Be short"), ("user", "2+2"))


@pytest.mark.parametrize(
    "text", ['["role"]', '[{"role": "user"', "[]", '[{"role": "user"}]', "[" * 9999]
)
def test_a_text_that_is_no_chat_stays_a_text(tmp_path, text):
    (example,) = rows_of(read_file(jsonl(tmp_path / "m.jsonl", [{"prompt": text, "answer": "4"}])))
    assert example.prompt == text and example.messages == ()


def test_an_object_as_answer_is_refused_with_a_path_into_it(tmp_path):
    row = {"prompt": "a", "gold": {"value": "4", "aliases": ["4.0"]}}
    path = jsonl(tmp_path / "m.jsonl", [row])
    with pytest.raises(
        ValueError, match=r"expected text or a finite number; .* such as gold\.value"
    ):
        read_file(path, columns={"answer": "gold"})
    (example,) = rows_of(read_file(path, columns={"answer": "gold.value"}))
    assert example.answer == "4"


def test_shards_that_are_missing_are_told(tmp_path):
    told = []
    for number in (0, 2):
        jsonl(tmp_path / "set" / f"train-0000{number}-of-00003.jsonl", [ROWS[number // 2]])
    read_file(tmp_path / "set", tell=told.append)
    assert [line.partition("set: ")[2] for line in told] == [
        "shards are missing (train: 2 of 3 files)"
    ]
    jsonl(tmp_path / "set" / "train-00001-of-00003.jsonl", [{"prompt": "e", "answer": "f"}])
    told.clear()
    read_file(tmp_path / "set", tell=told.append)
    assert told == []


def test_a_column_whose_name_has_dots_comes_first(tmp_path):
    row = {"a.b": "p", "a": {"b": "q"}, "list": [{"x": "1"}]}
    path = jsonl(tmp_path / "a.jsonl", [row])
    columns = {"prompt": "a.b", "answer": "list.0.x"}
    assert texts(read_file(path, columns=columns)) == [("p", "1")]
    with pytest.raises(
        ValueError, match=r"no answer \(looked for list\.1\.x; the row has a\.b, a, l"
    ):
        read_file(path, columns={"prompt": "a.b", "answer": "list.1.x"})


def test_a_column_that_is_not_used_cannot_refuse_the_file(tmp_path):
    # Microseconds of a year that no date has, and bytes that are no text.
    table = pyarrow.table(
        {
            "prompt": ["p"],
            "answer": ["a"],
            "when": pyarrow.array([2**62], pyarrow.timestamp("us")),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert texts(read_file(tmp_path / "a.parquet")) == [("p", "a")]
    with pytest.raises(ValueError, match=r"a\.parquet, after row 0: the column 'when' cannot be"):
        read_file(tmp_path / "a.parquet", columns={"domain": "when"})


def test_domains_are_texts_or_whole_numbers(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl", [{**ROWS[0], "domain": 3}, {**ROWS[1], "domain": "math/a b"}]
    )
    assert [domain.name for domain in read_file(path)] == ["3", "math/a b"]


def test_a_folder_as_save_to_disk_writes_it(tmp_path):
    for split, rows in (("train", ROWS), ("test", [{"prompt": "e", "answer": "f"}])):
        folder = tmp_path / "sums" / split
        folder.mkdir(parents=True)
        arrow(folder / "data-00000-of-00001.arrow", rows)
        arrow(folder / "cache-0123.arrow", [{"prompt": "old", "answer": "f"}])
        (folder / "state.json").write_text("{}")
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "sums" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    train, test = Reader().read_splits(tmp_path / "sums")
    assert texts(train) == TEXTS and texts(test) == [("e", "f")]
    assert [domain.name for domain in (*train, *test)] == ["sums", "sums"]
    assert texts(read_file(tmp_path / "sums" / "train")) == TEXTS


def test_a_folder_as_the_hub_has_it(tmp_path):
    data = tmp_path / "gsm8k" / "data"
    data.mkdir(parents=True)
    told = []
    for k in range(2):
        written(data / f"train-{k:05d}-of-00002.parquet", [ROWS[k]])
    written(data / "validation-00000-of-00001.parquet", [{"prompt": "v", "answer": "f"}])
    train, test = Reader(tell=told.append).read_splits(tmp_path / "gsm8k")
    assert texts(train) == TEXTS and texts(test) == [("v", "f")] and not told
    written(data / "test-00000-of-00001.parquet", [{"prompt": "t", "answer": "f"}])
    train, test = Reader(tell=told.append).read_splits(tmp_path / "gsm8k")
    assert (
        texts(test) == [("t", "f")] and "validation-00000-of-00001.parquet is not read" in told[0]
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder has no file that ends in"):
        read_file(tmp_path / "empty")


def test_several_files_and_globs(tmp_path):
    for name, prompt in (("gsm8k_train", "a"), ("gsm8k_test", "b"), ("svamp_train", "c")):
        jsonl(tmp_path / f"{name}.jsonl", [{"prompt": prompt, "answer": "x"}])
    train, test = Reader().read_splits(f"{tmp_path}/*.jsonl")
    assert [domain.name for domain in train] == ["gsm8k", "svamp"]
    assert texts(train) == [("a", "x"), ("c", "x")]
    assert [(domain.name, len(domain.source)) for domain in test] == [("gsm8k", 1)]
    listed = (tmp_path / "gsm8k_train.jsonl", tmp_path / "svamp_train.jsonl")
    train, test = Reader().read_splits(listed, tmp_path / "gsm8k_test.jsonl")
    assert [domain.name for domain in (*train, *test)] == [
        *("gsm8k_train", "svamp_train", "gsm8k_train")
    ]
    assert texts(read_file(",".join(map(str, listed)))) == [("a", "x"), ("c", "x")]
    with pytest.raises(ValueError, match=r"none\*: no such file"):
        read_file(f"{tmp_path}/none*")


def test_train_beside_test_is_one_domain(tmp_path):
    train = jsonl(tmp_path / "train.jsonl", ROWS)
    test = jsonl(tmp_path / "test.jsonl", [{"prompt": "e", "answer": "f"}])
    for made in (Reader().read_splits(train, test), Reader().read_splits(tmp_path)):
        assert [texts(part) for part in made] == [TEXTS, [("e", "f")]]
        assert made[0][0].name == made[1][0].name
    other = jsonl(tmp_path / "other.jsonl", [{"prompt": "e", "answer": "f", "domain": "x"}])
    with pytest.raises(ValueError, match=r"held-out rows are of domains \['x'\], which .*train"):
        Reader().read_splits(train, other)


LAID_OUT = {
    "gsm8k": ({"question": "Half of 48, and 48?", "answer": "24+48\n#### 1,072"}, "1,072"),
    "svamp": ({"Body": "Ann has 3.", "Question": "How many?", "Answer": 145.0}, "145"),
    "math": ({"problem": "x?", "solution": r"So \boxed{\frac{1}{2}}."}, r"\frac{1}{2}"),
    "math500": ({"problem": "x?", "solution": "long", "answer": r"\frac{1}{2}"}, r"\frac{1}{2}"),
    "dapo": (DAPO, "4"),
    "aime": ({"Problem": "x?", "Answer": 33, "Solution": "long"}, "33"),
    "open_r1": ({"messages": [*CHAT, {"role": "assistant", "content": "so"}], "answer": "4"}, "4"),
    "countdown": ({"target": 98, "nums": [44, 19, 35]}, "98"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts(tmp_path, name):
    row, answer = LAID_OUT[name]
    for kind in ("jsonl", "parquet"):
        (domain,) = read_file(written(tmp_path / f"rows.{kind}", [row]), layout=name)
        (example,) = domain.source
        assert example.answer == answer and domain.verify == VERIFIERS[LAYOUTS[name].verifier]
        completion = {"gsm8k": "#### 1072", "countdown": "44+19+35"}.get(name, answer)
        assert domain.verify(example.prompt, answer, completion) == 1.0
        assert domain.verify(example.prompt, answer, "no") == 0.0


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"question": "q", "answer": "72"}, "answer is str '72', expected one after ####"),
        ("gsm8k", {"question": "q", "answer": 72}, "x"),
        ("math", {"problem": "q", "solution": r"\boxed{1"}, r"expected a \\boxed"),
        ("countdown", {"target": 98, "nums": [1, "x"]}, r"nums is list \[1, 'x'\], expected whole"),
        ("countdown", {"target": None, "nums": [1]}, "target is NoneType None, expected"),
        ("svamp", {"Body": "b", "Question": "q", "Answer": "?"}, "does not name one number"),
        ("aime", {"question": "q", "answer": 1}, "no prompt"),
    ],
)
def test_a_row_of_another_layout_is_refused(tmp_path, name, row, message):
    if row.get("answer") == 72:
        assert texts(read_file(jsonl(tmp_path / "a.jsonl", [row]), layout=name)) == [("q", "72")]
        return
    with pytest.raises(ValueError, match=rf"a\.jsonl, row 1: .*{message}"):
        read_file(jsonl(tmp_path / "a.jsonl", [row]), layout=name)


def test_a_layout_for_each_file(tmp_path):
    paths = [jsonl(tmp_path / f"{name}.jsonl", [LAID_OUT[name][0]]) for name in ("gsm8k", "svamp")]
    domains = read_file(paths, layout=("gsm8k", "svamp"))
    assert [domain.name for domain in domains] == ["gsm8k", "svamp"]
    with pytest.raises(ValueError, match="layout names 3 layouts for 2 files"):
        read_file(paths, layout=("gsm8k", "svamp", ""))
    with pytest.raises(ValueError, match="layout is 'gsm', expected one of gsm8k, svamp"):
        read_file(paths, layout="gsm")
    # What is said of columns goes before the layout.
    row = {"problem": "x?", "answer": "1", "subject": "algebra"}
    path = jsonl(tmp_path / "a.jsonl", [row])
    (domain,) = read_file(path, layout="math500", columns={"domain": "subject", "prompt": ""})
    assert domain.name == "algebra"


def test_a_repeated_prompt_counts_once_and_is_told(tmp_path):
    rows = [{"prompt": f"{k}+1=", "answer": str(k + 1)} for k in range(30)]
    path = jsonl(tmp_path / "a.jsonl", rows * 100)
    told = []
    train, test = Reader(tell=told.append).read_splits(path)
    assert len(told) == 1 and "3000 rows hold 30 prompts; each counts once" in told[0]
    assert "row 31 repeats" in told[0]
    assert len(rows_of(train)) + len(rows_of(test)) == 30 and len(rows_of(test)) == 4
    spelled = [{"prompt": p, "answer": "1"} for k in range(30) for p in (f"{k}", f"{k} ", f"{k}\n")]
    parts = Reader(distinct=False).read_splits(jsonl(tmp_path / "b.jsonl", spelled))
    asked = [{row.prompt.strip() for row in rows_of(part)} for part in parts]
    assert not asked[0] & asked[1] and len(asked[0] | asked[1]) == 30
    kept = Reader(distinct=False).read_splits(path)
    assert sum(len(rows_of(part)) for part in kept) == 3000


def test_one_prompt_with_two_answers_names_both_rows(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [ROWS[0], *({"prompt": "2+2=", "answer": a} for a in "45")])
    message = (
        r"row 2 and .*a\.jsonl, row 3 have the same prompt str '2\+2=' and two answers, str '4'"
    )
    with pytest.raises(ValueError, match=message):
        read_file(path)
    # The same number written twice is one answer to who reads numbers.
    rows = [{"prompt": "p", "answer": answer} for answer in ("#### 4", "so\n#### 4.0")]
    path = jsonl(tmp_path / "b.jsonl", rows)
    assert len(rows_of(read_file(path, verifier="number"))) == 1
    with pytest.raises(ValueError, match="two answers"):
        read_file(path)
    # Chats that differ in what the system says are not the same prompt.
    chats = [[{"role": "system", "content": s}, CHAT[1]] for s in ("a", "b")]
    rows = [{"prompt": chat, "answer": str(k)} for k, chat in enumerate(chats)]
    assert len(rows_of(read_file(jsonl(tmp_path / "c.jsonl", rows)))) == 2


def test_a_prompt_that_is_held_out_is_not_trained_on(tmp_path):
    train = jsonl(tmp_path / "train.jsonl", ROWS)
    test = jsonl(tmp_path / "test.jsonl", ROWS[1:])
    told = []
    trained, held_out = Reader(tell=told.append).read_splits(train, test)
    assert texts(trained) == TEXTS[:1] and texts(held_out) == TEXTS[1:]
    assert told == [
        f"1 of 2 training prompts are held out, and not trained on ({train}, row 2 has the prompt "
        f"of {test}, row 1)"
    ]
    with pytest.raises(ValueError, match="every prompt that is trained on is held out"):
        Reader().read_splits(train, train)
    assert texts(Reader(distinct=False).read_splits(train, test)[0]) == TEXTS


def domain_of(*prompts, answer="1", messages=()):
    rows = tuple(Example(p, answer, answer, "d", messages=messages) for p in prompts)
    return Domain("d", rows, VERIFIERS["exact"])


def test_prompts_over_the_window_are_left_out_or_cut(tmp_path):
    domains = (domain_of("12", "123456", "1234"),)
    told = []
    fit = {"vocabulary": CharVocabulary(), "max_prompt_tokens": 4, "tell": told.append}
    (kept,) = fit_prompts(domains, too_long="drop", **fit)
    assert [example.prompt for example in kept.source] == ["12"]
    assert told == [
        "2 of 3 prompts are longer than config.window.prompt = 4; the longest has 7 tokens "
        "(domain 'd', row 2): left out"
    ]
    (cut,) = fit_prompts(domains, too_long="truncate", **fit)
    assert [example.prompt for example in cut.source] == ["12", "456", "234"]
    assert "their beginnings are left out" in told[1]
    EncodedExamples((cut,), CharVocabulary()).check_prompts(4)
    with pytest.raises(ValueError, match=r"3 of 3 .* the longest has 7 tokens .*: none is left"):
        fit_prompts(domains, too_long="drop", **{**fit, "max_prompt_tokens": 2})
    chat = (domain_of("1234", messages=(("user", "1234"),)),)
    (cut,) = fit_prompts(chat, too_long="truncate", **fit)
    assert cut.source[0].messages == (("user", "234"),)
    with pytest.raises(ValueError, match="what stands around the prompt fills"):
        fit_prompts(domains, too_long="truncate", **{**fit, "max_prompt_tokens": 1})


def test_an_answer_that_the_tokenizer_loses_is_told():
    told = []
    domains = (domain_of("1", "2"), Domain("e", domain_of("1", answer="é").source, lambda *_: 0.0))
    check_answers(domains[:1], CharVocabulary(), 1.0, told.append)
    assert not told
    check_answers(domains, CharVocabulary(), 1.0, told.append)
    assert told == [
        "1 of 3 answers do not survive the tokenizer: what it makes of them earns nothing "
        "(: str 'é')"
    ]


def test_a_chat_needs_a_template(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": CHAT, "answer": "4"}])
    with pytest.raises(
        ValueError, match=r"a\.jsonl, row 1: the prompt is a chat of system, user, w"
    ):
        _ = EncodedExamples(read_file(path), CharVocabulary()).prompts
    jsonl(path, [{"prompt": [{"role": "user", "content": "12"}], "answer": "4"}])
    encoded = EncodedExamples(read_file(path), CharVocabulary()).prompts
    assert encoded[0].tolist() == CharVocabulary().encode_prompt("12")


def test_examples_of_a_prompt_may_be_in_any_format(tmp_path):
    assert read_pairs(written(tmp_path / "shots.csv", ROWS)) == TEXTS


def test_answers_that_are_whole_solutions_are_told_of(tmp_path):
    def told_of(answers, **options):
        rows = [{"prompt": f"{k} + 1 =", "answer": answer} for k, answer in enumerate(answers)]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        told = []
        Reader(tell=told.append, **options).read_splits(path, path)
        return [line for line in told if "whole solutions" in line]

    worked = [f"{k} and one more.\n#### {k + 1}" for k in range(20)]
    (line,) = told_of(worked, distinct=False)
    assert "20 of 20 answers" in line and "rows.jsonl, row 1, which marks '1'" in line
    assert "--config.tasks.verifier=number" in line
    plain = [str(k + 1) for k in range(20)]
    assert told_of(worked[:11] + plain[11:], distinct=False)
    assert not told_of(worked[:10] + plain[10:], distinct=False)
    assert not told_of(worked, distinct=False, verifier="number")
    assert not told_of(worked, distinct=False, verifier="exact")
