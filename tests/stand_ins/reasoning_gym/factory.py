"""One data set by name: `doubling` asks for twice a number below `largest`."""

import random


class Doubling:
    def __init__(self, *, size, seed, largest=10**6):
        assert largest >= 1, "largest must be at least 1"
        self.size, self.seed, self.largest = size, seed, largest

    def __getitem__(self, index):
        number = random.Random(self.seed + index).randrange(self.largest)
        metadata = {"source_dataset": "doubling", "source_index": index, "number": number}
        answer = None if number % 7 == 0 else str(2 * number)
        return {"question": f"Twice {number}?", "answer": answer, "metadata": metadata}


DATASETS = {"doubling": Doubling}


def create_dataset(name, **options):
    return DATASETS[name](**options)


def get_score_answer_fn(name):
    assert name in DATASETS

    def score(answer, entry):
        """As many scorers do, a little for a number that is wrong, and a crash for `boom`."""
        if answer == "boom":
            raise RuntimeError("boom")
        right = str(2 * entry["metadata"]["number"])
        return 1.0 if answer == right else 0.01 * answer.isdigit()

    return score
