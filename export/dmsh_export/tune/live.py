"""Settings live: the encoder in a real Triton, asked by some clients at once, each with one image at a time."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from dmsh_export.compare.runners import Images
from dmsh_serving import gallery
from dmsh_serving.codes import bytes_per_code
from dmsh_serving.contract import DEFAULT_K, ENCODER_MODEL
from dmsh_serving.encoder.metadata import EncoderMetadata
from dmsh_serving.errors import CheckError
from dmsh_serving.load.measure import Measuring, measure
from dmsh_serving.load.send import Closed
from dmsh_serving.load.triton import TritonTarget
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.server.launcher import TritonServer
from dmsh_serving.triton.settings import EncoderSettings
from dmsh_serving.triton.spec import PythonBackend, RepositorySpec

__all__ = ["Load", "measured_live"]

_TIMEOUT_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Load:
    """The view of some clients at once: answered images per second, and the latency of a request in milliseconds."""

    clients: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    requests: int


def measured_live(
    model: Path,
    metadata: EncoderMetadata,
    settings: EncoderSettings,
    images: Images,
    clients: Sequence[int],
    measuring: Measuring,
    triton: Path | None = None,
) -> list[Load]:
    """Serve ``model`` with ``settings``, ask for ``images`` (N, H, W, 3) uint8, by each number of ``clients`` in turn.

    Raises:
        DmshError: the server does not start, the encoder refuses to serve here, or a request fails.
    """
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        bits, fingerprint = metadata.bits, metadata.fingerprint
        codes = np.zeros((1, bytes_per_code(bits)), np.uint8)
        gallery.build(folder / "gallery", codes, None, None, bits=bits, fingerprint=fingerprint)
        spec = RepositorySpec(
            folder / "gallery",
            bits,
            metadata.image_size,
            fingerprint,
            model=model,
            encoder=PythonBackend(settings.threads, settings.runtime, settings.streams, settings.instances),
            max_batch=settings.max_batch,
            queue_delay_microseconds=settings.queue_delay_microseconds,
        )
        write_repository(folder / "repository", spec)
        log = folder / "triton.log"
        server = stack.enter_context(TritonServer(folder / "repository", triton=triton, log_file=log))
        target = stack.enter_context(
            TritonTarget(server.url, ENCODER_MODEL, images, batch=1, k=DEFAULT_K, timeout=_TIMEOUT_SECONDS)
        )
        return [_load(target, count, measuring) for count in clients]


def _load(target: TritonTarget, clients: int, measuring: Measuring) -> Load:
    found = measure(target, Closed(clients), measuring=measuring)
    if found.errors or not len(found.seconds):
        what = ", ".join(f"{count:,} x {kind}" for kind, count in found.errors.items()) or "no answer came"
        raise CheckError(f"{clients} client(s): {what}")
    # Of few requests the slowest is the only honest p99.
    slowest = found.milliseconds("p99") or found.milliseconds("max")
    p50 = found.milliseconds("p50")
    assert slowest is not None  # there are requests, and none failed
    assert p50 is not None
    return Load(clients, found.images_per_s, p50, slowest, len(found.seconds))
