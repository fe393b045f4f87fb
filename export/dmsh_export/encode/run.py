"""Encode all images with several workers; what is finished is not done again, and a worker that dies is replaced.

OUT/codes-00000-of-00012.parquet    id, key, code; bits and fingerprint in its schema
OUT/codes-00000-of-00012.json       what it was made from, its SHA-256, and the images that gave no code
OUT/dead-letters.jsonl              all images that gave no code, with reasons
"""

import json
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmsh_export.encode.shards import Encoder, Shard, ShardResult, finished
from dmsh_export.encode.sources import Source, source_of
from dmsh_serving.encoder.open import open_encoder
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.files import write_atomically
from dmsh_serving.gallery.folder import writing
from dmsh_serving.images.known_answer import check_decoder
from dmsh_serving.images.read import Progress

__all__ = ["DEAD_LETTERS", "EncodedShards", "Engine", "Job", "encode", "on_processes"]

DEAD_LETTERS: Final = "dead-letters.jsonl"
_TRIES: Final = 3  # pools of workers that may die before one must think that an image kills them
_SHARD: Final = re.compile(r"codes-\d{5}-of-\d{5}\.(parquet|json)")
_worker: Encoder | None = None


@dataclass(frozen=True)
class Job:
    """What workers need to encode any shard: the model, the images, and how many of them at once."""

    model: Path
    source: Source
    batch: int

    def encoder(self) -> Encoder:
        """Open the model."""
        return Encoder(self.model, self.source, self.batch)


@dataclass(frozen=True)
class EncodedShards:
    """What :func:`encode` did.

    Attributes:
        shards: files there are now.
        kept: files that an earlier run had finished.
        count: codes in all of them.
        bad: (key, reason) of each image that gave no code.
        bits, fingerprint: the code space.
    """

    shards: int
    kept: int
    count: int
    bad: tuple[tuple[str, str], ...]
    bits: int
    fingerprint: str


Engine = Callable[[Job, Sequence[Shard], int], Iterator[ShardResult]]
"""Encodes shards with so many workers, and yields results in any order."""


def encode(
    model: Path,
    images: str,
    out: Path,
    *,
    workers: int,
    engine: Engine,
    shard_images: int = 4096,
    batch: int = 32,
    max_bad: int = 0,
    on_progress: Progress | None = None,
) -> EncodedShards:
    """Encode ``images`` into files in ``out``, the same bytes whatever the workers, the engine and their order.

    Args:
        model: ONNX file of dmsh-export.
        images: a folder, FILE.parquet or s3://bucket/prefix.
        out: folder of the files; made if it does not exist. Files of another split of the images are removed.
        workers: how many work at once; each takes one core.
        engine: :func:`on_processes`, or that of :mod:`dmsh_export.encode.on_ray`.
        shard_images: images per file.
        batch: images per call of the model.
        max_bad: most images that may give no code.
        on_progress: called with (images done, images in all) after every shard.

    Raises:
        InputError: nothing to encode, another process writes to ``out``, or more than ``max_bad`` images that give no
            code; finished files stay.
        UnavailableError: a disk or S3 does not answer; finished files stay.
        CheckError: workers die again and again, or Pillow makes other pixels than it should.
    """
    check_decoder()  # here it is one line; in a worker it would be a worker that died
    source = source_of(images)
    with open_encoder(model) as encoder:  # a model that is not sound here is refused before workers start
        metadata = encoder.metadata
    if not out.is_dir():
        if out.exists() or not out.absolute().parent.is_dir():
            raise InputError(f"{out} cannot be made a folder: it is a file, or its parent folder is missing")
        out.mkdir()
    of = -(-source.count // shard_images)
    if of > 99_999:
        raise InputError(f"{source.count:,} images make {of:,} files: give more images per file")
    ranges = [(start, min(start + shard_images, source.count)) for start in range(0, source.count, shard_images)]
    with writing(out):
        shards = [
            Shard(number, of, start, stop, source.digest(start, stop), metadata.fingerprint, out.absolute())
            for number, (start, stop) in enumerate(ranges)
        ]
        _remove_others(out, shards)
        done = {shard.number: result for shard in shards if (result := finished(shard))}
        kept = len(done)
        missing = [shard for shard in shards if shard.number not in done]
        for shard in missing:  # if this run stops, what another one left must not pass for the rest of it
            shard.path.unlink(missing_ok=True)
        _check_bad(out, done, max_bad)
        progress = sum(shard.stop - shard.start for shard in shards if shard.number in done)
        if on_progress:
            on_progress(progress, source.count)
        if missing:
            for result in engine(Job(model.absolute(), source, batch), missing, workers):
                done[result.number] = result
                progress += shards[result.number].stop - shards[result.number].start
                if on_progress:
                    on_progress(progress, source.count)
                _check_bad(out, done, max_bad)
        if lost := [shard.path.name for shard in shards if shard.number not in done]:
            raise CheckError(f"{len(lost)} files were not written, such as {lost[0]}: run it again")
        bad = _check_bad(out, done, max_bad)
        count = sum(result.count for result in done.values())
        return EncodedShards(of, kept, count, bad, metadata.bits, metadata.fingerprint)


def on_processes(job: Job, shards: Sequence[Shard], workers: int) -> Iterator[ShardResult]:
    """Encode with processes of this machine; the engine that needs no package."""
    missing = {shard.number: shard for shard in shards}
    for _ in range(_TRIES):
        pool = ProcessPoolExecutor(
            min(workers, len(missing)), multiprocessing.get_context("spawn"), initializer=_start, initargs=(job,)
        )
        try:
            for future in as_completed([pool.submit(_encode, shard) for shard in missing.values()]):
                result = future.result()
                del missing[result.number]
                yield result
        except BrokenProcessPool:
            continue
        finally:
            pool.shutdown(cancel_futures=True)
        return
    names = ", ".join(shard.path.name for shard in list(missing.values())[:3])
    raise CheckError(f"workers died {_TRIES} times (out of memory?); {len(missing)} files are missing, such as {names}")


def _start(job: Job) -> None:
    global _worker  # a process of a pool has one for all its shards
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = job.encoder()


def _end_with_parent() -> None:
    """End this process with the one that holds the lock: the next run must not find files of this one among its own."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(shard: Shard) -> ShardResult:
    assert _worker is not None
    return _worker(shard)


def _check_bad(out: Path, done: dict[int, ShardResult], max_bad: int) -> tuple[tuple[str, str], ...]:
    """Write down the images that gave no code; raise if there are too many."""
    bad = tuple(letter for number in sorted(done) for letter in done[number].bad)
    path = out / DEAD_LETTERS
    text = "".join(json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in bad).encode()
    if not path.is_file() or path.read_bytes() != text:
        write_atomically(path, text)
    if len(bad) > max_bad:
        key, reason = bad[0]
        raise InputError(
            f"{len(bad)} images give no code, --max-bad allows {max_bad}; {path} lists them, such as {key}: {reason}"
        )
    return bad


def _remove_others(out: Path, shards: Sequence[Shard]) -> None:
    """Remove files of an earlier run that split the images in another way."""
    own = {path for shard in shards for path in (shard.path.name, shard.record_path.name)}
    for path in out.iterdir():
        if _SHARD.fullmatch(path.name) and path.name not in own:
            path.unlink()
