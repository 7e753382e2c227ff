"""Domains: prompt generators, verifiers, data sets, curriculum, and the streams training reads.

A name is imported when it is first used: what a reward's worker needs is a small part of this, and
needs no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fiberjax.tasks.batches import PromptBatch as PromptBatch
    from fiberjax.tasks.batches import SupervisedBatch as SupervisedBatch
    from fiberjax.tasks.batches import prompt_batch as prompt_batch
    from fiberjax.tasks.batches import reward_completions as reward_completions
    from fiberjax.tasks.builders import load as load
    from fiberjax.tasks.domains import Domain as Domain
    from fiberjax.tasks.domains import Examples as Examples
    from fiberjax.tasks.encoded import EncodedExamples as EncodedExamples
    from fiberjax.tasks.examples import Example as Example
    from fiberjax.tasks.examples import Family as Family
    from fiberjax.tasks.families import FAMILIES as FAMILIES
    from fiberjax.tasks.families import VERIFIERS as VERIFIERS
    from fiberjax.tasks.families import make_family as make_family
    from fiberjax.tasks.files import read_file as read_file
    from fiberjax.tasks.reading.layouts import LAYOUTS as LAYOUTS
    from fiberjax.tasks.source import PromptStream as PromptStream
    from fiberjax.tasks.supervised import supervised_batches as supervised_batches
    from fiberjax.tasks.tokenizer import PublishedVocabulary as PublishedVocabulary
    from fiberjax.tasks.vocabulary import CharVocabulary as CharVocabulary
    from fiberjax.tasks.vocabulary import Vocabulary as Vocabulary

_MODULES = {
    "batches": (
        "PromptBatch",
        "SupervisedBatch",
        "prompt_batch",
        "reward_completions",
    ),
    "builders": ("load",),
    "domains": (
        "Domain",
        "Examples",
    ),
    "encoded": ("EncodedExamples",),
    "examples": (
        "Example",
        "Family",
    ),
    "families": (
        "FAMILIES",
        "VERIFIERS",
        "make_family",
    ),
    "files": ("read_file",),
    "reading.layouts": ("LAYOUTS",),
    "source": ("PromptStream",),
    "supervised": ("supervised_batches",),
    "tokenizer": ("PublishedVocabulary",),
    "vocabulary": (
        "CharVocabulary",
        "Vocabulary",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Imports a name where it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
