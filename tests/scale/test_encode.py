"""Encoding on a real local Ray cluster, and from a real local S3."""

import os
import signal
import threading
import time

import psutil
import pytest
import tiny_model
from clickhouse_world import free_port
from encode_world import codes_by_id, files_of, write_images

from dmsh_export.encode.on_ray import on_ray
from dmsh_export.encode.run import encode, on_processes
from dmsh_serving.errors import InputError, UnavailableError

COUNT = 60


@pytest.fixture
def world(tmp_path):
    names, images = write_images(tmp_path / "images", COUNT)
    return tiny_model.write(tmp_path / "model.onnx"), tmp_path / "images", names, images


def run(world, out, engine, images=None):
    return encode(world[0], str(images or world[1]), out, workers=2, engine=engine, shard_images=5, batch=4)


def test_ray_writes_the_bytes_that_processes_write_also_if_a_worker_is_killed(world, tmp_path):
    pytest.importorskip("ray")
    killed = threading.Event()

    def kill_one():
        while not killed.is_set():
            for child in psutil.Process().children(recursive=True):
                name = child.cmdline()[0] if child.cmdline() else ""
                if any((tmp_path / "ray").glob("codes-*.json")) and name.startswith("ray::") and "Actor" in name:
                    os.kill(child.pid, signal.SIGKILL)
                    killed.set()
                    return
            time.sleep(0.001)

    threading.Thread(target=kill_one, daemon=True).start()
    done = run(world, tmp_path / "ray", on_ray)
    assert killed.is_set()
    assert done.count == COUNT
    run(world, tmp_path / "processes", on_processes)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "processes")


def test_ray_raises_the_error_of_a_worker_as_processes_do(world, tmp_path):
    pytest.importorskip("ray")

    def unmounted(engine):
        def away(*arguments):
            world[1].rename(tmp_path / "away")
            try:
                yield from engine(*arguments)
            finally:
                (tmp_path / "away").rename(world[1])

        return away

    for engine in (on_processes, on_ray):
        with pytest.raises(UnavailableError, match=f"{world[1]} is empty or away"):
            run(world, tmp_path / "codes", unmounted(engine))
    assert run(world, tmp_path / "codes", on_ray).count == COUNT


@pytest.fixture
def s3(monkeypatch):
    server_module = pytest.importorskip("moto.server")
    port = free_port()
    server = server_module.ThreadedMotoServer(port=port)
    server.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    yield client
    server.stop()


def test_objects_in_s3_give_the_codes_of_the_files(world, tmp_path, s3):
    for name in world[2]:
        s3.upload_file(str(world[1] / name), "photos", f"some/prefix/{name}")
    s3.put_object(Bucket="photos", Key="some/prefix/notes.txt", Body=b"no image")
    run(world, tmp_path / "s3", on_processes, images="s3://photos/some/prefix")
    run(world, tmp_path / "files", on_processes)
    assert codes_by_id(tmp_path / "s3") == codes_by_id(tmp_path / "files")
    assert run(world, tmp_path / "s3", on_processes, images="s3://photos/some/prefix").kept == 12
    with pytest.raises(InputError, match="holds no images: there is no such bucket or prefix"):
        run(world, tmp_path / "none", on_processes, images="s3://photos/other")


def test_a_bucket_that_is_not_there_is_named(world, tmp_path, s3):
    with pytest.raises((InputError, UnavailableError), match="s3://nobody/x"):
        run(world, tmp_path / "none", on_processes, images="s3://nobody/x")
