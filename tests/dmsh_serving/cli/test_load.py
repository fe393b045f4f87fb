"""The command: what it prints and writes, when it fails, and what it refuses before it measures."""

import json
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from fake_triton import SIZE, FakeTriton

FAST = ["--warm-up", "0", "--window", "0.1", "--windows", "3"]


@pytest.fixture(scope="module")
def server():
    with FakeTriton(seconds=0.005) as running:
        yield running


def run(*arguments):
    tool = Path(sys.executable).with_name("dmsh-serve")
    return subprocess.run([tool, "load", *map(str, arguments)], capture_output=True, text=True)


def test_a_sweep_is_measured_drawn_and_written(server, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib, which draws, is not installed")
    out, plot = tmp_path / "load.json", tmp_path / "load.svg"
    done = run(server.url, "--sweep", *FAST, "--slo", "p50=1s", "--json", out, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert "knee" in done.stdout
    assert "by the server's own account" in done.stdout
    loads = json.loads(out.read_text())["loads"]
    assert [each["load"]["concurrency"] for each in loads][:2] == [1, 2]  # where it ends, the machine says
    assert loads[0]["latency_ms"]["p50"] > 5
    assert "knee" in plot.read_text()


def test_an_objective_that_is_missed_is_exit_code_1_with_what_was_found(server, tmp_path):
    out = tmp_path / "load.json"
    done = run(server.url, "--rate", 100, *FAST, "--slo", "p50=1ms", "--json", out)
    assert done.returncode == 1
    assert "100/s poisson: p50 <= 1 ms is missed" in done.stderr
    assert json.loads(out.read_text())["missed"]


def test_images_of_an_npy_file_are_sent(server, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((3, SIZE, SIZE, 3), np.uint8))
    done = run(server.url, "--images", tmp_path / "images.npy", "--batch", 2, *FAST)
    assert done.returncode == 0, done.stderr
    assert "2 image(s) per request, 3 different requests" in done.stdout


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """A server that answers over TLS those alone whose certificate it made, its file of certificate, and of key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = [
        "-x509",
        "-nodes",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-keyout",
        key,
        "-out",
        cert,
    ]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run(["openssl", "req", *map(str, made), *named], check=True, capture_output=True)
    pair = [(key.read_bytes(), cert.read_bytes())]
    with FakeTriton(credentials=grpc.ssl_server_credentials(pair, cert.read_bytes(), True)) as running:
        yield running, cert, key


def test_a_server_behind_tls_and_a_token_is_measured(secured, tmp_path):
    running, cert, key = secured
    (tmp_path / "token").write_text("secret\n")
    shown = ["--tls-ca", cert, "--tls-cert", cert, "--tls-key", key, "--token-file", tmp_path / "token"]
    done = run(running.url, "--concurrency", 2, "--rate", 50, *FAST, *shown)
    assert done.returncode == 0, done.stderr
    assert {token for _, token in running.said} == {"Bearer secret"}
    assert "secret" not in done.stdout + done.stderr


def test_a_server_that_this_client_may_not_ask_is_one_error_and_exit_code_3(secured):
    running, cert, _ = secured
    done = run(running.url, *FAST, "--timeout", 5, "--tls-ca", cert)
    assert (done.returncode, done.stderr.splitlines()[-1].startswith("error: no Triton at ")) == (3, True), done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slo", "fast"], "write it as p99=5ms"),
        (["--sweep", "--rate", "5"], "--sweep chooses the loads"),
        (["--fixed"], "--fixed is for an open loop"),
        (["--rate", "0"], "more than 0 requests per second"),
        (["--concurrency", "0"], "concurrency 0"),
        (["--token-file", "absent"], "--token-file absent is not a file"),
        (["--images", "absent"], "give a folder of image files"),
        (["--plot", "load.png"], r"ends in .svg"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused_before_it_begins(server, options, message):
    before = len(server.rows)
    done = run(server.url, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(server.rows) == before
