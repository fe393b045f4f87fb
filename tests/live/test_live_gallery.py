"""A new gallery version while the server answers."""

import http.client
import re
import threading
import time

import pytest
from live_world import IMAGES, World, check

from dmsh_serving import gallery
from dmsh_serving.client import SearchClient

QUERIES = IMAGES[:3]
TOLD = []  # what the launcher said in the terminal


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("swapped"), 100)


@pytest.fixture(scope="module")
def server(world):
    with world.server(on_event=TOLD.append) as running:
        yield running


def wait_for_version(client, version, seconds=10.0):
    deadline = time.monotonic() + seconds
    while client.search(QUERIES, 1).gallery_version[0] != version:
        assert time.monotonic() < deadline, f"version {version} did not come within {seconds} s"
        time.sleep(0.02)


def test_fault_15_a_swap_under_load_loses_no_request_and_mixes_no_versions(world, server, client):
    counts = {gallery.current_version(world.gallery): 100}
    answers, errors, stop = [], [], threading.Event()

    def ask():
        with SearchClient(server.url) as mine:
            while not stop.is_set():
                try:
                    answers.append(mine.search(QUERIES, 5))
                except Exception as error:
                    errors.append(error)

    def wait_until_the_last_version_answered():
        end = time.monotonic() + 30
        while not errors and not any(answer.gallery_version[0] == max(counts) for answer in list(answers)):
            assert time.monotonic() < end, f"no client was answered from version {max(counts)}"
            time.sleep(0.01)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until_the_last_version_answered()
        for count in (150, 40, 250):
            version = world.publish(count)
            counts[version] = count
            wait_for_version(client, version)
            wait_until_the_last_version_answered()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert {answer.gallery_version[0] for answer in answers} == set(counts)
    for answer in answers:
        (version,) = set(answer.gallery_version)
        check(answer, QUERIES, 5, counts[version])


def metric(server, name):
    connection = http.client.HTTPConnection(server.metrics_url, timeout=5)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    (value,) = re.findall(rf"^dmsh_gallery_{name}(?:{{}})? (\S+)$", text, flags=re.MULTILINE)
    return float(value)


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_fault_16_a_broken_new_version_is_counted_and_the_old_one_serves(world, server, client):
    version = world.publish(120)
    wait_for_version(client, version)
    before = metric(server, "failed_swaps_total")
    content = bytearray((world.gallery / f"gallery-{version}.safetensors").read_bytes())
    content[-1] ^= 1
    (world.gallery / "gallery-00000099-00000000.safetensors").write_bytes(content)
    (world.gallery / "new").write_text("00000099-00000000\n")
    (world.gallery / "new").replace(world.gallery / gallery.CURRENT)
    deadline = time.monotonic() + 60
    while metric(server, "failed_swaps_total") == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = client.search(QUERIES, 5)
    assert set(answer.gallery_version) == {version}
    check(answer, QUERIES, 5, 120)
    assert metric(server, "failed_swaps_total") == before + 1
    assert f"version {version} goes on serving" in server.log_file.read_text()
    while not any(f"version {version} goes on serving" in line for line in TOLD):
        assert time.monotonic() < deadline, TOLD
        time.sleep(0.05)
    assert any(f"now serves version {version}" in line for line in TOLD)
    mended = world.publish(130)
    wait_for_version(client, mended)


def test_fault_35_a_server_that_starts_on_a_damaged_gallery_serves_the_last_sound_version(tmp_path):
    world = World.make(tmp_path, 100)
    sound = gallery.current_version(world.gallery)
    damage(world.gallery / f"gallery-{world.publish(150)}.safetensors")
    with world.server() as server, SearchClient(server.url) as client:
        answer = client.search(QUERIES, 5)
        assert set(answer.gallery_version) == {sound}
        check(answer, QUERIES, 5, 100)
        assert (metric(server, "current"), metric(server, "failed_swaps_total")) == (0, 1)
        assert f"version {sound}, the last sound one, serves in its place" in server.log_file.read_text()
        gallery.rollback(world.gallery)
        deadline = time.monotonic() + 60
        while not metric(server, "current"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
