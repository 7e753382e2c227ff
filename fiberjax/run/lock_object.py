"""A lock as an object of a bucket, where there is neither rename nor `flock`: see `lock`.

Every change of it names the generation that it changes, which the bucket compares in the same
moment: of several processes one creates it, and one takes over what it has seen dead; an owner
whose lock was taken over changes nothing any more, and learns of it at its next heartbeat.
"""

from pathlib import Path

from fiberjax import buckets


class Object:
    """The object of a lock that this process holds."""

    def __init__(self, path: Path, generation: int):
        self._path, self._generation = path, generation

    def beat(self, content: bytes) -> bool:
        """Writes a heartbeat; False where the lock is this one's no more."""
        changed = buckets.put(self._path, content, expected=self._generation)
        if changed is not None:
            self._generation = changed
        return changed is not None

    def remove(self) -> None:
        """Removes the lock, if it is still this one's."""
        buckets.drop(self._path, expected=self._generation)


def create(path: Path, content: bytes) -> Object | None:
    """Makes the lock; None where there is one."""
    generation = buckets.put(path, content, expected=buckets.ABSENT)
    return None if generation is None else Object(path, generation)


def read(path: Path) -> bytes | None:
    """What the lock says; None where there is none."""
    found = buckets.see(path)
    return None if found is None else found.content


def remove(path: Path, content: bytes) -> None:
    """Removes a lock that says just this, and no other."""
    found = buckets.see(path)
    if found is not None and found.content == content:
        buckets.drop(path, expected=found.generation)
