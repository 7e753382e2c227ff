"""Domains: prompt generators, verifiers, data sets, curriculum, and the streams training reads."""

from fiberjax.tasks.batches import PromptBatch, SupervisedBatch, prompt_batch, reward_completions
from fiberjax.tasks.builders import load
from fiberjax.tasks.domains import Domain, Examples
from fiberjax.tasks.encoded import EncodedExamples
from fiberjax.tasks.examples import Example, Family
from fiberjax.tasks.families import FAMILIES, VERIFIERS, make_family
from fiberjax.tasks.files import read_file
from fiberjax.tasks.reading.layouts import LAYOUTS
from fiberjax.tasks.source import PromptStream
from fiberjax.tasks.supervised import supervised_batches
from fiberjax.tasks.tokenizer import PublishedVocabulary
from fiberjax.tasks.vocabulary import CharVocabulary, Vocabulary

__all__ = [
    "FAMILIES",
    "LAYOUTS",
    "VERIFIERS",
    "CharVocabulary",
    "Domain",
    "EncodedExamples",
    "Example",
    "Examples",
    "Family",
    "PromptBatch",
    "PromptStream",
    "PublishedVocabulary",
    "SupervisedBatch",
    "Vocabulary",
    "load",
    "make_family",
    "prompt_batch",
    "read_file",
    "reward_completions",
    "supervised_batches",
]
