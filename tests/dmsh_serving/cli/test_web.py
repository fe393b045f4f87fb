"""The page's command as a person runs it: what it refuses, and both servers in one."""

import resource
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("onnx", reason="onnx, which writes the model, is not installed")
from web_world import KEYS

from dmsh_serving.cli.web import allow_descriptors, served_gallery

TOOL = Path(sys.executable).with_name("dmsh-serve")


def refused(*arguments):
    done = subprocess.run([TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["web", "--images", "nowhere"], "--images nowhere is not a folder"),
        (["web", "--images", ".", "--host", "0.0.0.0"], "lets others reach this page"),
        (["web", "--images", ".", "--tls-cert", "c.pem"], "--tls-cert and --tls-key belong together"),
        (["web", "--images", ".", "--metadata", "m.csv"], "--metadata needs --gallery"),
        (["web", "--images", ".", "--gallery", "."], "is not a gallery"),
        (["start", "--repository", ".", "--web"], "--web needs --images FOLDER"),
        (["start", "--repository", ".", "--host", "0.0.0.0"], "lets others reach this server"),
        (["start", "--repository", ".", "--tls-key", "k.pem"], "--tls-cert and --tls-key belong together"),
        (["start", "--repository", ".", "--tls-client-ca", "c.pem"], "--tls-client-ca needs --tls-cert"),
        (["start", "--repository", ".", "--tls-cert", "c", "--tls-key", "k"], "--tls-cert c is not a file"),
        (["query", "a.png", "--tls-cert", "c"], "--tls-cert c is not a file"),
        (["status", "--http", "127.0.0.1:1"], "--http and --metrics belong together"),
        (["start", "--repository", ".", "--images", "."], "give --web too"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, error = refused(*arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert said in error


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_page_that_is_told_to_end_says_nothing(tmp_path, ending):
    command = [str(TOOL), "web", "--images", str(tmp_path), "--port", "0", "--cache", str(tmp_path / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as page:
        url = page.stdout.readline().split()[-1]
        assert urllib.request.urlopen(url, timeout=30).status == 200
        page.send_signal(ending)
        assert (page.wait(60), page.stderr.read()) == (0, "")


@pytest.mark.live
def test_a_taken_port_is_named(web_page, web_world):
    port = web_page.url.rstrip("/").rsplit(":", 1)[1]
    code, error = refused("web", "--images", web_world.images, "--port", port)
    assert (code, error.count("\n")) == (3, 1)
    assert f"cannot listen on 127.0.0.1:{port}" in error


@pytest.mark.live
def test_start_runs_triton_and_the_page_and_stops_both(web_world):
    command = [TOOL, "start", "--repository", web_world.repository, "--grpc-port", "0", "--log-file"]
    command += [web_world.folder / "both.log", "--web", "--images", web_world.images, "--web-port", "0"]
    from dmsh_serving.triton.server.launcher import free_ports

    command[command.index("0")] = str(free_ports("127.0.0.1", 1)[0])
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as both:
        try:
            assert "Triton is ready" in both.stdout.readline()
            url = both.stdout.readline().split()[-1]
            with urllib.request.urlopen(f"{url}v1/gallery", timeout=30) as answer:
                assert f'"count":{len(KEYS)}'.encode() in answer.read()
        finally:
            both.send_signal(signal.SIGTERM)
        assert both.wait(60) == 0, both.stderr.read()


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, 1 << 20), (1 << 16, 1 << 20)),
        ((1024, resource.RLIM_INFINITY), (1 << 16, resource.RLIM_INFINITY)),
        ((1 << 20, 1 << 20), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_idle_connections_may_take_more_descriptors_than_a_process_usually_has(monkeypatch, limits, wanted):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: asked.append((what, pair)))
    allow_descriptors()
    assert asked == ([] if wanted is None else [(resource.RLIMIT_NOFILE, wanted)])


@pytest.mark.parametrize("place", ["../../gallery", "clickhouse://host/database/name"])
def test_the_page_beside_a_server_knows_the_folder_of_its_gallery_if_it_has_one(tmp_path, monkeypatch, place):
    class Client:
        def __init__(self, url):
            assert url == "127.0.0.1:8001"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def get_model_config(self, name):
            parameters = {"gallery": SimpleNamespace(string_value=place)}
            return SimpleNamespace(config=SimpleNamespace(parameters=parameters))

    monkeypatch.setattr("tritonclient.grpc.InferenceServerClient", Client)
    server = SimpleNamespace(url="127.0.0.1:8001", repository=tmp_path / "repository")
    assert served_gallery(server) == (tmp_path / "gallery" if place.startswith("..") else None)
