"""The right to change a gallery: one writer at a time has it, and loses it a minute after its last sign of life.

A lease is a row with a term. A writer takes the next term by an insert whose token names it: of two such inserts the
server keeps one. A writer that was killed is in nobody's way for longer than its lease.
"""

import contextlib
import secrets
import threading
import time
from types import TracebackType
from typing import Final

from dmsh_serving.clickhouse.catalogue import quoted
from dmsh_serving.clickhouse.connection import Connection
from dmsh_serving.clickhouse.schema import Tables
from dmsh_serving.errors import DmshError, InputError

__all__ = ["Lease"]

_SECONDS: Final = 60
_RENEWED_AFTER: Final = 15


class Lease:
    """``with Lease(tables) as lease``: a thread extends it while the writer works, whose statements may take minutes.

    The thread has a connection of its own with a search's deadline, so that nobody who waits for it waits an hour.

    Raises:
        InputError: another process changes the gallery.
        UnavailableError: ClickHouse does not answer.
    """

    def __init__(self, tables: Tables) -> None:
        self._connection, self._tables = Connection(tables.address), tables
        self._owner = secrets.token_hex(8)
        self._term = 0
        self._begun = False
        self._done = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        try:
            self._take()
        except BaseException:
            self._connection.close()
            raise
        self._keeper.start()
        return self

    def _take(self) -> None:
        term, _, left = self._newest()
        if left > 0:
            raise InputError(
                f"{self._tables.address} is being changed by another process: try again when it is done; if it was "
                f"killed, in {left:.0f} s"
            )
        self._term = term + 1
        self._write(_SECONDS)
        self.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._keeper.join()
        # What was done is done, and what went wrong is told already: a lease that cannot be given back runs out.
        with contextlib.suppress(DmshError):
            self._write(0)
        self._connection.close()

    def check(self) -> None:
        """Raise :class:`InputError` if another process has taken the lease over, or it has run out."""
        term, owner, left = self._newest()
        if (term, owner) != (self._term, self._owner) or left <= 0:
            raise InputError(f"{self._tables.address} is being changed by another process: do it again")

    def _keep(self) -> None:
        while not self._done.wait(_RENEWED_AFTER):
            with contextlib.suppress(DmshError):  # the server may answer again before the lease has run out
                self.check()
                self._write(_SECONDS)

    def _write(self, seconds: int) -> None:
        # Only the row that begins a term can be refused as a repetition.
        token = f"{self._tables.address.gallery} {self._term}" + (f" {time.time_ns()}" if self._begun else "")
        gallery, owner = quoted(self._tables.address.gallery), quoted(self._owner)
        self._connection.run(
            f"INSERT INTO {self._tables.leases} (gallery, term, owner, until) "
            f"SELECT {gallery}, {self._term}, {owner}, now64(6) + toIntervalSecond({seconds})",
            insert_deduplication_token=token,
        )
        self._begun = True

    def _newest(self) -> tuple[int, str, float]:
        """Return the newest term, its owner, and the seconds that are left of it."""
        columns = self._connection.columns(
            "SELECT term, owner, dateDiff('millisecond', now64(6), until) "
            f"FROM {self._tables.leases} WHERE gallery = {quoted(self._tables.address.gallery)} "
            "ORDER BY term DESC, written DESC LIMIT 1"
        )
        if not columns:
            return 0, "", 0.0
        (term,), (owner,), (left,) = columns
        return int(term), str(owner), int(left) / 1000
