"""What a task is: examples, the family that makes and checks them, and the train/test split."""

import abc
import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from fiberjax import bounds

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

# One canonical prompt in ten is held out.
_TEST_ONE_IN = 10
# Drawing stops with an error once this many draws in a row bring no new prompt of the split.
_MAX_BARREN_DRAWS = 20_000


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt with what is needed to check and to teach it.

    Attributes:
      prompt: text given to the policy; of a chat, what its last message says.
      answer: final answer, what the verifier compares with; the first of `answers`.
      solution: worked completion that earns reward 1; the target of the supervised warm start.
      domain: name of the domain, e.g. ``"sort"``.
      columns: further columns of the data, name and text; what ``config.levels`` may read.
      where: names the row in errors, e.g. ``"train.jsonl, row 7"``; empty where none is known.
      answers: all that are accepted; ``(answer,)`` where nothing else is given. A completion earns
        the best of their rewards.
      messages: pairs of a role and a text, where the prompt is a chat; the last says ``prompt``.
      row: further columns of the data, as its file has them.
    """

    prompt: str
    answer: str
    solution: str
    domain: str
    columns: tuple[tuple[str, str], ...] = ()
    where: str = dataclasses.field(default="", compare=False, repr=False)
    answers: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    row: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.answers:
            object.__setattr__(self, "answers", (self.answer,))

    @property
    def identity(self) -> str:
        """The same for rows that ask the same: the whole chat, space around a text aside."""
        said = [part for message in self.messages for part in message] or [self.prompt]
        return "\0".join(unicodedata.normalize("NFC", part).strip() for part in said)


@dataclasses.dataclass(frozen=True)
class Family(abc.ABC):
    """A procedural domain: draws examples and checks completions.

    Subclasses are frozen dataclasses whose fields are the knobs. ``difficulty`` is an integer
    added to the knobs that set the size of a problem: 0 is the family as defined, +1 is one
    element (digit, letter, operand) more, -1 one less. ``largest`` is the size that none exceeds.

    Raises:
      ValueError: a knob is out of the bounds that stand beside its type.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    largest: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        bounds.check(self)

    @abc.abstractmethod
    def generate(self, rng: np.random.Generator, difficulty: int = 0) -> Example:
        """Returns one example, a function of the generator's state alone."""

    def verify(self, prompt: str, answer: str, completion: str) -> float:
        """Returns the reward of a completion, 1.0 or 0.0; never raises.

        Args:
          prompt: the example's prompt.
          answer: the example's final answer.
          completion: what the policy emitted before end of sequence; any string at all.
        """
        del prompt
        return float(completion == answer)

    def canonical(self, prompt: str) -> str:
        """Returns the same string for prompts that are the same problem written differently."""
        return prompt


def _digest(text: str) -> int:
    """Returns a 64-bit hash that is the same in every process and on every machine."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def split_of(family: Family, prompt: str) -> Split:
    """Returns the split a prompt belongs to: a function of the problem, not of the draw.

    Every way of writing one problem hashes alike, so the splits are disjoint whatever the seeds,
    sizes and difficulties they are drawn with.

    Example:
      >>> from fiberjax.tasks.families import Sort
      >>> split_of(Sort(), "S:312=") == split_of(Sort(), "S:231=")
      True
    """
    return split_of_text(family.canonical(prompt))


def split_of_text(text: str) -> Split:
    """Returns the split of a canonical prompt, by a hash that never changes."""
    return "test" if _digest(text) % _TEST_ONE_IN == 0 else "train"


def example_rng(seed: int, domain: str, index: int) -> np.random.Generator:
    """Returns the generator of draw ``index`` of a domain, independent of all other draws."""
    sequence = np.random.SeedSequence([seed, _digest(domain), index])
    return np.random.Generator(np.random.Philox(sequence))


def draw_examples(
    family: Family, split: Split, num_examples: int, *, seed: int = 0, difficulty: int = 0
) -> Iterator[Example]:
    """Yields ``num_examples`` examples of one split, no prompt twice.

    Args:
      family: the domain.
      split: ``"train"`` or ``"test"``.
      num_examples: how many.
      seed: draw ``i`` depends on (seed, family name, i) alone.
      difficulty: see ``Family``.

    Raises:
      ValueError: unknown split, or the family has too few distinct prompts at this difficulty.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    seen: set[str] = set()
    index = barren = 0
    while len(seen) < num_examples:
        example = family.generate(example_rng(seed, family.name, index), difficulty)
        index += 1
        if example.prompt in seen or split_of(family, example.prompt) != split:
            barren += 1
            if barren == _MAX_BARREN_DRAWS:
                raise ValueError(
                    f"{family.name} at difficulty {difficulty} has too few distinct prompts: found "
                    f"{len(seen)} of the {num_examples} wanted for split {split!r}"
                )
            continue
        barren = 0
        seen.add(example.prompt)
        yield example


def draw_size(
    rng: np.random.Generator, family: Family, smallest: int, largest: int, difficulty: int
) -> int:
    """Returns a size uniform in [smallest + difficulty, largest + difficulty].

    Raises:
      ValueError: the interval is empty, or reaches below 1 or beyond the family's largest.
    """
    if smallest + difficulty < 1 or largest < smallest or largest + difficulty > family.largest:
        raise ValueError(
            f"{family.name}: sizes {smallest}..{largest} at difficulty {difficulty} are not an "
            f"interval of positive sizes up to {family.largest}"
        )
    return int(rng.integers(smallest, largest + 1)) + difficulty
