"""What a start of Triton must know of the models, read from their ``config.pbtxt``.

A few fields are searched for as text, because the launcher must run without Triton's protobuf messages.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dmsh_serving.contract import ENCODER_MODEL, RANKER_MODEL, VERSION_COMPATIBLE

__all__ = ["EncoderConfig", "gallery_folder", "largest_batch", "ranked_gallery", "read_encoder_config"]

_BACKEND = re.compile(r'^\s*(?:backend|platform)\s*:\s*"([^"]*)"', re.MULTILINE)
_MAX_BATCH = re.compile(r"^\s*max_batch_size\s*:\s*(\d+)", re.MULTILINE)
_VERSION_COMPATIBLE = re.compile(
    rf'^[^#\n]*key\s*:\s*"{VERSION_COMPATIBLE}"[^#"]*string_value\s*:\s*"true"', re.MULTILINE
)
_GALLERY = re.compile(r'^[^#\n]*key\s*:\s*"gallery"[^#"]*string_value\s*:\s*"((?:[^"\\]|\\.)*)"', re.MULTILINE)


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder of a repository.

    Attributes:
        backend: the value of its field ``backend`` or ``platform``; empty if there is no encoder.
        version_compatible: its engine brings its own runtime, which Triton must be told to trust.
    """

    backend: str
    version_compatible: bool


def read_encoder_config(repository: Path) -> EncoderConfig:
    """Read the encoder's configuration in ``repository``."""
    path = repository / ENCODER_MODEL / "config.pbtxt"
    text = path.read_text(errors="replace") if path.is_file() else ""
    backend = _BACKEND.search(text)
    return EncoderConfig(backend.group(1) if backend else "", _VERSION_COMPATIBLE.search(text) is not None)


def largest_batch(repository: Path, model: str) -> int:
    """Return the most rows of one call of ``model``; 1 if no configuration says it."""
    path = repository / model / "config.pbtxt"
    found = _MAX_BATCH.search(path.read_text(errors="replace")) if path.is_file() else None
    return max(1, int(found.group(1))) if found else 1


def ranked_gallery(repository: Path) -> str | None:
    """Return the gallery's folder as seen from the ranker's folder, or None if no configuration names one."""
    path = repository / RANKER_MODEL / "config.pbtxt"
    found = _GALLERY.search(path.read_text(errors="replace")) if path.is_file() else None
    try:  # bytes of UTF-8, some of them escaped as in C
        return None if found is None else found.group(1).encode().decode("unicode_escape").encode("latin-1").decode()
    except UnicodeError:  # written by hand: Triton itself will say what it makes of it
        return None


def gallery_folder(ranker: Path, named: str) -> Path:
    """Return the gallery that the ranker in the folder ``ranker`` names, by a path as seen from there.

    A link on the way stays one: whoever lets it lead to another gallery wants that one served.
    """
    return Path(os.path.normpath(ranker.resolve() / named))
