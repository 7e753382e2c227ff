"""What a data set may hide: prompts that stand there twice, with two answers, or on both sides."""

from collections.abc import Callable, Iterable, Sequence

from fiberjax.tasks.examples import Example
from fiberjax.tasks.reading.formats import shown
from fiberjax.tasks.vocabulary import shorten

Tell = Callable[[str], None]
"""Takes one line that the user should read."""

Agree = Callable[[Example, Example], bool]
"""Whether two rows of one prompt accept the same answer."""


def same_answers(one: Example, other: Example) -> bool:
    """Whether two rows accept the same texts, space around them aside."""
    return {a.strip() for a in one.answers} == {a.strip() for a in other.answers}


def distinct(
    examples: Iterable[Example], agree: Agree, tell: Tell, whose: str
) -> tuple[Example, ...]:
    """Keeps the first row of every prompt, and tells how many there were of which.

    A prompt that stands there more often would be drawn more often, stand twice in a batch, and
    count as often in an interval, which then is too narrow.

    Args:
      examples: in the order of their files.
      agree: whether two rows of one prompt accept the same answer.
      tell: is told of rows that were left out.
      whose: names the rows, e.g. the path.

    Raises:
      ValueError: two rows have one prompt and two answers; names both.
    """
    first: dict[str, Example] = {}
    count = 0
    repeated: Example | None = None
    for example in examples:
        count += 1
        found = first.setdefault(example.identity, example)
        if found is example:
            continue
        repeated = repeated or example
        if not agree(found, example):
            raise ValueError(
                f"{found.where} and {example.where} have the same prompt {shown(example.prompt)} "
                f"and two answers, {shown(found.answer)} and {shown(example.answer)}: correct one, "
                "or give both in a list where either is right"
            )
    if repeated is not None:
        tell(
            f"{whose}: {count} rows hold {len(first)} prompts; each counts once "
            f"({repeated.where} repeats {first[repeated.identity].where})"
        )
    return tuple(first.values())


def tell_of_solutions(
    examples: Sequence[Example],
    marked: Callable[[str], str | None],
    tell: Tell,
    whose: str,
) -> None:
    """Tells that most answers are whole solutions, where only the same text will earn a reward.

    Args:
      examples: whose answers are compared as they stand.
      marked: the answer that a text marks within itself, as by ``#### 72``; None without one.
      tell: is told.
      whose: names the rows, e.g. the path.
    """
    inner = [(example, marked(example.answer)) for example in examples]
    solved = [(example, held) for example, held in inner if held and held != example.answer.strip()]
    if 2 * len(solved) <= len(examples):
        return
    example, held = solved[0]
    tell(
        f"{whose}: {len(solved)} of {len(examples)} answers are whole solutions, such as that of "
        f"{example.where}, which marks {shorten(held)!r}: only the same text, word for word, "
        "earns a reward. --config.tasks.verifier=number compares what they mark, and a "
        "--config.tasks.layout may know the file"
    )


def without(train: Sequence[Example], test: Sequence[Example], tell: Tell) -> tuple[Example, ...]:
    """The training rows whose prompt is not held out, and tells how many are.

    Raises:
      ValueError: none is left.
    """
    held_out = {example.identity: example for example in test}
    kept = tuple(example for example in train if example.identity not in held_out)
    if len(kept) == len(train):
        return kept
    shared = next(example for example in train if example.identity in held_out)
    told = f"{shared.where} has the prompt of {held_out[shared.identity].where}"
    if not kept:
        raise ValueError(
            f"every prompt that is trained on is held out too, and nothing would be measured "
            f"({told})"
        )
    tell(
        f"{len(train) - len(kept)} of {len(train)} training prompts are held out, and not trained "
        f"on ({told})"
    )
    return kept
