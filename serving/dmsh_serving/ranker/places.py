"""Where a ranker's gallery is: a folder, or tables in ClickHouse. Both give versions that are searched alike."""

from pathlib import Path
from typing import Protocol

from dmsh_serving import gallery
from dmsh_serving.clickhouse.address import Address
from dmsh_serving.clickhouse.catalogue import current
from dmsh_serving.clickhouse.connection import Connection
from dmsh_serving.clickhouse.schema import Tables
from dmsh_serving.clickhouse.search import open_remote
from dmsh_serving.ranker.engine import Engine

__all__ = ["Place", "place_of"]


class Place(Protocol):
    """A gallery whose current version can be followed; ``str`` names it."""

    def named_version(self) -> str | None:
        """Return the version that should serve, None if that cannot be told."""

    def current_version(self) -> str:
        """Return the version that should serve; cheap enough to watch."""

    def open_current(self, *, fingerprint: str, bits: int, known: Engine | None) -> Engine:
        """Open the version that should serve; ``known`` is the one before it."""

    def open_sound(self, *, fingerprint: str, bits: int) -> tuple[Engine, Exception | None]:
        """Open the version that should serve or, if it is damaged, one before it, and say why."""


def place_of(place: Path | Address) -> Place:
    """Return the gallery at ``place``."""
    return _Folder(place) if isinstance(place, Path) else _Remote(place)


class _Folder:
    """A gallery folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def named_version(self) -> str | None:
        return gallery.named_version(self._folder)

    def current_version(self) -> str:
        return gallery.current_version(self._folder)

    def open_current(self, *, fingerprint: str, bits: int, known: Engine | None) -> Engine:
        shared = known if isinstance(known, gallery.Snapshot) else None
        return gallery.open_current(self._folder, fingerprint=fingerprint, bits=bits, known=shared)

    def open_sound(self, *, fingerprint: str, bits: int) -> tuple[Engine, Exception | None]:
        return gallery.open_sound(self._folder, fingerprint=fingerprint, bits=bits)


class _Remote:
    """A gallery in ClickHouse. Its looks and its searches have a breaker each: neither is counted for the other."""

    def __init__(self, address: Address) -> None:
        self._address, self._tables = address, Tables(address)
        self._looks, self._searches = Connection(address), Connection(address)

    def __str__(self) -> str:
        return str(self._address)

    def named_version(self) -> str | None:
        return None

    def current_version(self) -> str:
        return current(self._looks, self._tables).version

    def open_current(self, *, fingerprint: str, bits: int, known: Engine | None) -> Engine:
        return open_remote(self._address, fingerprint=fingerprint, bits=bits, connection=self._searches)

    def open_sound(self, *, fingerprint: str, bits: int) -> tuple[Engine, Exception | None]:
        return self.open_current(fingerprint=fingerprint, bits=bits, known=None), None
