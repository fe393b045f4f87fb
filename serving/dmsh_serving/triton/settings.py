"""How an encoder is served: the settings that dmsh-export tune measures and writes, and a repository is made with."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dmsh_serving.contract import DEFAULT_MAX_BATCH
from dmsh_serving.encoder.base import RUNTIMES, Runtime
from dmsh_serving.errors import InputError
from dmsh_serving.files import write_atomically

__all__ = ["EncoderSettings", "read_settings", "write_settings"]

FORMAT: Final = "dmsh-settings"
_LEAST: Final = {"threads": 1, "streams": 1, "instances": 1, "max_batch": 1, "queue_delay_microseconds": 0}


@dataclass(frozen=True)
class EncoderSettings:
    """One way to serve an encoder in Triton's Python backend.

    Attributes:
        runtime: ONNX Runtime or OpenVINO.
        threads: threads of one call.
        streams: with OpenVINO, parts of a batch that are computed side by side.
        instances: processes that each serve calls.
        max_batch: most images of one call.
        queue_delay_microseconds: how long the batcher may wait for more images.
    """

    runtime: Runtime = "onnxruntime"
    threads: int = 2
    streams: int = 1
    instances: int = 1
    max_batch: int = DEFAULT_MAX_BATCH
    queue_delay_microseconds: int = 0

    @property
    def encoder(self) -> str:
        """The value of ``dmsh-export repository --encoder``."""
        return "python" if self.runtime == "onnxruntime" else "openvino"

    def replaced(self, numbers: Mapping[str, int | None]) -> "EncoderSettings":
        """Return these settings with those of ``numbers`` that are not None, by the names of the attributes."""
        given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
        return dataclasses.replace(self, **given)


def write_settings(path: Path, settings: EncoderSettings, measured: dict[str, Any]) -> None:
    """Write ``settings`` to ``path``, whole or not at all, with what was ``measured`` (plain JSON types) for people."""
    fields = {"format": FORMAT, "settings": dataclasses.asdict(settings), "measured": measured}
    write_atomically(path, (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode())


def read_settings(path: Path) -> EncoderSettings:
    """Read what :func:`write_settings` wrote.

    Raises:
        InputError: another file, or a value out of range; it is named.
    """
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}")
        settings = EncoderSettings(**found["settings"])
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no file of dmsh-export tune ({error})") from error
    if str(settings.runtime) not in RUNTIMES:
        raise InputError(f"{path}: no runtime {settings.runtime!r}, there are {', '.join(RUNTIMES)}")
    for name, least in _LEAST.items():
        value = getattr(settings, name)
        if type(value) is not int or value < least:
            raise InputError(f"{path}: {name} must be a whole number of at least {least}, got {value!r}")
    return settings
