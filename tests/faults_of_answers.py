"""Deliberate faults of what is read as an answer; see `mutants.py`."""

from faults_of_mathematics import Mutant

MARKED = "fiberjax/tasks/rewards/marked.py"
NOTATION = "fiberjax/tasks/rewards/notation.py"
NUMBERS = "fiberjax/tasks/rewards/numbers.py"
TEXTS = "fiberjax/tasks/rewards/texts.py"
OF_REWARDS = "tests/tasks/test_rewards.py"
UNREAD = f"{OF_REWARDS}::test_what_names_no_number"
READ = f"{OF_REWARDS}::test_numbers_are_read_in_all_their_forms"
MARKS = f"{OF_REWARDS}::test_marks_are_found"

SHOWN = "test_first_answers_are_shown_a_line_each_and_nothing_is_obeyed"
OF_READING = "tests/tasks/test_reading.py"

FAULTS = (
    Mutant(
        "a narrow float is read as a wide one",
        "fiberjax/tasks/reading/formats.py",
        "values[name] = _python(column)",
        "values[name] = column.to_pylist()",
        (f"{OF_READING}::test_floats_of_tables_are_their_shortest_text",),
    ),
    Mutant(
        "a long answer takes the room of the others",
        "fiberjax/run/shown.py",
        "Table(box=None, expand=True)",
        "Table(box=None)",
        (f"tests/run/test_credit.py::{SHOWN}",),
    ),
    Mutant(
        "half of a data set goes for all of it",
        "fiberjax/tasks/files.py",
        "if missing and len(listed(paths)) == 1:",
        "if False:",
        (f"{OF_READING}::test_shards_that_are_missing_are_told",),
    ),
    Mutant(
        "a chat in a CSV is its JSON text",
        "fiberjax/tasks/reading/columns.py",
        "    return chat if messages else value\n",
        "    return value\n",
        (f"{OF_READING}::test_chats_in_other_spellings_are_the_same_chat",),
    ),
    Mutant(
        "ten in the morning is ten in the evening",
        TEXTS,
        "not expected.words or expected.words == found.words",
        "True",
        (f"{OF_REWARDS}::test_words_that_are_no_unit_are_a_part_of_the_answer",),
    ),
    Mutant(
        "a comparison is an equation",
        NUMBERS,
        "if hedged or several or _NO_EQUATION.search(text) else",
        "if hedged or several else",
        (UNREAD,),
    ),
    Mutant(
        "what twice a name is, the name is",
        NUMBERS,
        'if all(_UNKNOWN.search(_side(side)) for side in said.split("=")):',
        "if False:",
        (UNREAD,),
    ),
    Mutant(
        "the last of several equations is an answer",
        NUMBERS,
        "if hedged or several or",
        "if hedged or",
        (UNREAD,),
    ),
    Mutant(
        "a decimal comma is guessed",
        NOTATION,
        '(re.compile(r"(?<![0-9.,])([1-9][0-9]{0,2}(?: [0-9]{3})+),([0-9]{1,2})',
        '(re.compile(r"(?<![0-9.,])([1-9][0-9]{0,2}(?: [0-9]{3})*),([0-9]{1,2})',
        (UNREAD,),
    ),
    Mutant(
        "two signs of a fraction are one",
        NOTATION,
        'sign = "-" if (found[1] == "-") != (found[3] == "-") else ""',
        'sign = "-" if found[1] == "-" else ""',
        (READ,),
    ),
    Mutant(
        "what is not the answer is",
        MARKED,
        "(?:would|will|should|must) be)\\b|[=:\uff1a])",
        "(?:would|will|should|must) be)|[=:\uff1a])",
        (MARKS,),
    ),
    Mutant(
        "a heading is an answer",
        MARKED,
        "if not heads or not _HEADING.fullmatch(line):",
        "if True:",
        (MARKS,),
    ),
    Mutant(
        "the first of several choices is one",
        TEXTS,
        "if chosen is None or _FURTHER.search(chosen[2]) else",
        "if chosen is None else",
        (f"{OF_REWARDS}::test_what_chooses_nothing",),
    ),
    Mutant(
        "the last of two values under one key counts",
        TEXTS,
        "if len(value) < len(pairs):",
        "if False:",
        (f"{OF_REWARDS}::test_json_is_compared_as_values",),
    ),
)
