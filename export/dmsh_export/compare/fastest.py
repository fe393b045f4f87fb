"""The fastest runtime of this machine among those whose known answer is right here, measured in turns."""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from dmsh_serving.encoder import known_answer
from dmsh_serving.encoder.base import RUNTIMES, Encoder, Runtime
from dmsh_serving.encoder.open import open_encoder
from dmsh_serving.errors import CheckError, DmshError
from dmsh_serving.timing import in_turns

__all__ = ["Choice", "Measured", "fastest"]

_BATCH: Final = 8
_ROUNDS: Final = 15
_ENOUGH_SECONDS: Final = 4.0  # of one runtime: a large network needs no more rounds
_REST_SECONDS: Final = 0.005  # until the threads of the other runtime sleep


@dataclass(frozen=True)
class Measured:
    """One runtime: its images per second, or why it cannot serve here."""

    runtime: Runtime
    images_per_s: float | None
    refused: str | None = None


@dataclass(frozen=True)
class Choice:
    """The fastest runtime, and everything that was measured to choose it."""

    runtime: Runtime
    measured: tuple[Measured, ...]

    @property
    def why(self) -> str:
        """One line for people."""
        speeds = {one.runtime: one.images_per_s for one in self.measured if one.images_per_s is not None}
        parts = [f"{RUNTIMES[name]} {speed:,.0f} images/s" for name, speed in speeds.items()]
        others = [speed for name, speed in speeds.items() if name != self.runtime]
        ratio = f", {speeds[self.runtime] / max(others):.2f} times as fast" if others else ""
        left_out = "".join(f"; {RUNTIMES[one.runtime]} left out: {one.refused}" for one in self.measured if one.refused)
        exact = "its known answer is right here" if len(speeds) == 1 else "both known answers are right here"
        return f"{RUNTIMES[self.runtime]}{ratio} ({', '.join(parts)}; {exact}{left_out})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"why": self.why, **dataclasses.asdict(self)}


def fastest(
    files: Mapping[Runtime, Path], refused: Mapping[Runtime, str] | None = None, *, threads: int | None = None
) -> Choice:
    """Return the fastest runtime of ``files``, one ONNX file of the same network for each.

    ``refused`` are runtimes that are known not to work here, each with the reason. Each other one must give its known
    answer, and is then timed on the images of it, 8 at a time.

    Raises:
        CheckError: no runtime gives its known answer here; the message has every reason.
    """
    reasons = dict(refused or {})
    ready: dict[Runtime, Encoder] = {}
    with contextlib.ExitStack() as stack:
        for name, path in files.items():
            try:
                ready[name] = stack.enter_context(open_encoder(path, name, threads=threads))
            except DmshError as error:
                reasons[name] = str(error)
        if not ready:
            raise CheckError("no runtime can serve it here: " + "; ".join(reasons.values()))
        seconds = in_turns(
            [partial(encoder.infer, _batch_of(encoder)) for encoder in ready.values()],
            _ROUNDS,
            rest_seconds=_REST_SECONDS,
            enough_seconds=_ENOUGH_SECONDS,
        )
    # The first turn finds cold caches, and a runtime that compiles for the batch size.
    speeds = {name: _BATCH / float(np.median(spent[1:])) for name, spent in zip(ready, seconds, strict=True)}
    measured = [Measured(name, speeds.get(name), reasons.get(name)) for name in {**files, **reasons}]
    return Choice(max(speeds, key=lambda name: speeds[name]), tuple(measured))


def _batch_of(encoder: Encoder) -> known_answer.Bytes:
    """Return 8 images (8, H, W, 3) uint8 of the known answer."""
    images, _ = known_answer.load(encoder.metadata.known_answer or "")
    return np.ascontiguousarray(images[np.arange(_BATCH) % len(images)])
