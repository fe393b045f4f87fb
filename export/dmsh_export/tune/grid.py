"""The settings that are tried: runtime x threads x instances x batch x queue delay, as far as the cores go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dmsh_serving.encoder.base import Runtime
from dmsh_serving.triton.settings import EncoderSettings

__all__ = ["Alone", "finalists", "settings_of", "thread_counts"]

DELAYS_MICROSECONDS: Final = (0, 500)


@dataclass(frozen=True)
class Alone:
    """One runtime in this process: seconds per call (the median) of ``batch`` images on ``threads`` threads."""

    runtime: Runtime
    threads: int
    batch: int
    seconds: float


def thread_counts(cores: int) -> list[int]:
    """Return 1, 2, 4, ... up to ``cores``, and ``cores`` itself."""
    return sorted({*(1 << power for power in range(cores.bit_length()) if 1 << power <= cores), cores})


def settings_of(measured: Sequence[Alone], cores: int) -> Iterator[tuple[EncoderSettings, float, float]]:
    """Yield (settings, images per second, seconds per call) of every way to fill ``cores`` with one measured call.

    Instances compute side by side, so their images per second add up: an estimate, which the live runs check.
    """
    for alone in measured:
        for instances in sorted({1, max(1, cores // alone.threads)}):
            settings = EncoderSettings(alone.runtime, alone.threads, instances=instances, max_batch=alone.batch)
            yield settings, instances * alone.batch / alone.seconds, alone.seconds


def finalists(measured: Sequence[Alone], cores: int, latency_seconds: float, most: int) -> list[EncoderSettings]:
    """Return the ``most`` settings with the highest estimated throughput whose call alone fits into the latency.

    Each runtime that has one is among them, for an estimate is no measurement. If no call fits, the shortest are
    returned. A batch of several images is tried with and without a queue delay.
    """
    estimates = sorted(settings_of(measured, cores), key=lambda entry: -entry[1])
    fitting = [entry for entry in estimates if entry[2] <= latency_seconds]
    chosen = fitting or sorted(estimates, key=lambda entry: entry[2])
    tried = [
        settings.replaced({"queue_delay_microseconds": delay})
        for settings, _, _ in chosen
        for delay in (DELAYS_MICROSECONDS if settings.max_batch > 1 else (0,))
    ]
    best_of_runtime = {settings.runtime: settings for settings in reversed(tried)}
    kept = [settings for settings in tried if settings == best_of_runtime[settings.runtime]]
    return list(dict.fromkeys([*kept, *tried]))[: max(most, len(kept))]
