"""One ClickHouse, asked in SQL: deadlines, retries of what only reads, a breaker, and errors that say what to do."""

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any, Final, TypeVar

from dmsh_serving.clickhouse.address import PASSWORD, Address
from dmsh_serving.clickhouse.breaker import Breaker
from dmsh_serving.errors import DmshError, InputError, MissingError, UnavailableError

__all__ = ["PATIENT_SECONDS", "Connection"]

PATIENT_SECONDS: Final = 3600
OLDEST: Final = (24, 8)
_CONNECT_SECONDS: Final = 5
_AGAIN_SECONDS: Final = 1.0
_MARGIN_SECONDS: Final = 2  # after which the server's own deadline should have been told
_Answer = TypeVar("_Answer")

# https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp
_NOT_NOW: Final = {
    159: "it took longer than its deadline",
    160: "it took longer than its deadline",
    202: "it has too many queries at once",
    209: "a socket timed out",
    210: "a shard does not answer",
    241: "it has not enough memory",
    242: "a table cannot be written to, its Keeper is away",
    252: "it merges parts more slowly than they are written",
    279: "a shard does not answer",
    999: "its Keeper is away",
}
_GONE: Final = {60, 81}  # unknown table, unknown database
_OTHER_COLUMNS: Final = {8, 10, 16, 47}  # no such column in a table, in a file, in a block, in a query
# A profile's limits must be errors too: some of these may say ``break``, which cuts an answer short. An asynchronous
# insert, newer servers' default, is not told apart from its repetition.
_ALWAYS: Final = {
    "skip_unavailable_shards": 0,
    "async_insert": 0,
    "insert_deduplicate": 1,
    "limit": 0,  # a profile's own would cut every answer
    "offset": 0,
    **dict.fromkeys(
        (f"{limit}_overflow_mode" for limit in ("timeout", "read", "set", "sort", "result", "transfer")), "throw"
    ),
    **dict.fromkeys((f"{limit}_overflow_mode_leaf" for limit in ("timeout", "read")), "throw"),
}
_FORBIDDEN: Final = {192, 193, 194, 497, 516}


