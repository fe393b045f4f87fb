"""Galleries: folders of codes, ids and keys in immutable versions, and search in them.

Typical use::

    from dmsh_serving import gallery
    gallery.build(folder, codes, ids=None, keys=names, bits=64, fingerprint=fingerprint)
    distances, ids = gallery.open_current(folder).search(queries, k=10)
"""

from dmsh_serving.gallery.changes import append, build, compact, merge, remove
from dmsh_serving.gallery.folder import CURRENT, current_version, named_version, open_current
from dmsh_serving.gallery.rollback import open_sound, rollback
from dmsh_serving.gallery.snapshot import SearchResult, Snapshot

__all__ = [
    "CURRENT",
    "SearchResult",
    "Snapshot",
    "append",
    "build",
    "compact",
    "current_version",
    "merge",
    "named_version",
    "open_current",
    "open_sound",
    "remove",
    "rollback",
]
