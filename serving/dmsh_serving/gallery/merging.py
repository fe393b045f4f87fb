"""The part that a change of a gallery writes: as large as the change, now and then with older parts merged into it.

Each part weighs at most half as much as the part below it: a new part absorbs the parts on top of the chain that are
lighter than twice its own weight. So a gallery of N codes has at most log2(N) parts, and each code is written again at
most log2(N) times. Once a quarter of the rows is removed, the whole gallery is written again without them.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from dmsh_serving.gallery.keys import joined_keys
from dmsh_serving.gallery.part import CLUSTERED, Ids, Part
from dmsh_serving.gallery.snapshot import Snapshot
from dmsh_serving.hamming.clustered import cluster
from dmsh_serving.hamming.layout import choose_layout

__all__ = ["compacted", "grown", "laid_out", "plain_part"]

_REMOVED_SHARE: Final = 0.25


def grown(old: Snapshot, added: Part, removed: Ids) -> Part:
    """Return the part that adds ``added`` to a version and removes its rows ``removed`` (M,) int64, ascending."""
    keep, weight = len(old.parts), max(1, added.count + removed.size)
    while keep and old.parts[keep - 1].weight < 2 * weight:
        keep -= 1
        weight += old.parts[keep].weight
    gone = removed.size + sum(part.removed.size for part in old.parts)
    if gone > _REMOVED_SHARE * old.starts[-1]:
        keep = 0
    return merged(old, keep, added, removed)


def compacted(old: Snapshot) -> Part:
    """Return one part that holds all of a version."""
    contents = old.contents()
    return laid_out(plain_part(Part(old.bits, old.fingerprint, contents.codes, contents.ids, keys=contents.keys)))


def merged(old: Snapshot, keep: int, added: Part, removed: Ids) -> Part:
    """Return the part that stands on the lowest ``keep`` parts and absorbs the others."""
    kept_rows = old.starts[keep]
    sources: list[tuple[Part, Ids]] = []
    gone = dict(old.split(removed))
    for index in range(keep, len(old.parts)):
        rows = old.live_rows(index)
        if index in gone:
            rows = np.setdiff1d(rows, gone[index], assume_unique=True)
        sources.append((old.parts[index], rows))
    sources.append((added, np.arange(added.count)))
    ids = np.concatenate([part.ids_of(rows) for part, rows in sources])
    codes = np.concatenate([part.codes_of(rows) for part, rows in sources])
    keyed = [part.keys.take(rows) for part, rows in sources if part.keys is not None]
    order = np.argsort(ids)
    below = np.sort(np.concatenate([removed, *(part.removed for part in old.parts[keep:])]))
    part = Part(
        old.bits,
        old.fingerprint,
        codes[order],
        ids[order],
        keys=joined_keys(keyed).take(order) if keyed and len(ids) else None,
        removed=below[: np.searchsorted(below, kept_rows)],
        base=old.names[keep - 1] if keep else None,
        layout_reason="a part on top of others is searched in row order",
    )
    return plain_part(part) if keep else laid_out(plain_part(part))


def plain_part(part: Part) -> Part:
    """Return a plain part, without its ids if they are a range."""
    ids = part.ids
    if ids is None or (ids.size and int(ids[-1]) - int(ids[0]) != ids.size - 1):
        return part
    return replace(part, ids=None, first_id=int(ids[0]) if ids.size else 0)


def laid_out(part: Part) -> Part:
    """Return a plain part that stands on no other, brought into the layout in which its codes are searched fastest."""
    choice = choose_layout(part.codes)
    part = replace(part, layout_reason=choice.reason, distinct=choice.distinct)
    if choice.layout != CLUSTERED:
        return part
    clusters = cluster(part.codes, part.ids_of(np.arange(part.count)))
    keys = None if part.keys is None else part.keys.take(part.rows_of(clusters.ids.astype(np.int64)))
    return replace(part, codes=clusters.codes, ids=clusters.ids, first_id=0, starts=clusters.starts, keys=keys)
