"""Tune an encoder: time each runtime alone, serve the best settings live, choose by throughput within a latency."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from dmsh_export.compare.runners import Images
from dmsh_export.tune.grid import Alone, finalists, thread_counts
from dmsh_export.tune.live import Load, measured_live
from dmsh_serving.cpu import available_cpus
from dmsh_serving.encoder import known_answer
from dmsh_serving.encoder.base import RUNTIMES, Encoder, Runtime
from dmsh_serving.encoder.metadata import EncoderMetadata
from dmsh_serving.encoder.open import open_encoder, runtime_of
from dmsh_serving.errors import CheckError, DmshError, InputError
from dmsh_serving.load.measure import Measuring
from dmsh_serving.timing import in_turns
from dmsh_serving.triton.settings import EncoderSettings

__all__ = ["FULL", "QUICK", "Effort", "Found", "Tuning", "chosen_of", "describe", "tune"]


@dataclass(frozen=True)
class Effort:
    """How much is tried: batch sizes, rounds alone, settings that are served, clients at once, how long each load."""

    batches: tuple[int, ...]
    rounds: int
    enough_seconds: float
    finalists: int
    clients: tuple[int, ...]
    measuring: Measuring


FULL: Final = Effort((1, 4, 8, 16, 32), 9, 3.0, 8, (1, 4, 16, 32), Measuring(1.5, 1.5, 6))
QUICK: Final = Effort((1, 8), 3, 0.7, 3, (1, 8), Measuring(1.0, 0.7, 4))


@dataclass(frozen=True)
class Found:
    """One setting under one load; ``within`` says whether its p99 is within the latency that was asked for."""

    settings: EncoderSettings
    load: Load
    within: bool


@dataclass(frozen=True)
class Tuning:
    """What was measured and chosen.

    Attributes:
        chosen: the setting and load with the highest throughput within the latency.
        model: the file that is served with it.
        latency_ms: what was asked for.
        alone: every runtime in this process.
        live: every setting that was served, under every load.
        refused: runtimes that cannot serve here, with the reason.
    """

    chosen: Found
    model: Path
    latency_ms: float
    alone: tuple[Alone, ...]
    live: tuple[Found, ...]
    refused: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**dataclasses.asdict(self), "model": str(self.model)}


def tune(
    models: Sequence[Path],
    latency_ms: float,
    effort: Effort = FULL,
    *,
    triton: Path | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Find how to serve one network, given as ONNX files, each of which runs in the runtime of its dialect.

    A runtime takes part only if it gives its known answer here. ``on_step`` is told what is measured next.

    Raises:
        CheckError: no runtime can serve here, or no setting answers within ``latency_ms`` (p99); the best is named.
        InputError: the files are of different code spaces, or two are for one runtime.
    """
    files = _files(models)
    cores = available_cpus()
    alone: list[Alone] = []
    refused: dict[str, str] = {}
    metadata: EncoderMetadata | None = None
    for threads in thread_counts(cores):
        on_step(f"alone, {threads} threads")
        ready: dict[Runtime, Encoder] = {}
        for runtime, path in files.items():
            if runtime not in refused:
                try:
                    ready[runtime] = open_encoder(path, runtime, threads=threads)
                except DmshError as error:
                    refused[runtime] = str(error)
        if not ready:
            raise CheckError("no runtime can serve it here: " + "; ".join(refused.values()))
        metadata = next(iter(ready.values())).metadata
        try:
            alone += _timed(ready, threads, effort)
        finally:
            for encoder in ready.values():
                encoder.close()
    assert metadata is not None  # there is at least one number of threads
    images, _ = known_answer.load(metadata.known_answer or "")
    live: list[Found] = []
    for settings in finalists(alone, cores, latency_ms / 1e3, effort.finalists):
        on_step(f"live: {describe(settings)}")
        loads = measured_live(
            files[settings.runtime], metadata, settings, images, effort.clients, effort.measuring, triton
        )
        live += [Found(settings, load, load.p99_ms <= latency_ms) for load in loads]
    chosen = chosen_of(live, latency_ms)
    return Tuning(chosen, files[chosen.settings.runtime], latency_ms, tuple(alone), tuple(live), refused)


def chosen_of(live: Sequence[Found], latency_ms: float) -> Found:
    """Return the setting and load with the highest throughput within the latency.

    Raises:
        CheckError: there is none; the best is named.
    """
    within = [found for found in live if found.within]
    if within:
        return max(within, key=lambda found: found.load.images_per_s)
    best = min(live, key=lambda found: found.load.p99_ms)
    raise CheckError(
        f"no setting answers within {latency_ms:g} ms (p99): the best is {best.load.p99_ms:.1f} ms, with "
        f"{describe(best.settings)} and {best.load.clients} client(s); ask for more with --latency-ms"
    )


def describe(settings: EncoderSettings) -> str:
    """Return settings for people."""
    delay = f", {settings.queue_delay_microseconds} us delay" if settings.queue_delay_microseconds else ""
    return (
        f"{RUNTIMES[settings.runtime]}, {settings.instances} x {settings.threads} threads, batches of up to "
        f"{settings.max_batch}{delay}"
    )


def _files(models: Sequence[Path]) -> dict[Runtime, Path]:
    files: dict[Runtime, Path] = {}
    spaces: dict[str, Path] = {}
    for path in models:
        runtime = runtime_of(path)
        if runtime in files:
            raise InputError(f"{files[runtime]} and {path} are both for {RUNTIMES[runtime]}: name one of them")
        files[runtime] = path
        with open_encoder(path, "onnxruntime", check_known_answer=False) as encoder:
            spaces[encoder.fingerprint] = path
    if len(spaces) > 1:
        raise InputError(
            f"{' and '.join(map(str, spaces.values()))} are of different code spaces: name one network's files"
        )
    return files


def _timed(ready: dict[Runtime, Encoder], threads: int, effort: Effort) -> list[Alone]:
    """Time the runtimes in turns, each batch size after the other."""
    found = []
    for batch in effort.batches:
        calls = [partial(encoder.infer, _images(encoder, batch)) for encoder in ready.values()]
        for call in calls:
            call()  # a runtime that compiles for each batch size does it here
        seconds = in_turns(calls, effort.rounds, rest_seconds=0.005, enough_seconds=effort.enough_seconds)
        found += [
            Alone(runtime, threads, batch, float(np.median(spent)))
            for runtime, spent in zip(ready, seconds, strict=True)
        ]
    return found


def _images(encoder: Encoder, count: int) -> Images:
    images, _ = known_answer.load(encoder.metadata.known_answer or "")
    return np.ascontiguousarray(images[np.arange(count) % len(images)])
