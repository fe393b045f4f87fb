"""Encoding with several workers: the same bytes whatever they are, and only what is missing."""

import errno
import json
import multiprocessing
import os
import signal
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import tiny_model
from encode_world import NoJob, codes_by_id, files_of, killed_with_a_worker, wait_until, write_images

from dmsh_export.encode import run as encoding
from dmsh_export.encode import shards, sources
from dmsh_export.encode.run import DEAD_LETTERS, Job, encode, on_processes
from dmsh_export.encode.sources import source_of
from dmsh_serving.errors import CheckError, InputError, MemoryShortError, MissingError, UnavailableError
from dmsh_serving.gallery.tables import read_table

pytest.importorskip("pyarrow")
COUNT = 50


def in_process(job, shards, workers):
    """The engine of tests that are about no engine."""
    encoder = job.encoder()
    for shard in shards[::-1]:
        yield encoder(shard)


@pytest.fixture
def world(tmp_path):
    names, images = write_images(tmp_path / "images", COUNT)
    return tiny_model.write(tmp_path / "model.onnx"), str(tmp_path / "images"), tmp_path / "codes", names, images


def run(world, out=None, engine=in_process, **options):
    model, images, own, _, _ = world
    return encode(model, images, out or own, workers=2, engine=engine, **{"shard_images": 8, "batch": 3, **options})


def test_every_image_has_its_code_under_its_id_and_key(world):
    _, _, out, names, images = world
    done = run(world)
    codes = tiny_model.codes_of(images)
    expected = {number: (name, codes[number].tobytes()) for number, name in enumerate(names)}
    assert codes_by_id(out) == expected
    assert (done.count, done.shards, done.kept, done.bad) == (COUNT, 7, 0, ())
    table = read_table(out)
    assert (table.bits, table.fingerprint) == (tiny_model.BITS, tiny_model.FINGERPRINT)


def test_the_bytes_do_not_depend_on_workers_engine_order_or_batch(world, tmp_path):
    run(world, batch=1)
    encode(world[0], world[1], tmp_path / "other", workers=2, engine=on_processes, shard_images=8, batch=32)
    assert files_of(world[2]) == files_of(tmp_path / "other")


def test_a_rerun_does_only_what_is_missing_damaged_or_changed(world, tmp_path):
    run(world)
    before = files_of(world[2])
    assert run(world).kept == 7
    (world[2] / "codes-00002-of-00007.parquet").unlink()
    (world[2] / "codes-00003-of-00007.json").unlink()
    damaged = world[2] / "codes-00004-of-00007.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert run(world).kept == 4
    assert files_of(world[2]) == before
    image = tmp_path / "images" / world[3][9]
    image.write_bytes((tmp_path / "images" / world[3][10]).read_bytes())
    assert run(world).kept == 6
    assert codes_by_id(world[2])[9][1] == codes_by_id(world[2])[10][1]


def test_another_split_or_another_model_leaves_nothing_of_the_first(world, tmp_path):
    run(world)
    assert run(world, shard_images=25).kept == 0
    assert len(list(world[2].glob("codes-*"))) == 4
    other = tiny_model.write(tmp_path / "other.onnx", fingerprint="cd" * 32)
    assert encode(other, world[1], world[2], workers=1, engine=in_process, shard_images=25).kept == 0


def test_a_run_that_stops_leaves_no_codes_of_the_images_before(world, tmp_path):
    run(world)
    for name in world[3]:
        (tmp_path / "images" / name).write_bytes((tmp_path / "images" / world[3][0]).read_bytes())
    (tmp_path / "images" / world[3][20]).write_bytes(b"nothing")
    with pytest.raises(InputError, match="1 images give no code"):
        run(world)
    with pytest.raises(InputError, match="of 7 files of codes: run dmsh-export encode again"):
        read_table(world[2])


