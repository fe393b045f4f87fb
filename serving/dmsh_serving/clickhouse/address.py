"""Where a gallery in ClickHouse is: ``clickhouse://[user@]host[:port]/database/gallery[?option=value]``.

``chdb:///folder/database/gallery`` is the same inside this process: the package chdb-core is ClickHouse as a library.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from dmsh_serving.errors import InputError

__all__ = ["PASSWORD", "Address", "is_address"]

PASSWORD: Final = "DMSH_CLICKHOUSE_PASSWORD"
_SERVER, _EMBEDDED = "clickhouse", "chdb"
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")
_LOCAL: Final = "_local"
_OPTIONS: Final = {"secure", "ca", "cluster", "timeout"}
_FORM: Final = "clickhouse://[user@]host[:port]/database/gallery"
_DEFAULT_TIMEOUT_SECONDS: Final = 30


@dataclass(frozen=True)
class Address:
    """The place of one gallery; :meth:`parse` makes it from text, ``str`` gives the text back.

    Attributes:
        database: name of the database.
        gallery: name of the gallery in it.
        folder: folder of an embedded ClickHouse; None for a server.
        host, port, user: of the server's HTTP interface; port None takes 8123, or 8443 if ``secure``.
        secure: TLS; ``ca`` is a file of the certificate authorities to trust instead of the system's.
        cluster: name of the cluster that the tables are spread over; None for one server.
        timeout: seconds after which a search is given up.
    """

    database: str
    gallery: str
    folder: Path | None = None
    host: str = "localhost"
    port: int | None = None
    user: str = "default"
    secure: bool = False
    ca: str | None = None
    cluster: str | None = None
    timeout: int = _DEFAULT_TIMEOUT_SECONDS

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read an address.

        Raises:
            InputError: not one; the message says what is wrong.
        """
        wrong = f"{text} is no address of a gallery"
        try:
            parts = urlsplit(text)
            port, password = parts.port, parts.password
        except ValueError as error:
            raise InputError(f"{wrong}: {error}; write {_FORM}") from None
        if password is not None:
            raise InputError(
                f"{text.replace(password, '***')} holds a password, which others can read in lists of processes and in "
                f"configurations: put it into the environment variable {PASSWORD}"
            )
        folders = parts.path.strip("/").split("/")
        names = folders[-2:]
        if parts.scheme not in (_SERVER, _EMBEDDED) or len(names) != 2:
            raise InputError(f"{wrong}: write {_FORM}")
        for name in names:
            _check_name(name, wrong)
        if names[1].endswith(_LOCAL):
            raise InputError(
                f"{wrong}: {names[1]!r} ends in {_LOCAL}, which names another gallery's tables on a cluster"
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(options.keys() - _OPTIONS):
            raise InputError(f"{wrong}: it has no option {unknown[0]}, it has {', '.join(sorted(_OPTIONS))}")
        cluster = options.get("cluster")
        if cluster is not None:
            _check_name(cluster, wrong)
        timeout = options.get("timeout", str(_DEFAULT_TIMEOUT_SECONDS))
        if not timeout.isascii() or not timeout.isdigit() or not 1 <= int(timeout) <= 3600:
            raise InputError(f"{wrong}: timeout={timeout} is not a number of seconds from 1 to 3600")
        if options.get("secure", "0") not in ("0", "1"):
            raise InputError(f"{wrong}: write secure=1 for TLS, got secure={options['secure']}")
        if parts.scheme == _EMBEDDED:
            if parts.netloc or len(folders) < 3 or set(options) - {"timeout"}:
                raise InputError(f"{wrong}: write chdb:///folder/database/gallery, with no option but timeout")
            return cls(names[0], names[1], folder=Path("/", *folders[:-2]), timeout=int(timeout))
        if not parts.hostname or len(folders) != 2:
            raise InputError(f"{wrong}: write {_FORM}")
        return cls(
            names[0],
            names[1],
            host=parts.hostname,
            port=port,
            user=unquote(parts.username or "default"),
            secure=options.get("secure") == "1",
            ca=options.get("ca"),
            cluster=cluster,
            timeout=int(timeout),
        )

    @property
    def password(self) -> str:
        """The password of the user, from the environment."""
        return os.environ.get(PASSWORD, "")

    def __str__(self) -> str:
        options = {} if self.timeout == _DEFAULT_TIMEOUT_SECONDS else {"timeout": str(self.timeout)}
        if self.folder is not None:
            return _text(f"{_EMBEDDED}://{self.folder}/{self.database}/{self.gallery}", options)
        options |= {"secure": "1"} if self.secure else {}
        options |= {name: value for name, value in (("ca", self.ca), ("cluster", self.cluster)) if value}
        user = "" if self.user == "default" else f"{quote(self.user, safe='')}@"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return _text(f"{_SERVER}://{user}{host}{port}/{self.database}/{self.gallery}", options)


def _text(place: str, options: dict[str, str]) -> str:
    return f"{place}?{urlencode(options, safe='/')}" if options else place


def is_address(text: str) -> bool:
    """Say whether ``text`` means a gallery in ClickHouse rather than a folder."""
    return text.startswith((f"{_SERVER}:", f"{_EMBEDDED}:"))


def _check_name(name: str, wrong: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"{wrong}: {name!r} must be 1 to 48 lower-case letters, digits and _, a letter first")
