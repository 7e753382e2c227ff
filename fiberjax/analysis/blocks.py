"""The data of a page: an index of all trajectories, and a block a group, read when it is shown.

A block is

    base64(zlib(  uint32 n | n bytes of JSON, padded with spaces to 4 | float32 numbers  ))

little endian. The JSON has texts, fates and the reasons of `why`, each sentence once. The numbers
are those of every counted token, `[quantities, tokens]` a trajectory, bit by bit as in `Tokens`.
Texts that a model or a file wrote are made visible (`run.shown`): nothing in them turns, hides or
ends anything.
"""

import base64
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fiberjax.analysis.stages import COMPOSITION, GATE, OPEN, TOKEN
from fiberjax.analysis.tokens import FATES, TURNED, VANISHED, Tokens
from fiberjax.analysis.why import Chains, Step
from fiberjax.layout import TRAJECTORY
from fiberjax.run.kept import Kept
from fiberjax.run.shown import shortened, visible
from fiberjax.tasks.vocabulary import UNKNOWN, Vocabulary

FULL_COLOUR = 0.98
"""The quantile of a quantity's sizes that has the strongest colour, as all beyond it have."""

LONGEST = 4
"""Tokens that one character may be made of: its bytes in UTF-8."""

END = "∎"
"""Shown for an end of sequence."""

PARTS = {
    OPEN: ("without gates", "the coefficient with every gate open"),
    GATE: ("taken by the gate", "what the gate changes of the coefficient"),
    TOKEN: ("taken by the token's gate", "what the token's own gate changes of the coefficient"),
    COMPOSITION: (
        "taken by the composition",
        "what the pessimistic composition, the dual clip or the recovery changes",
    ),
}
"""Labels and meanings of the parts that are no level."""


class Quantity(NamedTuple):
    """A number of every counted token, by which the page may colour it.

    Attributes:
      name: its key.
      label: for people.
      meaning: what it is, with its unit.
      values: float32[R, C].
      signed: whether colours diverge from 0; else they rise from it.
    """

    name: str
    label: str
    meaning: str
    values: np.ndarray
    signed: bool = True


def quantities(tokens: Tokens) -> list[Quantity]:
    """What is known of every token, in the order of the page."""
    kept, one = tokens.kept, np.float32(1)
    found = [
        Quantity(
            "coefficient",
            "coefficient",
            "the objective's gradient in the token's log-probability: above 0 it is pushed up",
            tokens.coefficient,
        ),
        Quantity("log_ratio", "log ratio", "log π − log π_old, nats", tokens.log_ratio),
        Quantity("advantage", "advantage", "what the token is credited with", kept.advantage),
        Quantity(
            "gated_ratio",
            "gated ratio − 1",
            "what the gate makes of the ratio, less 1",
            tokens.gated_ratio - one,
        ),
    ]
    for name, part in tokens.parts.items():
        level = (f"taken by the {visible(name)}", "what the level's gate changes")
        found.append(Quantity(f"part {name}", *PARTS.get(name, level), part.astype(np.float32)))
    if tokens.entropy is not None:
        meaning = "of the policy looked at, nats"
        found.append(Quantity("entropy", "entropy", meaning, tokens.entropy, signed=False))
    if tokens.sampler_gap is not None:
        meaning = "log π_old − log q of the sampler, nats"
        found.append(Quantity("sampler_gap", "sampler gap", meaning, tokens.sampler_gap))
    if kept.sample_weight is not None:
        weight = np.where(kept.mask, kept.sample_weight - one, np.float32(0))
        meaning = "of the behaviour edge, less 1"
        found.append(Quantity("sample_weight", "sample weight − 1", meaning, weight))
    surprise = np.where(kept.mask, -kept.old_log_prob, np.float32(0))
    meaning = "how unlikely the token was when it was drawn, nats"
    found.append(Quantity("surprise", "−log π_old", meaning, surprise, signed=False))
    return found


def pieces(vocabulary: Vocabulary, ids: Sequence[int]) -> list[str]:
    """The text that each token adds, one for each id.

    A character that several tokens make up stands at the last of them.

    >>> from fiberjax.tasks.vocabulary import CharVocabulary
    >>> pieces(CharVocabulary("abc"), [3, 5, 2])
    ['a', 'c', '∎']
    """
    found: list[str] = []
    waiting: list[int] = []
    for token in map(int, ids):
        waiting.append(token)
        text = END if token in vocabulary.end_ids else vocabulary.decode(waiting)
        whole = not text.endswith(UNKNOWN) or len(waiting) == LONGEST
        found.append(text if whole else "")
        waiting = [] if whole else waiting
    if waiting:  # What never became a character.
        found[-1] = vocabulary.decode(waiting)
    return found


def lengths(kept: Kept) -> np.ndarray:
    """Tokens behind the prompt of each trajectory, replies included; int[R]."""
    columns = np.arange(kept.mask.shape[1]) + 1
    there = kept.mask | (kept.tokens != 0)
    return np.where(there, columns, 0).max(axis=1, initial=0)


def groups(tokens: Tokens) -> list[np.ndarray]:
    """The rows of each group in their order: of the level above the trajectory, or of prompts."""
    layout, table = tokens.kept.layout, tokens.kept.table
    first, rows = layout.index(TRAJECTORY), len(tokens.kept.mask)
    if "prompt_index" in table.column_names:
        of = table["prompt_index"].to_numpy()
    elif "prompt" in table.column_names:
        of = np.unique(table["prompt"].to_numpy().astype(str), return_inverse=True)[1]
    elif first + 1 < len(layout.levels):
        of = np.asarray(layout.parents[first])[:rows]
    else:
        of = np.arange(rows)
    _, at, number = np.unique(of, return_index=True, return_inverse=True)
    return [np.flatnonzero(number == each) for each in np.argsort(at, kind="stable")]


