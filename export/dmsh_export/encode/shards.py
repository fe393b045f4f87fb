"""One shard: a range of images -> one Parquet file of codes, and beside it a record of what it was made from.

The file's bytes depend on the images, their ids and the model alone, not on the worker. The record is written after it,
so a shard whose record fits is whole.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_export.encode.sources import GONE, Image, Source
from dmsh_serving.codes import Codes
from dmsh_serving.encoder.base import Encoder as OpenEncoder
from dmsh_serving.encoder.open import open_encoder
from dmsh_serving.errors import InputError, MemoryShortError, UnavailableError
from dmsh_serving.files import sha256_of_file, write_atomically
from dmsh_serving.gallery.keys import packed_keys
from dmsh_serving.gallery.tables import CodeTable, write_table
from dmsh_serving.images.decode import image_from_bytes
from dmsh_serving.images.known_answer import check_decoder

__all__ = ["Encoder", "Shard", "ShardResult", "finished"]


@dataclass(frozen=True)
class Shard:
    """What one worker does at once.

    Attributes:
        number, of: its number, from 0 on, and how many there are.
        start, stop: the images.
        digest: what :meth:`dmsh_export.encode.sources.Source.digest` says of them.
        fingerprint: the code space.
        out: the folder of the files.
    """

    number: int
    of: int
    start: int
    stop: int
    digest: str
    fingerprint: str
    out: Path

    @property
    def path(self) -> Path:
        """The file of codes."""
        return self.out / f"codes-{self.number:05d}-of-{self.of:05d}.parquet"

    @property
    def record_path(self) -> Path:
        """The record beside it."""
        return self.path.with_suffix(".json")


@dataclass(frozen=True)
class ShardResult:
    """A finished shard: how many codes, and (key, reason) of each image that gave none."""

    number: int
    count: int
    bad: tuple[tuple[str, str], ...]


class Encoder:
    """A model and the images that it encodes: what each worker opens once."""

    def __init__(self, model: Path, source: Source, batch: int) -> None:
        check_decoder()
        self._source, self._batch = source, batch
        self._encoder = open_encoder(model, threads=1)

    def __call__(self, shard: Shard) -> ShardResult:
        """Encode ``shard``, write its file and its record."""
        return _encode_shard(self._encoder, self._source, shard, self._batch)


def _encode_shard(encoder: OpenEncoder, source: Source, shard: Shard, batch: int) -> ShardResult:
    """Encode the images of ``shard``, ``batch`` at a time; write its file and its record.

    Raises:
        InputError: the model's code space is not the shard's, or the source cannot be read.
        UnavailableError: the source does not answer.
    """
    if encoder.fingerprint != shard.fingerprint:
        raise InputError(f"{encoder.path} has fingerprint {encoder.fingerprint}, expected {shard.fingerprint}")
    ids: list[int] = []
    keys: list[str] = []
    codes: list[Codes] = [np.empty((0, (encoder.bits + 7) // 8), np.uint8)]
    bad: list[tuple[str, str]] = []
    held: list[tuple[Image, Any]] = []

    def flush() -> None:
        if not held:
            return
        encoded = encoder.infer(np.stack([pixels for _, pixels in held]))
        sound: npt.NDArray[np.bool_] = np.asarray(np.isfinite(encoded.logits).all(axis=1))
        for (image, _), fine in zip(held, sound.tolist(), strict=True):
            if fine:
                ids.append(image.id)
                keys.append(image.key)
            else:
                bad.append((image.key, "the model gives NaN or Inf for it"))
        codes.append(encoded.code[sound])
        held.clear()

    for image in source.images(shard.start, shard.stop):
        try:
            if isinstance(image.data, str):
                raise InputError(f"{image.key}: {image.data}")
            image.key.encode()
            held.append((image, image_from_bytes(image.data, encoder.image_size, encoder.framing, name=image.key)))
        except MemoryShortError as error:
            raise UnavailableError(f"{error}: give more memory, or take the image away, and run it again") from error
        except InputError as error:
            bad.append((image.key, str(error).removeprefix(f"{image.key}: ")))
        except UnicodeEncodeError:
            bad.append((ascii(image.key), "its name is no valid text (UTF-8)"))
        if len(held) == batch:
            flush()
    flush()
    table = CodeTable(
        np.concatenate(codes), np.array(ids, np.int64), packed_keys(keys), encoder.bits, encoder.fingerprint
    )
    shard.record_path.unlink(missing_ok=True)
    write_table(shard.path, table)
    bad.sort()
    record = {
        "images": shard.digest,
        "fingerprint": shard.fingerprint,
        "sha256": sha256_of_file(shard.path),
        "count": len(ids),
        "bad": bad,
    }
    write_atomically(shard.record_path, (json.dumps(record, indent=1) + "\n").encode())
    return ShardResult(shard.number, len(ids), tuple(bad))


def finished(shard: Shard) -> ShardResult | None:
    """Return the result of a shard that an earlier run has finished; None if it is to be encoded.

    Its images, its model and its bytes must be those of the record, and none of its images was gone.
    """
    try:
        record = json.loads(shard.record_path.read_bytes())
        same = (record["images"], record["fingerprint"]) == (shard.digest, shard.fingerprint)
        if not same or sha256_of_file(shard.path) != record["sha256"]:
            return None
        bad = tuple((key, reason) for key, reason in record["bad"])
        if any(reason == GONE for _, reason in bad):
            return None
        return ShardResult(shard.number, int(record["count"]), bad)
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None
