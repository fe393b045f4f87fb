"""Labels of one class or of several, and which images are relevant to a query."""

import numpy as np
import numpy.typing as npt

__all__ = ["Labels", "Relevance", "labels_problem", "relevance", "relevance_of_ids"]

Labels = npt.NDArray[np.int64] | npt.NDArray[np.uint8]
"""(N,) int64 classes, or (N, C) uint8 multi-hot, 1 where the image has the label."""

Relevance = npt.NDArray[np.bool_]


def relevance(query_labels: Labels, labels: Labels) -> Relevance:
    """Return (Q, N) bool: images of the query's class, or, multi-hot, that share at least one label with it.

    Args:
        query_labels: (Q,) int64, or (Q, C) uint8.
        labels: (N,) int64, or (N, C) uint8.
    """
    if query_labels.ndim == 1:
        return np.asarray(query_labels[:, None] == labels[None, :])
    # Counts of shared labels: whole numbers far below 2^24, so exact in float32, and one matrix product.
    return np.asarray(query_labels.astype(np.float32) @ labels.astype(np.float32).T > 0)


def relevance_of_ids(ids: npt.NDArray[np.integer], query_labels: Labels, labels: Labels) -> Relevance:
    """Return (Q, n) bool, the relevance of the answers ``ids`` (Q, n), rows of the database; -1 is padding."""
    answered = labels[ids]
    if query_labels.ndim == 1:
        shared = answered == query_labels[:, None]
    else:
        shared = (answered & query_labels[:, None, :]).any(axis=2)
    return np.asarray(shared & (ids >= 0))


def labels_problem(query_labels: Labels, labels: Labels) -> str | None:
    """Return what is wrong with two sets of labels that are to be compared, or None."""
    for name, array in (("query", query_labels), ("database", labels)):
        kind = array.dtype.kind
        if not (array.ndim == 1 and kind in "iu") and not (array.ndim == 2 and array.dtype == np.uint8):
            return f"{name} labels {array.dtype} {list(array.shape)} must be int64 [N], or multi-hot uint8 [N, C]"
    if query_labels.shape[1:] != labels.shape[1:]:
        return f"query labels {list(query_labels.shape)} and database labels {list(labels.shape)} differ in their form"
    return None