class Connection:
    """A client of the ClickHouse at ``address``, opened when it is first asked. Several threads may use it.

    Args:
        address: where the gallery is.
        timeout: seconds per statement; None takes the address's.

    Raises (every method):
        UnavailableError: it does not answer, a shard of it does not, or it did not a moment ago.
        InputError: it refuses: no such table, no permission, a version that is too old.
        MissingError: the package of the client is not installed.
    """

    def __init__(self, address: Address, *, timeout: int | None = None) -> None:
        self.address = address
        self.timeout = timeout or address.timeout
        self._breaker = Breaker()
        self._lock = threading.Lock()
        self._client: Any = None

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a later statement opens it again."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def columns(self, sql: str, **settings: object) -> list[Sequence[Any]]:
        """Return the columns of a query's result; none if it has no rows. It only reads, so it is tried twice."""
        asked = self._settings(**settings)
        found: list[Sequence[Any]] = self._ask(
            lambda client: client.query(sql, settings=asked, column_oriented=True).result_columns, tries=2
        )
        return found

    def value(self, sql: str) -> Any:
        """Return the one value of a query's result."""
        (column,) = self.columns(sql)
        return column[0]

    def run(self, sql: str, **settings: object) -> None:
        """Run a statement that changes something, once."""
        self._ask(lambda client: client.command(sql, settings=self._settings(**settings)), tries=1)

    def insert(self, table: str, rows: Any, **settings: object) -> None:
        """Insert a ``pyarrow.Table`` as one block, once."""
        self._ask(lambda client: client.insert_arrow(table, rows, settings=self._settings(**settings)), tries=1)

    def blocks(self, sql: str) -> Iterator[Any]:
        """Yield the result of a query as pyarrow record batches, the server's blocks: memory is bounded by them."""
        stream = self._ask(lambda client: client.query_arrow_stream(sql, settings=self._settings()), tries=2)
        with self._told(), stream:
            yield from stream

    def _settings(self, **own: object) -> dict[str, Any]:
        always: dict[str, object] = {**_ALWAYS, "max_execution_time": self.timeout}
        if self.address.cluster is not None:
            always |= {"max_replica_delay_for_distributed_queries": 1, "distributed_foreground_insert": 1}
            always |= {"fallback_to_stale_replicas_for_distributed_queries": 0}
        return always | own

    def _ask(self, ask: Callable[[Any], _Answer], *, tries: int) -> _Answer:
        if not self._breaker.allows():
            raise UnavailableError(
                f"{self.address} did not answer a moment ago ({self._breaker.reason}): it is tried again by itself"
            )
        start = time.monotonic()
        while True:
            tries -= 1
            try:
                with self._told():
                    answer = ask(self._opened())
            except UnavailableError as error:
                if tries and time.monotonic() < start + _AGAIN_SECONDS:  # else its deadline is over
                    continue
                self._breaker.failed(_reason(error.__cause__ or error))
                raise
            except DmshError:
                self._breaker.answered()  # that it refuses
                raise
            self._breaker.answered()
            return answer

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the client raises into one line that says what to do."""
        try:
            yield
        except DmshError:
            raise
        except ImportError as error:
            raise MissingError(
                f"{error.name or error} is not installed: pip install 'dmsh-toolkit[clickhouse]'"
                + (" chdb-core" if self.address.folder is not None else "")
            ) from error
        except Exception as error:  # the client's, and those of urllib3, ssl and chdb beneath it
            raise self._error(error) from error

    def _error(self, error: Exception) -> DmshError:
        code = getattr(error, "code", None)
        text = _reason(error)
        if code in _GONE:
            return InputError(f"{self.address} is not there, or was dropped: make it with dmsh-serve gallery push")
        if code in _OTHER_COLUMNS:
            return InputError(
                f"{self.address}: a table there has other columns than are needed, from another tool or from a push of "
                f"other codes that was not finished ({text.partition(' In scope ')[0]}): drop it, or use another name"
            )
        if code in _FORBIDDEN:
            return InputError(f"{self.address} refuses the user {self.address.user}: give it rights, or set {PASSWORD}")
        if code is None or code in _NOT_NOW:
            return UnavailableError(f"{self.address} does not answer: {_NOT_NOW.get(code or 0, text)}")
        return InputError(f"{self.address} refuses a statement: {text}")

    def _opened(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._open()
            return self._client

    def _open(self) -> Any:
        import clickhouse_connect

        logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)  # it raises what it logs, and so do we
        address = self.address
        if address.ca is not None and not Path(address.ca).is_file():
            raise InputError(f"{address}: {address.ca} is not there: ca names a file of certificates to trust")
        if address.folder is not None:
            client = clickhouse_connect.get_client(interface="chdb", path=str(address.folder))
        else:
            client = clickhouse_connect.get_client(
                host=address.host,
                port=address.port,
                username=address.user,
                password=address.password,
                secure=address.secure,
                ca_cert=address.ca,
                connect_timeout=_CONNECT_SECONDS,
                send_receive_timeout=self.timeout + _MARGIN_SECONDS,
                autogenerate_session_id=False,  # a session would answer one query at a time
            )
        found = tuple(int(part) for part in str(client.server_version).split(".")[:2])
        if found < OLDEST:
            client.close()
            needed = ".".join(map(str, OLDEST))
            raise InputError(f"{address} is ClickHouse {client.server_version}: {needed} or later is needed")
        return client


def _reason(error: BaseException) -> str:
    """Return what is beneath a client's error, in one line: its own text holds all settings of the request."""
    cause: BaseException | None = error if getattr(error, "code", None) is None else None  # else the server's answer
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    text = getattr(cause, "strerror", None) or str(cause or error)
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        text = "it speaks no TLS on this port: leave out secure=1, or name its port for HTTPS"
    if isinstance(cause, RemoteDisconnected):
        text += " (if this is a port for HTTPS, add ?secure=1)"
    return " ".join(text.split())[:300]
