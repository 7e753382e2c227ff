"""Runs a chat template once, in a process with a limit of time: what it writes, in pieces.

A template is a program that somebody else wrote. transformers compiles it in jinja's sandbox; this
file is run as a script, by `tasks.chat`, so that one that never ends takes nobody with it. It reads
a request from stdin and writes an answer to stdout, both JSON, and imports nothing of the package.

Where a message goes, the template is given a placeholder. What it writes is then cut there: the
template's own text is known from the messages', whatever these spell.
"""

import contextlib
import datetime
import json
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Around a placeholder, to see whether the template trims a message.
_SPACE = "\n \t"
# Prompts that a row could hold, to see that nothing else is done to a message.
_PROBES = ("a", "  b \n", "</think> {{ 1 }} <|im_end|> [INST] {% if %} é\n\n\\n'\"")
# What a template gets that asks for today: a run that goes on tomorrow has the same prompts. It is
# the day that Llama's templates name where they are told none.
_TODAY = datetime.datetime(2024, 7, 26)

Render = Callable[..., str]


def pieces(
    render: Render,
    system: str,
    examples: Sequence[Sequence[str]],
    thinking: str,
    roles: Sequence[str] = ("user",),
) -> dict[str, Any]:
    """What stands around a row's messages, as JSON-like values.

    Args:
      render: writes a chat, given `messages`, `add_generation_prompt` and the template's options.
      system: the system prompt; "" for none.
      examples: pairs of what a user said and what the assistant answered.
      thinking: "on", "off", or "auto" for what the template does untold.
      roles: who says the row's messages; its own system message stands in place of `system`.

    Returns:
      `pieces`: pairs of a text and whose it is: -1 the template's, else the index of the message.
      `rows`: the indices of the row's messages. `trimmed`: for each piece, which sides of a message
      are (left, right). `after_turn`: what the template writes after an answer.

    Raises:
      ValueError: the template does not do what is asked, or anything else than writing messages.
    """
    own_system = roles[0] == "system"
    before = [("system", None if own_system else system)] * bool(system or own_system)
    for asked, answered in examples:
        before += [("user", asked), ("assistant", answered)]
    said = [*before, *((role, None) for role in roles[own_system:])]
    rows = [index for index, (_, text) in enumerate(said) if text is None]
    speakers = [role for role, _ in said]

    def chat(contents: Sequence[str], generation: bool = True, mode: str = thinking) -> str:
        # One message more is an answer.
        messages = [
            {"role": role, "content": content}
            for role, content in zip([*speakers, "assistant"], contents, strict=False)
        ]
        told = {} if mode == "auto" else {name: mode == "on" for name in _THINKING}
        return render(messages=messages, add_generation_prompt=generation, **told)

    def filled(text: str) -> list[str]:
        return [text if own is None else own for _, own in said]

    plainly = filled("a")
    if thinking != "auto" and chat(plainly, mode="on") == chat(plainly, mode="off"):
        raise ValueError(f"it has no mode that config.model.thinking = {thinking!r} could choose")
    nonce = secrets.token_hex(8)
    marks = [f"MESSAGE{nonce}N{index}E" for index in range(len(said))]
    cut = re.compile(rf"({_SPACE})?MESSAGE{nonce}N(\d+)E({_SPACE})?")
    plain = cut.split(chat(marks))
    padded = cut.split(chat([_SPACE + mark + _SPACE for mark in marks]))
    shown = [int(index) for index in plain[2::4]]
    for index, (role, own) in enumerate(said):
        if index not in shown:
            whose = f"the message {own[:60]!r}" if own is not None else f"the row's {role} message"
            raise ValueError(
                f"the template leaves out {'the prompt' if index == len(said) - 1 else whose}"
            )
    if plain[2::4] != padded[2::4]:
        raise ValueError("the template writes a message with space around it in another way")
    found, trimmed = [(plain[0], -1)], [(False, False)]
    for index, left, right, own in zip(shown, padded[1::4], padded[3::4], plain[4::4], strict=True):
        found += [(said[index][1] or "", index), (own, -1)]
        trimmed += [(left is None, right is None), (False, False)]
    made = {"pieces": found, "trimmed": trimmed, "rows": rows}
    for probe in _PROBES:
        if assembled(made, probe) != chat(filled(probe)):
            raise ValueError(
                "the template does more to a message than to write it, or trim it: its text would "
                "not be known from its control tokens"
            )
    try:
        after = cut.split(chat([*marks, marks[-1]], generation=False))[-1]
    except Exception:  # A template that wants a question at the end says nothing of answers.
        after = ""
    return made | {"after_turn": after}


_THINKING = ("enable_thinking", "thinking")  # Templates call it either.


def assembled(made: dict[str, Any], prompt: str) -> str:
    """The whole text with the same prompt in the place of every message of a row."""
    parts = []
    for (text, whose), (left, right) in zip(made["pieces"], made["trimmed"], strict=True):
        text = prompt if whose in made["rows"] else text
        text = text.lstrip() if left else text
        parts.append(text.rstrip() if right else text)
    return "".join(parts)


def compiled(template: str, variables: dict[str, Any]) -> Render:
    """The template as transformers runs it: in jinja's sandbox, with its filters and globals."""
    from transformers.utils import chat_template_utils

    made = chat_template_utils._compile_jinja_template(template)
    made.globals["strftime_now"] = _TODAY.strftime

    def render(**given: Any) -> str:
        return made.render(tools=None, documents=None, **variables, **given)

    return render


def main() -> None:
    """Answers the request on stdin: `pieces`, or an `error`."""
    request = json.load(sys.stdin)
    try:
        from transformers.utils import chat_template_utils  # noqa: F401 - not on its time.

        _limit(request["seconds"])
        # Constants of a template are computed as it is compiled.
        render = compiled(request["template"], request["variables"])
        asked = (request[name] for name in ("system", "examples", "thinking", "roles"))
        answer = pieces(render, *asked)
    except MemoryError:
        answer = {"error": "it needs more than 4 GiB"}
    except Exception as error:  # Whatever a template raises is told, and nothing of it is run on.
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        answer = {"error": f"{kind}{' '.join(str(error).split())}"[:400]}
    json.dump(answer, sys.stdout)


def _limit(seconds: int) -> None:
    """From now on this process may use so many seconds of the processor, and 4 GiB more."""
    try:
        import resource
    except ImportError:  # Where there is none, the one who waits has a clock.
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (until, until + 1))
    with contextlib.suppress(ValueError, OSError):  # Not every system counts it.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 4 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
