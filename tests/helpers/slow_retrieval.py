"""Every retrieval metric, one query and one image at a time, as with a pencil; and cases to try."""

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st


def distance(left, right):
    return sum(int(a ^ b).bit_count() for a, b in zip(left, right, strict=True))


def alike(query_label, label):
    """The same class, or, of multi-hot rows, one label in common."""
    if getattr(query_label, "ndim", 0) == 0:
        return query_label == label
    return any(a and b for a, b in zip(query_label, label, strict=True))


def mean(values):
    values = list(values)
    return float(sum(values, Fraction(0)) / len(values))


class Answer:
    """One query's whole answer: pairs of (distance, relevant) in ranked order."""

    def __init__(self, query, codes, query_label, labels, ties):
        found = [(distance(query, codes[row]), bool(alike(query_label, labels[row])), row) for row in range(len(codes))]
        self.ranked = sorted(found, key={
            "row": lambda item: (item[0], item[2]),
            "relevant last": lambda item: (item[0], item[1]),
            "relevant first": lambda item: (item[0], not item[1]),
        }[ties])  # fmt: skip
        self.relevant = sum(relevant for _, relevant, _ in self.ranked)

    def precision_sum(self, k):
        hits, total = 0, Fraction(0)
        for rank, (_, relevant, _) in enumerate(self.ranked[:k], 1):
            if relevant:
                hits += 1
                total += Fraction(hits, rank)
        return total

    def hits(self, k):
        return sum(relevant for _, relevant, _ in self.ranked[:k])

    def over_found(self, k):
        return self.precision_sum(k) / self.hits(k) if self.hits(k) else Fraction(0)

    def over_possible(self, k):
        return self.precision_sum(k) / min(k, self.relevant) if self.relevant else Fraction(0)

    def precision(self, k):
        return Fraction(self.hits(k), min(k, len(self.ranked)))

    def recall(self, k):
        return Fraction(self.hits(k), self.relevant) if self.relevant else Fraction(0)

    def within(self, radius):
        """Relevance of the images within ``radius``."""
        return [relevant for away, relevant, _ in self.ranked if away <= radius]


def answers(query_codes, database_codes, query_labels, database_labels, ties="row"):
    return [
        Answer(code, database_codes, label, database_labels, ties)
        for code, label in zip(query_codes, query_labels, strict=True)
    ]


@st.composite
def retrievals(draw):
    """Codes and labels of queries and a database: many ties or few, one label each or several, or none."""
    seed, queries, database, width = (draw(st.integers(0, 10**6)), *(draw(st.integers(1, n)) for n in (8, 30, 11)))
    random = np.random.default_rng(seed)
    high = 2 if draw(st.booleans()) else 256

    def labels(count):
        return random.integers(0, 3, count) if single else (random.random((count, 5)) < 0.3).astype(np.uint8)

    single = draw(st.booleans())
    return (
        random.integers(0, high, (queries, width), np.uint8),
        random.integers(0, high, (database, width), np.uint8),
        labels(queries),
        labels(database),
    )


def random_arrays(queries, database, width=8):
    random = np.random.default_rng(0)
    return (
        random.integers(0, 256, (queries, width), np.uint8),
        random.integers(0, 256, (database, width), np.uint8),
        random.integers(0, 3, queries),
        random.integers(0, 3, database),
    )
