"""What a start of Triton must know of the encoder, read from its ``config.pbtxt``.

Two fields are searched for as text, because the launcher must run without Triton's protobuf messages.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from dmsh_serving.contract import ENCODER_MODEL, VERSION_COMPATIBLE

__all__ = ["EncoderConfig", "read_encoder_config"]

_BACKEND = re.compile(r'^\s*(?:backend|platform)\s*:\s*"([^"]*)"', re.MULTILINE)
_VERSION_COMPATIBLE = re.compile(
    rf'^[^#\n]*key\s*:\s*"{VERSION_COMPATIBLE}"[^#"]*string_value\s*:\s*"true"', re.MULTILINE
)


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
