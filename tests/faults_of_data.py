"""Deliberate faults of what reads data and of what it hides; see `mutants`."""

from faults_of_mathematics import Mutant

FORMATS = "fiberjax/tasks/reading/formats.py"
COLUMNS = "fiberjax/tasks/reading/columns.py"
CHECKS = "fiberjax/tasks/reading/checks.py"
LAYOUTS = "fiberjax/tasks/reading/layouts.py"
FITTING = "fiberjax/tasks/fitting.py"
FILES = "fiberjax/tasks/files.py"
READING = "tests/tasks/test_reading.py"

FAULTS = (
    Mutant(
        "what a program kept beside the rows is read",
        FORMATS,
        'path.name.startswith((".", "cache-"))',
        'path.name.startswith(".")',
        (f"{READING}::test_a_folder_as_save_to_disk_writes_it",),
    ),
    Mutant(
        "every column of a table is converted",
        FORMATS,
        "columns is None or name in columns]",
        "columns is None or name]",
        (f"{READING}::test_a_column_that_is_not_used_cannot_refuse_the_file",),
    ),
    Mutant(
        "half of a surrogate pair is text",
        COLUMNS,
        "value.encode()",
        'value.encode("utf-8", "surrogatepass")',
        (f"{READING}::test_half_a_surrogate_pair_is_refused",),
    ),
    Mutant(
        "a path goes before the column that is called so",
        COLUMNS,
        "if isinstance(row, dict) and path in row:",
        "if isinstance(row, dict) and path in row and '.' not in path:",
        (f"{READING}::test_a_column_whose_name_has_dots_comes_first",),
    ),
    Mutant(
        "145.0 is not 145",
        COLUMNS,
        "if value == int(value):",
        "if type(value) is int:",
        (f"{READING}::test_answers_are_texts_numbers_or_lists_of_them",),
    ),
    Mutant(
        "two answers to a prompt go by",
        CHECKS,
        "if not agree(found, example):",
        "if False:",
        (f"{READING}::test_one_prompt_with_two_answers_names_both_rows",),
    ),
    Mutant(
        "held-out prompts are trained on",
        CHECKS,
        "if example.identity not in held_out)",
        "if example)",
        (f"{READING}::test_a_prompt_that_is_held_out_is_not_trained_on",),
    ),
    Mutant(
        "chats are told apart by their last message",
        "fiberjax/tasks/examples.py",
        "for message in self.messages for part in message] or",
        "for message in self.messages[-1:] for part in message] or",
        (f"{READING}::test_one_prompt_with_two_answers_names_both_rows",),
    ),
    Mutant(
        "a box ends at the first brace",
        LAYOUTS,
        '{"{": 1, "}": -1}',
        '{"}": -1}',
        (f"{READING}::test_published_layouts",),
    ),
    Mutant(
        "test rows are a domain of their own",
        FILES,
        "return found[0] if len(found) == 1 else name",
        "return name",
        (f"{READING}::test_train_beside_test_is_one_domain",),
    ),
    Mutant(
        "the end of a prompt is cut",
        FITTING,
        "prompt = example.prompt[start:]",
        "prompt = example.prompt[: len(example.prompt) - start]",
        (f"{READING}::test_prompts_over_the_window_are_left_out_or_cut",),
    ),
    Mutant(
        "the first accepted answer alone pays",
        "fiberjax/tasks/batches.py",
        "batch.accepted[row] if batch.accepted else",
        "batch.accepted[row][:1] if batch.accepted else",
        (f"{READING}::test_several_accepted_answers_pay_the_best_of_them",),
    ),
)