def test_images_that_give_no_code_are_listed_with_reasons_and_capped(world, tmp_path):
    folder = tmp_path / "images"
    (folder / world[3][5]).write_bytes(b"nothing")
    (folder / world[3][20]).unlink()
    (folder / world[3][20]).mkdir()
    from PIL import Image

    Image.fromarray(tiny_model.WHITE[0]).save(folder / world[3][30])
    with pytest.raises(InputError, match="2 images give no code, --max-bad allows 1"):
        run(world, max_bad=1)
    done = run(world, max_bad=2)
    assert done.kept > 0
    assert done.count == COUNT - 3
    letters = [json.loads(line) for line in (world[2] / DEAD_LETTERS).read_text().splitlines()]
    assert [letter["key"] for letter in letters] == [world[3][5], world[3][30]]
    assert "NaN or Inf" in letters[1]["reason"]
    assert set(codes_by_id(world[2])) == set(range(COUNT - 1)) - {5, 29}  # ids count what is there, the bad ones too


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_a_disk_that_does_not_answer_stops_the_run_and_makes_no_image_a_bad_one(world, monkeypatch, code):
    def failing(path, most_bytes):
        if path.name == world[3][20]:
            raise OSError(code, os.strerror(code), str(path))
        return original(path, most_bytes)

    original = sources.read_regular
    monkeypatch.setattr(sources, "read_regular", failing)
    with pytest.raises(UnavailableError, match=f"{world[3][20]} cannot be read: {os.strerror(code)}"):
        run(world, max_bad=COUNT)
    monkeypatch.setattr(sources, "read_regular", original)
    done = run(world)
    assert (done.count, done.bad, done.kept) == (COUNT, (), 4)


def test_memory_that_does_not_do_for_a_moment_makes_no_image_a_bad_one(world, monkeypatch):
    def short(data, *arguments, name, **options):
        if name == world[3][20]:
            raise MemoryShortError(f"{name}: the image needs too much memory to decode")
        return original(data, *arguments, name=name, **options)

    original = shards.image_from_bytes
    monkeypatch.setattr(shards, "image_from_bytes", short)
    with pytest.raises(UnavailableError, match=f"{world[3][20]}: the image needs too much memory to decode: give more"):
        run(world, max_bad=COUNT)
    monkeypatch.setattr(shards, "image_from_bytes", original)
    assert run(world).count == COUNT


@pytest.mark.parametrize("mount_point", [False, True])
def test_a_disk_that_goes_away_after_the_listing_stops_the_run(world, tmp_path, mount_point):
    images, away = tmp_path / "images", tmp_path / "away"

    def unmounted(job, shards, workers):
        images.rename(away)
        if mount_point:
            images.mkdir()
        yield from in_process(job, shards, workers)

    with pytest.raises(UnavailableError, match=f"{images} is empty or away"):
        run(world, engine=unmounted, max_bad=COUNT)
    away.rename(images)
    assert run(world).count == COUNT


def test_an_image_that_was_gone_is_looked_for_again(world, tmp_path):
    image, away = tmp_path / "images" / world[3][20], tmp_path / "away.png"

    def without_it(job, shards, workers):
        image.rename(away)
        yield from in_process(job, shards, workers)

    assert run(world, engine=without_it, max_bad=1).bad == ((image.name, "does not exist"),)
    away.rename(image)
    done = run(world)
    assert (done.count, done.bad, done.kept) == (COUNT, (), 6)


def test_a_second_run_into_the_folder_is_refused_while_one_is_at_work(world):
    def disturbed(job, shards, workers):
        with pytest.raises(InputError, match=f"{world[2]} is being changed by another process"):
            run(world, shard_images=25)
        yield from in_process(job, shards, workers)

    assert run(world, engine=disturbed).count == COUNT
    assert run(world).kept == 7


def test_a_worker_that_is_killed_is_replaced(world, monkeypatch):
    killed = threading.Event()

    def kill_one():
        while not killed.is_set():
            for child in psutil.Process().children(recursive=True):
                if any(world[2].glob("codes-*.json")) and "spawn_main" in " ".join(child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)
                    killed.set()
                    return
            time.sleep(0.001)

    threading.Thread(target=kill_one, daemon=True).start()
    done = run(world, engine=on_processes, shard_images=2)
    assert killed.is_set()
    assert done.count == COUNT


