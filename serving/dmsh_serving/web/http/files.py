"""The page's own files, all in memory: what a request names is looked up, and never joined to a path."""

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from dmsh_serving.web.http.problems import ProblemError

__all__ = ["OwnFiles"]

_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": "application/json"}
_FOREVER: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class OwnFiles:
    """The files of the folder ``static``, by name, under an address that changes with their content."""

    content: dict[str, bytes]
    digest: str

    @classmethod
    def load(cls) -> "OwnFiles":
        """Read all of them."""
        folder = resources.files("dmsh_serving.web") / "static"
        content = {file.name: file.read_bytes() for file in folder.iterdir() if _suffix(file.name) in _TYPES}
        digest = hashlib.sha256()
        for name, data in sorted(content.items()):
            digest.update(name.encode() + b"\0" + data)
        return cls(content, digest.hexdigest()[:12])

    def address(self, name: str) -> str:
        """Return where the file ``name`` is found."""
        if name not in self.content:
            raise KeyError(name)
        return f"/static/{self.digest}/{name}"

    async def serve(self, request: Request) -> Response:
        """Answer a request for one of them."""
        name = request.path_params["name"]
        data = self.content.get(name)
        if data is None:
            raise ProblemError(404, f"this page has no file {name!r}")
        current = request.path_params["digest"] == self.digest
        headers = {"cache-control": _FOREVER if current else "no-store"}
        return Response(data, headers=headers, media_type=_TYPES[_suffix(name)])


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]
