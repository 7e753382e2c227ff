"""A domain as training reads it: named examples behind random access, with their verifier."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol, SupportsIndex

from fiberjax.tasks.examples import Example
from fiberjax.tasks.rewards import Verifier


class ExampleSource(Protocol):
    """Random access to examples: what grain asks of a source."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: SupportsIndex) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Domain:
    """A set of prompts that share a verifier, a domain budget and a row in every table.

    Attributes:
      name: unique among the domains of a run.
      source: its examples, by index.
      verify: (prompt, answer, completion) -> reward.
    """

    name: str
    source: ExampleSource
    verify: Verifier


class Examples(Sequence[Example]):
    """All domains' examples in one sequence; ``prompt_index`` counts along it.

    Attributes:
      sizes: number of examples of each domain.
      offsets: position of each domain's first example.
    """

    def __init__(self, domains: Sequence[Domain]):
        names = [domain.name for domain in domains]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"domains are {names}, expected at least one and distinct names")
        self.domains = tuple(domains)
        self.sizes = tuple(len(domain.source) for domain in domains)
        for name, size in zip(names, self.sizes, strict=True):
            if size == 0:
                raise ValueError(f"domain {name!r} has no examples")
        self.offsets = tuple(sum(self.sizes[:i]) for i in range(len(self.sizes)))

    def __len__(self) -> int:
        return sum(self.sizes)

    def domain_of(self, index: int) -> int:
        """Returns the position, in ``domains``, of the domain that example ``index`` is from."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return max(d for d, offset in enumerate(self.offsets) if offset <= index)

    def __getitem__(self, index):
        """Returns one example by its ``prompt_index``."""
        index = int(index)
        domain = self.domain_of(index)
        return self.domains[domain].source[index - self.offsets[domain]]

    def __iter__(self) -> Iterator[Example]:
        for domain, size in zip(self.domains, self.sizes, strict=True):
            for index in range(size):
                yield domain.source[index]

    def __repr__(self) -> str:
        parts = (f"{d.name}={n}" for d, n in zip(self.domains, self.sizes, strict=True))
        return f"Examples({', '.join(parts)})"