def test_a_worker_ends_with_a_run_that_is_killed():
    context = multiprocessing.get_context("spawn")
    workers = context.Queue()
    run = context.Process(target=killed_with_a_worker, args=(NoJob(), workers))
    run.start()
    worker = psutil.Process(workers.get(timeout=60))
    run.join()

    def gone():
        try:
            return worker.status() == psutil.STATUS_ZOMBIE  # where nobody collects orphans
        except psutil.NoSuchProcess:
            return True

    try:
        wait_until(gone)
    finally:
        if not gone():
            worker.kill()


def test_an_image_that_kills_every_worker_ends_the_run_by_name(world, monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    from dmsh_export.encode import run as module

    class Dying:
        def __init__(self, *_, **__):
            pass

        def submit(self, *_):
            raise BrokenProcessPool

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(module, "ProcessPoolExecutor", Dying)
    with pytest.raises(CheckError, match=r"workers died 3 times.*codes-00000-of-00007.parquet"):
        run(world, engine=on_processes)


def test_a_parquet_file_of_images_brings_its_ids_and_keys(world, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    data = [(tmp_path / "images" / name).read_bytes() for name in world[3]]
    ids = np.arange(COUNT)[::-1] * 10
    table = pa.table({"id": ids, "key": [f"k{each}" for each in ids], "image": pa.array(data), "more": ids})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    encode(world[0], str(tmp_path / "t.parquet"), world[2], workers=1, engine=in_process, shard_images=8)
    codes = tiny_model.codes_of(world[4])
    found = codes_by_id(world[2])
    assert found == {int(each): (f"k{each}", codes[row].tobytes()) for row, each in enumerate(ids)}


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_a_key_of_a_parquet_file_that_is_no_text_is_the_error_of_its_image_alone(world, tmp_path, kind):
    import pyarrow as pa
    from pyarrow import parquet

    data = [(tmp_path / "images" / name).read_bytes() for name in world[3][:4]]
    bytes_of_keys = pa.array([b"a", b"\xff", None, "ä".encode()], getattr(pa, kind.replace("string", "binary"))())
    keys = pa.Array.from_buffers(getattr(pa, kind)(), 4, bytes_of_keys.buffers())
    parquet.write_table(pa.table({"key": keys, "image": pa.array(data)}), tmp_path / "t.parquet")
    encode(world[0], str(tmp_path / "t.parquet"), world[2], workers=1, engine=in_process, max_bad=1)
    assert {key for key, _ in codes_by_id(world[2]).values()} == {"a", "t.parquet[2]", "ä"}
    (letter,) = [json.loads(line) for line in (world[2] / DEAD_LETTERS).read_text().splitlines()]
    assert (letter["key"], letter["reason"]) == (r"'\udcff'", "its name is no valid text (UTF-8)")


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ("nowhere", "no folder, no .parquet file and no s3:// address"),
        ("empty", "holds no images"),
        ("nowhere.parquet", "does not exist"),
        ("damaged.parquet", "is not a Parquet file that can be read"),
        ("codes.parquet", "has no column 'image'"),
        ("twice.parquet", "has more than one column 'key'"),
    ],
)
def test_what_cannot_be_encoded_is_named(world, tmp_path, images, reason):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 no")
    parquet.write_table(pa.table({"code": [b"x"]}), tmp_path / "codes.parquet")
    twice = pa.table([[b"x"], ["a"], ["b"]], names=["image", "key", "key"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(InputError, match=reason):
        encode(world[0], str(tmp_path / images), world[2], workers=1, engine=in_process)


def test_a_folder_of_codes_that_is_not_whole_is_not_read_as_if_it_were(world):
    run(world)
    (world[2] / "codes-00002-of-00007.parquet").unlink()
    with pytest.raises(InputError, match="6 of 7 files of codes: run dmsh-export encode again"):
        read_table(world[2])


def test_without_ray_the_engine_says_what_to_install(world, monkeypatch):
    from dmsh_export.encode.on_ray import on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingError, match=r"dmsh-toolkit\[ray\]"):
        next(on_ray(Job(world[0], source_of(world[1]), 1), [], 1))


def test_nothing_is_encoded_by_a_pillow_that_makes_other_pixels(world, monkeypatch):
    def other():
        raise CheckError("other pixels")

    monkeypatch.setattr(encoding, "check_decoder", other)
    with pytest.raises(CheckError, match="other pixels"):
        run(world)
