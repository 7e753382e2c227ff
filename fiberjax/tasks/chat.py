"""What a chat template writes around a prompt, in pieces whose owner is known.

The template is run in another process (`tasks.render`), once, before anything else: with
placeholders for the messages. Every prompt is then put together from its pieces, and the template
is never run again.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 10
"""Of the processor, that a template may take."""


class Piece(NamedTuple):
    """A part of a chat.

    Attributes:
      text: of it; "" where the row's prompt goes.
      own: whether the template wrote it; what people say has no control tokens.
      row: which of the row's messages goes here, from 0; None for none of them.
      trim_left: whether space at its beginning is dropped.
      trim_right: whether space at its end is dropped.
    """

    text: str
    own: bool = False
    row: int | None = None
    trim_left: bool = False
    trim_right: bool = False

    def said(self, messages: Sequence[str]) -> str:
        """Its text, for what a row's messages say."""
        text = self.text if self.row is None else messages[self.row]
        text = text.lstrip() if self.trim_left else text
        return text.rstrip() if self.trim_right else text


@dataclasses.dataclass(frozen=True)
class Frame:
    """A chat around a prompt.

    Attributes:
      pieces: in order.
      after_turn: what the template writes after an answer.
    """

    pieces: tuple[Piece, ...]
    after_turn: str = ""

    def text(self, *messages: str) -> str:
        """The whole chat, as the template would write it around a row's messages."""
        return "".join(piece.said(messages) for piece in self.pieces)


def after_answer(frame: Frame) -> Frame:
    """The part of a frame behind the last message that is not the row's own."""
    at = max(k for k, piece in enumerate(frame.pieces) if not piece.own and piece.row is None)
    return Frame(frame.pieces[at + 1 :], frame.after_turn)


def make_frame(
    template: str,
    variables: Mapping[str, str],
    *,
    system: str = "",
    examples: Sequence[tuple[str, str]] = (),
    thinking: str = "auto",
    roles: Sequence[str] = ("user",),
) -> Frame:
    """Runs a template, in a process of its own.

    Args:
      template: in jinja's language.
      variables: that it may name, such as "bos_token".
      system: the system prompt; "" for none.
      examples: pairs of what a user said and what the assistant answered, before the prompt.
      thinking: "on", "off", or "auto" for what the template does untold.
      roles: who says the row's messages; its own system message stands in place of `system`.

    Raises:
      ValueError: it fails, takes longer than `SECONDS`, or does not do what is asked.
    """
    request = {
        "template": template,
        "variables": dict(variables),
        "system": system,
        "examples": [list(pair) for pair in examples],
        "thinking": thinking,
        "roles": list(roles),
        "seconds": SECONDS,
    }
    script = Path(__file__).with_name("render.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(script)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            # It waits for the processor too, and reads libraries first.
            timeout=60 + 10 * SECONDS,
            env=os.environ | {"TRANSFORMERS_VERBOSITY": "error"},
        )
    except subprocess.TimeoutExpired:
        raise ValueError("the chat template does not end") from None
    if done.returncode < 0:
        raise ValueError(f"the chat template does not end within {SECONDS} s of processor time")
    if done.returncode > 0:
        told = done.stderr.strip().splitlines()[-1:]
        raise ValueError(f"the chat template cannot be run: {' '.join(told)}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ValueError(f"the chat template: {answer['error']}")
    return frame_of(answer)


def frame_of(answer: Mapping[str, Any]) -> Frame:
    """The frame that `render.pieces` describes."""
    place = {index: number for number, index in enumerate(answer["rows"])}
    return Frame(
        tuple(
            Piece(text, whose == -1, place.get(whose), left, right)
            for (text, whose), (left, right) in zip(
                answer["pieces"], answer["trimmed"], strict=True
            )
        ),
        answer["after_turn"],
    )
