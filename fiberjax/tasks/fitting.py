"""What of a data set the tokenizer and the window hold, and what is done about the rest."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fiberjax.tasks.domains import Domain
from fiberjax.tasks.encoded import EncodedExamples, encode_prompt
from fiberjax.tasks.examples import Example
from fiberjax.tasks.reading.checks import Tell
from fiberjax.tasks.reading.formats import shown
from fiberjax.tasks.rewards import Case, passes, rewards_of
from fiberjax.tasks.vocabulary import Vocabulary


def fit_prompts(
    domains: Sequence[Domain],
    vocabulary: Vocabulary,
    max_prompt_tokens: int,
    too_long: str,
    tell: Tell,
    what: str = "prompts",
) -> tuple[Domain, ...]:
    """Returns the domains without prompts that the window does not hold, and tells how many.

    Args:
      domains: of a data set.
      vocabulary: tokenizer.
      max_prompt_tokens: of the window.
      too_long: "drop" leaves such a row out, and a domain that has no other; "truncate" leaves out
        the beginning of its prompt, of a chat that of its last message.
      tell: is told how many, and of the longest.
      what: the prompts are called, such as "held-out prompts".

    Raises:
      ValueError: a prompt that the vocabulary cannot hold; no row is left; or what stands around a
        prompt is alone too long.
    """
    examples = EncodedExamples(domains, vocabulary)
    lengths = examples.prompts.lengths
    longer = lengths > max_prompt_tokens
    if not longer.any():
        return tuple(domains)
    longest = int(np.argmax(lengths))
    told = (
        f"{int(longer.sum())} of {len(examples)} {what} are longer than config.window.prompt = "
        f"{max_prompt_tokens}; the longest has {lengths[longest]} tokens "
        f"({examples.where(longest)})"
    )
    if too_long == "drop" and longer.all():
        raise ValueError(f"{told}: none is left")
    fitted = []
    for domain, offset, size in zip(domains, examples.offsets, examples.sizes, strict=True):
        here = longer[offset : offset + size]
        if too_long == "truncate":
            rows = tuple(
                _truncated(row, vocabulary, max_prompt_tokens, examples.where(offset + i))
                if here[i]
                else row
                for i, row in enumerate(domain.source[i] for i in range(size))
            )
        else:
            rows = tuple(domain.source[i] for i in range(size) if not here[i])
        if rows:
            fitted.append(dataclasses.replace(domain, source=rows))
    tell(f"{told}: {'left out' if too_long == 'drop' else 'their beginnings are left out'}")
    return tuple(fitted)


def _truncated(example: Example, vocabulary: Vocabulary, limit: int, where: str) -> Example:
    """The example with the longest end of its prompt that fits."""

    def cut(start: int) -> Example:
        prompt = example.prompt[start:]
        messages = example.messages
        if messages:
            messages = (*messages[:-1], (messages[-1][0], prompt))
        return dataclasses.replace(example, prompt=prompt, messages=messages)

    def fits(start: int) -> bool:
        return len(encode_prompt(vocabulary, cut(start))) <= limit

    low, high = 0, len(example.prompt) - 1
    if not fits(high):
        raise ValueError(
            f"{where}: what stands around the prompt fills config.window.prompt = {limit} alone"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return cut(low)


def check_answers(
    domains: Sequence[Domain], vocabulary: Vocabulary, pass_threshold: float, tell: Tell
) -> None:
    """Tells of answers that no policy could write, by what the tokenizer makes of them.

    An answer is encoded and decoded again. Where it then is another text, and one that does not
    pass, a completion that says the answer would earn nothing.
    """
    lost: list[Example] = []
    total = 0
    for domain in domains:
        altered: list[Example] = []
        cases: list[Case] = []
        whose: list[int] = []
        for index in range(len(domain.source)):
            example = domain.source[index]
            total += 1
            written = [_written(answer, vocabulary) for answer in example.answers]
            if any(text == of for text, of in zip(written, example.answers, strict=True)):
                continue
            for text in written:
                if text is not None:
                    told = [
                        Case(example.prompt, answer, text, example.row)
                        for answer in example.answers
                    ]
                    cases += told
                    whose += [len(altered)] * len(told)
            altered.append(example)
        rewards = rewards_of(domain.verify, domain.name, cases).reward
        paid = set(np.array(whose, int)[passes(rewards, pass_threshold)].tolist())
        lost += [example for place, example in enumerate(altered) if place not in paid]
    if lost:
        tell(
            f"{len(lost)} of {total} answers do not survive the tokenizer: what it makes of them "
            f"earns nothing ({lost[0].where}: {shown(lost[0].answer)})"
        )


def _written(text: str, vocabulary: Vocabulary) -> str | None:
    """A text encoded and decoded again; None where it cannot be encoded."""
    try:
        return vocabulary.decode(vocabulary.encode(text))
    except ValueError:
        return None
