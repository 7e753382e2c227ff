"""Environments: who answers the policy between its turns, such as a tool that it may call.

An environment is a function `(example, said) -> reply` on the host, asked after every turn that the
policy ended by itself, up to the last turn that it may have. `said` is what was said since the
prompt, the policy's turns and the replies alternately, the policy's turn last. The reply is a text,
or None where the episode is over. It must be a function of its arguments alone, so that a resumed
run sees what the first one saw, and total on every string: what a policy writes is anybody's text.

One environment serves a run: it knows a domain by `example.domain`, and has nothing to say to a
policy that does not turn to it. One of the user's own runs in workers (`rewards.workers`), under
the limits of rewards.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fiberjax import options, plugins
from fiberjax.plugins import Plugin
from fiberjax.tasks.countdown import evaluate
from fiberjax.tasks.examples import Example
from fiberjax.tasks.rewards.base import Failed
from fiberjax.tasks.rewards.worker import Target
from fiberjax.tasks.rewards.workers import Limits, Pool
from fiberjax.tasks.vocabulary import Vocabulary

Environment = Callable[[Example, Sequence[str]], str | None]
"""`(example, said) -> reply`, None where the episode is over."""

SEPARATOR = "\x1e"
"""Between turns and replies where several are one text."""

READ = ("last", "all")
"""What a verifier reads: the policy's last turn, or all that was said, `SEPARATOR` between."""

_CALL = re.compile(r"<calc>([^<>]*)</calc>")
_SIGNS = str.maketrans("×÷−", "*/-")  # As people and models write them.


def calculator(example: Example, said: Sequence[str]) -> str | None:
    """The value of the last `<calc>…</calc>` of a turn; None for a turn without one.

    What stands there is read by a parser of `+ - * /`, parentheses and whole numbers within limits
    (`countdown.evaluate`), and is never executed. What it does not read is answered "error".

    >>> example = Example("12*7=", "84", "84", "sums")
    >>> calculator(example, ["Let me see: <calc>12*7</calc>"])
    '84'
    >>> calculator(example, ["<calc>1/3 + 1</calc>"]), calculator(example, ["<calc>2**9</calc>"])
    ('4/3', 'error')
    >>> calculator(example, ["It is 84."]) is None
    True
    """
    del example
    called = _CALL.findall(said[-1])
    if not called:
        return None
    result = evaluate(called[-1].translate(_SIGNS))
    return "error" if result is None else str(result[0])


ENVIRONMENTS: Mapping[str, Environment] = {"calculator": calculator}
"""By name; a plugin's are added."""

Asked = tuple[Example, Sequence[str]]
"""What an environment is asked: the example, and what was said."""


class Apart:
    """An environment that runs in workers.

    Attributes:
      name: as the config has it.
    """

    def __init__(self, name: str, target: Target, limits: Limits):
        self.name = name
        self._pool = Pool(name, target, limits, replies=True)

    def __call__(self, example: Example, said: Sequence[str]) -> str | None:
        """One reply.

        Raises:
          ValueError: it failed.
        """
        (reply,) = self.many([(example, said)])
        if isinstance(reply, Failed):
            raise ValueError(f"the environment {self.name} failed: {reply.why}")
        return reply

    def many(self, asked: Sequence[Asked]) -> list[Any]:
        """Several replies, None where an episode is over; `Failed` where it failed."""
        return self._pool.run(asked)

    def load(self) -> None:
        """Has a worker load it.

        Raises:
          ValueError: it cannot be.
        """
        self._pool.run([])

    @property
    def trouble(self) -> str:
        """Why it last failed; "" where it never did."""
        return self._pool.trouble


def environments_of(
    table: Mapping[str, Environment], loaded: Sequence[Plugin], limits: Limits
) -> dict[str, Environment]:
    """The environments that a run chooses from, those of plugins in workers.

    Raises:
      ValueError: a name is taken.
    """
    found = plugins.merge(table, loaded, "ENVIRONMENTS")
    for plugin in loaded:
        module, file = plugins.locate(plugin.name, f"config.plugins: {plugin.name}")
        path = str(file) if plugin.name.endswith(".py") else ""
        for name in plugin.tables["ENVIRONMENTS"]:
            found[name] = Apart(name, Target(module, path, name, "ENVIRONMENTS"), limits)
    return found


