"""Domains: prompt generators, verifiers, data sets, curriculum, and the streams training reads."""

from fiberjax.tasks.builders import load
from fiberjax.tasks.domains import Domain, Examples
from fiberjax.tasks.examples import Example, Family
from fiberjax.tasks.families import FAMILIES, VERIFIERS, make_family
from fiberjax.tasks.source import (
    PromptBatch,
    PromptStream,
    SupervisedBatch,
    prompt_batch,
    score,
    supervised_batches,
)
from fiberjax.tasks.vocabulary import CharVocabulary, HFVocabulary, Vocabulary

__all__ = [
    "FAMILIES",
    "VERIFIERS",
    "CharVocabulary",
    "Domain",
    "Example",
    "Examples",
    "Family",
    "HFVocabulary",
    "PromptBatch",
    "PromptStream",
    "SupervisedBatch",
    "Vocabulary",
    "load",
    "make_family",
    "prompt_batch",
    "score",
    "supervised_batches",
]
