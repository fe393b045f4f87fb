"""A version of the gallery in this process: codes, ids and keys side by side, in ascending id order."""

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving import gallery
from dmsh_serving.codes import Codes
from dmsh_serving.contract import PAD_KEY
from dmsh_serving.errors import InputError
from dmsh_serving.gallery.folder import current_version, open_version
from dmsh_serving.gallery.header import is_version
from dmsh_serving.gallery.keys import Keys

__all__ = ["VERSIONS_HELD", "Collection", "GalleryFolder", "Places", "Words", "words_of"]

VERSIONS_HELD: Final = 3  # a reader that scrolls goes on in the version it began with
_REFUSED_SECONDS: Final = 2.0
_log = logging.getLogger(__name__)

Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
"""Indices into a collection's arrays."""


@dataclass(frozen=True)
class Collection:
    """N images.

    Attributes:
        version: of the gallery.
        bits, fingerprint: the code space.
        ids: (N,) int64, ascending.
        codes: (N, ceil(bits/8)) uint8.
        keys: N strings, or None.
    """

    version: str
    bits: int
    fingerprint: str
    ids: npt.NDArray[np.int64]
    codes: Codes
    keys: Keys | None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def words(self) -> Words:
        """The codes as (N, ceil(bits/64)) uint64, zero-padded: one operation compares 64 bits."""
        return words_of(self.codes)

    def key_at(self, place: int) -> str:
        """Return the key of the image at ``place``; empty in a gallery without keys."""
        return PAD_KEY if self.keys is None else self.keys[place]

    def place_of_id(self, number: int) -> int | None:
        """Return where the image ``number`` is, or None."""
        place = int(np.searchsorted(self.ids, number))
        return place if place < len(self) and self.ids[place] == number else None

    def place_of_key(self, key: str) -> int | None:
        """Return where the image with this key is, the lowest id if there are several, or None."""
        if self.keys is None:
            return None
        hashes, order = self._hashes
        wanted = hash(key)
        first = int(np.searchsorted(hashes, wanted))
        while first < len(hashes) and hashes[first] == wanted:
            place = int(order[first])
            if self.keys[place] == key:
                return place
            first += 1
        return None

    @property
    def are_keys_hashed(self) -> bool:
        """Whether :meth:`place_of_key` answers at once; else its first call takes a second per million keys."""
        return self.keys is None or "_hashes" in vars(self)

    def places_of_ids(self, ids: npt.NDArray[np.int64]) -> Places:
        """Return the places, ascending, of those of ``ids`` (M,) that are here."""
        wanted = np.unique(ids)
        places = np.searchsorted(self.ids, wanted)
        there = places < len(self)
        there[there] = self.ids[places[there]] == wanted[there]
        return places[there]

    @cached_property
    def _hashes(self) -> tuple[npt.NDArray[np.int64], Places]:
        """Return the keys' hashes, ascending, and where each is: 16 bytes per key, if a dict takes over 100."""
        found = np.fromiter(map(hash, self.keys or ()), np.int64, len(self))
        order = np.argsort(found, kind="stable")
        return found[order], order


def words_of(codes: Codes) -> Words:
    """Return codes (N, B) uint8 as (N, ceil(B/8)) uint64."""
    missing = -codes.shape[1] % 8
    padded = np.pad(codes, [(0, 0), (0, missing)]) if missing else np.ascontiguousarray(codes)
    return padded.view(np.uint64)


class GalleryFolder:
    """The gallery in ``folder``, whose versions are opened as Triton's ranker opens them: checked whole.

    A version that cannot be used leaves the one before it in use, as at Triton, and is tried again after a while. One
    of another model waits as long as the one before has the fingerprint that is ``served``.

    Raises:
        InputError: no gallery there, or no version of it is sound.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.served: str | None = None
        self._lock = threading.Lock()
        self._snapshot: gallery.Snapshot | None = None
        self._held: OrderedDict[str, Collection] = OrderedDict()
        self._refused_until = 0.0
        self._refused: str | None = ""  # the version whose refusal was told last; None if the pointer names none
        self._last = self._hold(gallery.open_sound(folder)[0])

    def current(self) -> Collection:
        """Return the version that the gallery's pointer names now, or the one before it while that cannot be used.

        While one caller opens a version, the others go on with the one before.
        """
        named = None
        try:
            named = current_version(self.folder)
            found = self._held.get(named)
            if found is None:
                if time.monotonic() < self._refused_until or not self._lock.acquire(blocking=False):
                    return self._last
                try:
                    found = self._held.get(named)  # it may just have been opened
                    if found is None:
                        found = self._hold(gallery.open_current(self.folder, known=self._snapshot))
                finally:
                    self._lock.release()
            if found.fingerprint != self.served == self._last.fingerprint:
                raise InputError(f"version {named} belongs to another model than the Triton serves")
            self._last, self._refused = found, ""
        except (InputError, OSError) as error:
            self._refused_until = time.monotonic() + _REFUSED_SECONDS  # to look at a large one takes a second
            if named != self._refused:
                self._refused = named
                _log.warning("gallery %s: %s; the page goes on with version %s", self.folder, error, self._last.version)
        return self._last

    def held(self, version: str) -> Collection | None:
        """Return a version that is open already, or None; never touches the disk."""
        return self._held.get(version)

    def at(self, version: str) -> Collection | None:
        """Return one version, or None if its files are gone.

        Raises:
            InputError: ``version`` can name none: it becomes a part of a path.
        """
        if not is_version(version):
            raise InputError(f"{version!r} is no version of a gallery")
        with self._lock:
            held = self._held.get(version)  # who waited finds what was opened meanwhile
            if held is not None:
                return held
            try:
                return self._hold(open_version(self.folder, version, self._snapshot))
            except FileNotFoundError:
                return None

    def _hold(self, snapshot: gallery.Snapshot) -> Collection:
        if snapshot.version not in self._held:
            contents = snapshot.contents()
            self._held[snapshot.version] = Collection(
                snapshot.version, snapshot.bits, snapshot.fingerprint, contents.ids, contents.codes, contents.keys
            )
            while len(self._held) > VERSIONS_HELD:
                del self._held[next(version for version in self._held if version != self._last.version)]
            if self._snapshot is None or snapshot.version > self._snapshot.version:
                self._snapshot = snapshot
        return self._held[snapshot.version]