@dataclasses.dataclass(frozen=True)
class Turns:
    """How an episode goes; one turn and no environment unless said otherwise.

    Attributes:
      environment: who answers; None for nobody.
      limit: turns of the policy, at most.
      reply: tokens of a reply with all that stands around it, at most.
      role: who answers, as a chat template calls it.
      read: one of `READ`.
    """

    environment: Environment | None = None
    limit: int = 1
    reply: int = 0
    role: str = "user"
    read: str = "last"

    def tokens(self, columns: int) -> int:
        """The tokens of one turn of the policy, at most, where all turns and replies have so many.

        >>> Turns(calculator, limit=2, reply=8).tokens(48)
        20
        """
        return (columns - (self.limit - 1) * self.reply) // self.limit

    def replies(self, asked: Sequence[Asked]) -> list[Any]:
        """The replies of the environment, None where an episode is over; `Failed` where it failed.

        Raises:
          ValueError: it failed where that ends the run; names the domain, the prompt and the turn.
        """
        if not isinstance(self.environment, Apart):
            assert self.environment is not None
            return [self.environment(example, said) for example, said in asked]
        found = self.environment.many(asked)
        for (example, said), reply in zip(asked, found, strict=True):
            if isinstance(reply, Failed) and reply.stops:
                raise ValueError(
                    f"the environment {self.environment.name} failed in domain "
                    f"{example.domain!r} for the prompt {example.prompt[:200]!r} and the turn "
                    f"{said[-1][:200]!r}: {reply.why} (config.rewards.failed = 'zero' counts such "
                    "episodes and ends them there)"
                )
        return found

    def text(self, said: Sequence[str]) -> str:
        """What a verifier reads of what was said; "" of nothing."""
        return SEPARATOR.join(said if self.read == "all" else said[-1:])

    def encode_reply(self, vocabulary: Vocabulary, text: str, after: int) -> tuple[list[int], bool]:
        """The ids of a reply, and whether all of its text is in them.

        Characters that the vocabulary does not hold are left out, and the end of what is too long.

        Args:
          vocabulary: of the policy.
          text: of the reply.
          after: the token that it follows; what ends a turn is not written twice.
        """

        def encode(part: str) -> list[int]:
            ids = vocabulary.encode_reply(part, self.role)
            return ids[1:] if ids[:1] == [after] else ids

        held = text
        if not _holds(vocabulary, text):
            held = "".join(each for each in text if _holds(vocabulary, each))
        low, high = 0, len(held)
        if len(encode(held)) <= self.reply:
            low = high
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(encode(held[:middle])) <= self.reply
            low, high = (middle, high) if fits else (low, middle - 1)
        return encode(held[:low]), held[:low] == text


def make_turns(
    chosen: options.Turns,
    columns: int,
    vocabulary: Vocabulary,
    environments: Mapping[str, Environment],
) -> Turns:
    """How an episode goes, and who answers in it.

    Args:
      chosen: the options.
      columns: of all turns and replies.
      vocabulary: of the policy.
      environments: by name.

    Raises:
      ValueError: no such environment, one that cannot be loaded, or a window without room for a
        turn or a reply.
    """
    if not chosen.environment:
        return Turns(role=chosen.role, read=chosen.read)
    if chosen.environment not in environments:
        raise ValueError(
            f"config.turns.environment must be '' or one of {', '.join(environments)}; got "
            f"{chosen.environment!r}"
        )
    turns = Turns(
        environments[chosen.environment], chosen.limit, chosen.reply, chosen.role, chosen.read
    )
    if isinstance(turns.environment, Apart):
        turns.environment.load()
    if turns.tokens(columns) < 1:
        raise ValueError(
            f"config.window.completion = {columns} columns have no room for config.turns.limit = "
            f"{turns.limit} turns with replies of config.turns.reply = {turns.reply} tokens"
        )
    try:
        around = len(vocabulary.encode_reply("", turns.role))
    except ValueError as error:
        raise ValueError(f"config.turns.role = {turns.role!r}: {error}") from None
    if around > turns.reply:
        raise ValueError(
            f"config.turns.reply = {turns.reply} tokens have no room for the {around} that stand "
            "around every reply"
        )
    return turns


def _holds(vocabulary: Vocabulary, text: str) -> bool:
    try:
        vocabulary.encode(text)
    except ValueError:
        return False
    return True


def solved(vocabulary: Vocabulary, turns: Turns, example: Example) -> tuple[list[int], list[bool]]:
    """The ids of an example's solution, and which of them are the policy's.

    The last end of sequence is left out. A solution of several turns has `SEPARATOR` between them;
    the replies are those of the environment.

    Raises:
      ValueError: the vocabulary cannot hold it, or it has more turns than the episode.
    """
    first, *further = example.solution.split(SEPARATOR)
    ids, said = vocabulary.encode(first), [first]
    own, end = [True] * len(ids), vocabulary.end_ids[0]
    for number, text in enumerate(further, start=2):
        reply = None
        if turns.environment is not None and number <= turns.limit:
            reply = turns.environment(example, tuple(said))
        if reply is None:
            raise ValueError(
                f"the solution goes on after {said[-1]!r}, where the episode is over: expected at "
                f"most config.turns.limit = {turns.limit} turns, and a reply between two"
            )
        answer, _ = turns.encode_reply(vocabulary, reply, end)
        written = vocabulary.encode(text)
        ids = [*ids, end, *answer, *written]
        own += [True] + [False] * len(answer) + [True] * len(written)
        said += [vocabulary.decode_reply(answer, turns.role), text]
    return ids, own
