"""A live Triton whose gallery is in ClickHouse, started as the image starts it and asked as its probes ask it."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import clickhouse_world
import numpy as np
import pytest
import tiny_model
import yaml
from clickhouse_world import wait_until
from project import ROOT

from dmsh_serving import gallery
from dmsh_serving.clickhouse.changes import rollback
from dmsh_serving.clickhouse.push import push
from dmsh_serving.clickhouse.rows import source_of_gallery
from dmsh_serving.client import SearchClient
from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import MissingError
from dmsh_serving.hamming.oracle import search_oracle
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.server.launcher import free_ports
from dmsh_serving.triton.spec import RepositorySpec

BIN = Path(sys.executable).parent
IMAGES = tiny_model.random_images(3000, seed=1)
CODES = tiny_model.codes_of(IMAGES)
SLOW = 120  # seconds; a busy machine


@pytest.fixture
def database(tmp_path):
    pytest.importorskip("chdb")
    server = clickhouse_world.Server(tmp_path / "clickhouse", clickhouse_world.free_port()).start()
    yield server
    with contextlib.suppress(ProcessLookupError):
        server.kill()


def publish(folder, address, count):
    gallery.build(
        folder,
        CODES[:count],
        None,
        [f"image-{number}" for number in range(count)],
        bits=tiny_model.BITS,
        fingerprint=tiny_model.FINGERPRINT,
        overwrite=True,
    )
    return push(source_of_gallery(folder, gallery.open_current(folder)), address)[0].version


@contextlib.contextmanager
def started(repository, folder):
    """Run the image's own command on this machine, with free ports; yield the ports of gRPC and of the metrics."""
    (line,) = re.findall(r"^ENTRYPOINT (\[.*\])$", (ROOT / "deploy/cpu/Dockerfile").read_text(), re.MULTILINE)
    grpc, metrics = free_ports("0.0.0.0", 2)
    changed = {
        "/data/repository": str(repository),
        "8001": str(grpc),
        "8002": str(metrics),
        "/tmp/triton.log": str(folder / "triton.log"),
    }
    program, *arguments = [changed.get(each, each) for each in json.loads(line)]
    with (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen([BIN / program, *arguments], stderr=errors)
    try:
        yield process, grpc, metrics
    finally:
        process.terminate()
        process.wait(SLOW)


def probe(grpc):
    """Run the start-up probe of the manifest."""
    pod = next(yaml.safe_load_all((ROOT / "deploy/kubernetes/base/triton.yaml").read_text()))["spec"]["template"][
        "spec"
    ]
    program, *arguments = pod["containers"][0]["startupProbe"]["exec"]["command"]
    return subprocess.run(
        [BIN / program, *(each.replace("8001", str(grpc)) for each in arguments)], capture_output=True, text=True
    )


def assert_the_oracles_answers(client, images, count, k):
    found = client.search(images, k)
    distances, rows = search_oracle(tiny_model.codes_of(images), CODES[:count], k)
    np.testing.assert_array_equal(found.ids, rows)
    np.testing.assert_array_equal(found.distances, distances)
    return found


def test_triton_serves_a_gallery_in_clickhouse_follows_it_and_outlives_it(database, tmp_path):
    address = database.address()
    first = publish(tmp_path / "gallery", address, 2000)
    spec = RepositorySpec(
        address,
        tiny_model.BITS,
        tiny_model.SIZE,
        tiny_model.FINGERPRINT,
        model=tiny_model.write(tmp_path / "model.onnx"),
        known_answer=known_answer.dump(IMAGES[:1], CODES[:1]),
    )
    write_repository(tmp_path / "repository", spec)
    asked = np.concatenate([IMAGES[:2], IMAGES[2500:2502]])
    with started(tmp_path / "repository", tmp_path) as (process, grpc, metrics):
        wait_until(lambda: process.poll() is not None or probe(grpc).returncode == 0, SLOW)
        assert process.poll() is None, (tmp_path / "errors.txt").read_text()
        here = socket.gethostbyname(socket.gethostname())  # as from outside the container
        with urllib.request.urlopen(f"http://{here}:{metrics}/metrics") as answer:
            assert b"dmsh_gallery_codes" in answer.read()
        assert is_healthy(f"{here}:{grpc}")
        with SearchClient(f"{here}:{grpc}", timeout=SLOW) as client:
            found = assert_the_oracles_answers(client, asked, 2000, 50)
            assert set(found.gallery_version) == {first}
            assert found.keys[0][0] == "image-0"
            second = publish(tmp_path / "gallery", address, 3000)
            wait_until(lambda: version_of(client) == second, SLOW)
            assert_the_oracles_answers(client, asked, 3000, 50)
            rollback(address)
            wait_until(lambda: version_of(client) not in (first, second), SLOW)
            assert_the_oracles_answers(client, asked, 2000, 50)
            database.kill()
            with pytest.raises(MissingError, match=r"UNAVAILABLE.* database does not answer"):
                client.search(asked[:1], 1)
            assert probe(grpc).returncode == 1
            database.start()
            wait_until(lambda: probe(grpc).returncode == 0, SLOW)
            assert_the_oracles_answers(client, asked, 2000, 50)


def version_of(client):
    return client.search(IMAGES[:1], 1).gallery_version[0]


def is_healthy(url):
    """Ask the standard gRPC health service, as the readiness probe does."""
    import grpc

    with grpc.insecure_channel(url) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        return check(b"", timeout=SLOW) == b"\x08\x01"  # SERVING