class Pages:
    """Index and blocks of one page."""

    def __init__(self, tokens: Tokens, texts: Sequence[Sequence[str]] | None = None):
        """Takes the numbers of `tokens.look`, and each token's text.

        Args:
          tokens: the numbers.
          texts: of each trajectory, as many as it has tokens; None where only ids are known.

        Raises:
          ValueError: a trajectory has another number of texts than of tokens.
        """
        self.tokens, self.groups = tokens, groups(tokens)
        self.quantities = quantities(tokens)
        self._texts, self._lengths = texts, lengths(tokens.kept)
        self._chains = Chains(tokens)
        self._table = tokens.kept.table.to_pydict()
        if texts is not None:
            for row, (of, length) in enumerate(zip(texts, self._lengths, strict=True)):
                if len(of) < length:
                    raise ValueError(f"row {row} has {length} tokens and {len(of)} texts of tokens")

    def index(self) -> dict[str, Any]:
        """What is known of all trajectories before a block is read; fit for JSON."""
        tokens, mask = self.tokens, self.tokens.kept.mask
        drift = tokens.drift()
        regimes, regime = np.unique(np.array(tokens.regime), return_inverse=True)
        rewards = self._table.get("reward", [None] * len(mask))
        domains = [visible(name) for name in self._table.get("domain", [""] * len(mask))]
        names = sorted(set(domains))
        push = np.abs(tokens.coefficient).sum(axis=1)
        prompts = self._table.get("prompt")
        return {
            "quantities": [
                {
                    "name": of.name,
                    "label": of.label,
                    "meaning": of.meaning,
                    "signed": of.signed,
                    "full": _full(of.values[mask]),
                }
                for of in self.quantities
            ],
            "parts": [f"part {name}" for name in tokens.parts],
            "fates": FATES,
            "regimes": regimes.tolist(),
            "domains": names,
            "groups": [
                {
                    "rows": rows.tolist(),
                    "prompt": "" if prompts is None else visible(shortened(prompts[rows[0]], 120)),
                }
                for rows in self.groups
            ],
            "rows": [
                {
                    "row": int(tokens.kept.row[row]),
                    "domain": names.index(domains[row]),
                    "reward": None if rewards[row] is None else _finite(float(rewards[row])),
                    "regime": int(regime[row]),
                    "drift": [_finite(float(of)) for of in drift[row]],
                    "push": _finite(float(push[row])),
                    "counted": int(mask[row].sum()),
                    "vanished": int((tokens.fate[row] == VANISHED)[mask[row]].sum()),
                    "turned": int((tokens.fate[row] == TURNED)[mask[row]].sum()),
                }
                for row in range(len(mask))
            ],
        }

    def blocks(self) -> Iterator[str]:
        """The block of each group, in the order of the index; letters of base64 alone."""
        for rows in self.groups:
            yield self._block(rows)

    def _block(self, rows: np.ndarray) -> str:
        sentences: dict[Step, int] = {}
        told = [self._trajectory(int(row), sentences) for row in rows]
        said = {
            "prompt": self._text("prompt", int(rows[0])),
            "answer": self._text("answer", int(rows[0])),
            "trajectories": told,
            "sentences": [list(step) for step in sentences],
        }
        header = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 4)
        mask = self.tokens.kept.mask
        numbers = b"".join(
            np.stack([of.values[row, mask[row]] for of in self.quantities]).astype("<f4").tobytes()
            for row in rows
        )
        packed = zlib.compress(struct.pack("<I", len(header)) + header + numbers, 6)
        return base64.b64encode(packed).decode("ascii")

    def _trajectory(self, row: int, sentences: dict[Step, int]) -> dict[str, Any]:
        kept, length = self.tokens.kept, int(self._lengths[row])
        ids = kept.tokens[row, :length].tolist()
        counted = np.flatnonzero(kept.mask[row, :length]).tolist()
        texts = [f"⟨{of}⟩" for of in ids] if self._texts is None else self._texts[row][:length]
        steps = (self._chains.of(row, column) for column in counted)
        return {
            "ids": ids,
            "texts": [visible(of) for of in texts],
            "turn": kept.turn[row, :length].tolist() if kept.turn[row].any() else None,
            "counted": counted,
            "fate": self.tokens.fate[row, counted].tolist(),
            "why": [
                [sentences.setdefault(step, len(sentences)) for step in chain] for chain in steps
            ],
            "extracted": self._text("extracted", row),
            "finished": self._table["finished"][row] if "finished" in self._table else None,
            "version": self._table["policy_version"][row]
            if "policy_version" in self._table
            else None,
        }

    def _text(self, column: str, row: int) -> str | None:
        text = self._table[column][row] if column in self._table else None
        return None if text is None else visible(text)


def _full(values: np.ndarray) -> float:
    """The size that has the strongest colour; above 0."""
    sizes = np.abs(values[np.isfinite(values)])
    sizes = sizes[sizes > 0]
    return float(np.quantile(sizes, FULL_COLOUR)) if len(sizes) else 1.0


def _finite(value: float) -> float | str:
    """A number as JSON has it; what is not finite as text."""
    return value if np.isfinite(value) else str(value)
