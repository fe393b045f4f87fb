"""Images and a tiny model on disk, for tests of encoding at scale; workers import what is here."""

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import tiny_model
from PIL import Image


def write_images(folder: Path, count: int, seed: int = 0):
    """Write ``count`` PNG files; return their names in order, and their pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    images = tiny_model.random_images(count, seed)
    names = [f"image-{number:04d}.png" for number in range(count)]
    for name, pixels in zip(names, images, strict=True):
        Image.fromarray(pixels).save(folder / name)
    return names, images


def codes_by_id(out: Path):
    """All codes of a folder of shards: {id: (key, code)}."""
    from dmsh_serving.gallery.tables import read_table

    table = read_table(out)
    return {
        number: (key, code.tobytes())
        for number, key, code in zip(table.ids.tolist(), table.keys, table.codes, strict=True)
    }


def files_of(out: Path):
    """The bytes of every file of a run."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


class NoJob:
    """A job whose encoder is never asked for anything."""

    def encoder(self):
        return None


def killed_with_a_worker(job, workers):
    """Start a worker of encode that has work for an hour, put its process's number into ``workers``, and be killed."""
    from dmsh_export.encode.run import _start

    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=(job,))
    workers.put(pool.submit(os.getpid).result())
    pool.submit(time.sleep, 3600)
    workers.close()
    workers.join_thread()
    os.kill(os.getpid(), signal.SIGKILL)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.02)
