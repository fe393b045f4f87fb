"""gRPC beyond loopback: TLS, mutual TLS, a proxy that asks for a token."""

import gzip
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from live_world import IMAGES, World, check, png
from project import ROOT

from dmsh_serving.client import Retries, SearchClient
from dmsh_serving.errors import MissingError
from dmsh_serving.tls import ClientTls, ServerTls
from dmsh_serving.triton.server.launcher import free_ports

NGINX = Path("/usr/sbin/nginx")
TOOL = Path(sys.executable).with_name("dmsh-serve")


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An authority, and what it signed: a server and a client; and a client that another authority signed."""
    folder = tmp_path_factory.mktemp("tls")
    names = folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for authority, signed in (("ca", ("server", "client")), ("other", ("stranger",))):
        made = ("-nodes", "-newkey", "rsa:2048", "-days", 2, "-keyout", folder / f"{authority}.key")
        openssl("req", "-x509", *made, "-out", folder / f"{authority}.pem", "-subj", f"/CN={authority}")
        for name in signed:
            key, request = folder / f"{name}.key", folder / f"{name}.csr"
            openssl("req", "-nodes", "-newkey", "rsa:2048", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
            issuer = ("-CA", folder / f"{authority}.pem", "-CAkey", folder / f"{authority}.key", "-CAcreateserial")
            signs = ("-req", "-in", request, *issuer, "-days", 2, "-extfile", names, "-out", folder / f"{name}.pem")
            openssl("x509", *signs)
    return folder


def own(files, name):
    return ClientTls(files / "ca.pem", files / f"{name}.pem", files / f"{name}.key")


def refused(url, tls):
    with SearchClient(url, timeout=3, tls=tls) as client, pytest.raises(MissingError):
        client.search(IMAGES[:1], 5)


def test_fault_43_tls_files_are_found_from_the_current_folder_and_nothing_in_it_is_run(files, tmp_path, monkeypatch):
    world, here = World.make(tmp_path, 100), tmp_path / "here"
    here.mkdir()
    (here / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")  # which all models' processes import
    for name in ("server.pem", "server.key"):
        shutil.copy(files / name, here)
    monkeypatch.chdir(here)
    tls = ServerTls(Path("server.pem"), Path("server.key"))
    with world.server(tls=tls) as server, SearchClient(server.url, tls=ClientTls(files / "ca.pem")) as client:
        check(client.search(IMAGES[:2], 5), IMAGES[:2], 5, 100)
    assert not (tmp_path / "ran").exists()


def test_tls_answers_who_trusts_it_and_mutual_tls_whom_it_trusts(files, tmp_path):
    world = World.make(tmp_path, 100)
    with world.server(tls=ServerTls(files / "server.pem", files / "server.key")) as server:
        with SearchClient(server.url, tls=ClientTls(files / "ca.pem")) as client:
            check(client.search(IMAGES[:2], 5), IMAGES[:2], 5, 100)
        refused(server.url, None)
        refused(server.url, ClientTls(files / "other.pem"))
        done = subprocess.run([TOOL, "check", server.url, "--tls-ca", files / "ca.pem"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    mutual = ServerTls(files / "server.pem", files / "server.key", files / "ca.pem")
    with world.server(tls=mutual) as server:
        with SearchClient(server.url, tls=own(files, "client")) as client:
            check(client.search(IMAGES[:2], 5), IMAGES[:2], 5, 100)
        refused(server.url, ClientTls(files / "ca.pem"))
        refused(server.url, own(files, "stranger"))


@pytest.fixture
def proxy(files, server, tmp_path):
    """The address of the documents' proxy, in front of the session's server."""
    if not NGINX.exists():
        pytest.skip(f"{NGINX} is missing: apt-get install nginx")
    (port,) = free_ports("127.0.0.1", 1)
    text = (ROOT / "docs" / "monitoring" / "nginx.conf").read_text()
    text = text.replace("listen 8443", f"listen 127.0.0.1:{port}").replace("127.0.0.1:8001", server.url)
    for name in ("server.pem", "server.key"):
        text = text.replace(f" {name};", f" {files / name};")
    (tmp_path / "nginx.conf").write_text(f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\n{text}")
    command = [NGINX, "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"]
    with subprocess.Popen(list(map(str, command))) as running:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline, (tmp_path / "error.log").read_text()
                    time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            running.terminate()


def test_the_proxy_of_the_documents_lets_searches_with_its_token_through_and_nothing_else(files, proxy, tmp_path):
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    tls = ClientTls(files / "ca.pem")
    with SearchClient(proxy, tls=tls, token="CHANGE-ME") as client:
        assert client.search_files([png(IMAGES[3])], 5).distances[0, 0] == 0
    for token, code in (("CHANGE-ME", 0), ("change-me", 1), ("CHANGE-ME2", 1), ("2CHANGE-ME", 1), ("another", 1)):
        (tmp_path / "token").write_text(f"{token}\n")
        shown = ["--tls-ca", files / "ca.pem", "--token-file", tmp_path / "token"]
        done = subprocess.run([TOOL, "check", proxy, *shown], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    (tmp_path / "photo.png").write_bytes(png(IMAGES[3]))
    assert subprocess.run([TOOL, "query", tmp_path / "photo.png", "--url", proxy, *shown]).returncode == 3
    (tmp_path / "token").write_text("CHANGE-ME")
    assert subprocess.run([TOOL, "query", tmp_path / "photo.png", "--url", proxy, *shown]).returncode == 0
    measured = subprocess.run([TOOL, "load", proxy, "--warm-up", "0", "--window", "0.2", "--windows", "3", *shown])
    assert measured.returncode == 0
    refused(proxy, tls)
    with SearchClient(proxy, timeout=3, tls=tls, token="another") as client, pytest.raises(MissingError):
        client.search(IMAGES[:1], 5)
    with triton.InferenceServerClient(proxy, **tls.channel()) as asking, pytest.raises(InferenceServerException):
        asking.get_model_repository_index(headers={"authorization": "Bearer CHANGE-ME"})


def is_ready(url, message, compressed, *said):
    """Ask ServerReady with the bytes of a message, by options of curl; return gRPC's status."""
    frame = bytes([compressed]) + len(message).to_bytes(4, "big") + message
    headers = ("content-type: application/grpc", "te: trailers", "authorization: Bearer CHANGE-ME")
    command = ["curl", "-s", "-D-", "-o/dev/null", "--max-time", "30", *said, *(f"-H{each}" for each in headers)]
    command += ("--data-binary", "@-", f"{url}/inference.GRPCInferenceService/ServerReady")
    done = subprocess.run(command, input=frame, capture_output=True, check=True)
    return int(re.search(rb"^grpc-status: (\d+)", done.stdout, re.MULTILINE)[1])


def test_behind_the_proxy_of_the_documents_triton_decompresses_nothing(files, server, proxy):
    nothing, gzipped, plain = gzip.compress(b""), "-Hgrpc-encoding: gzip", "-Hgrpc-encoding: identity"
    assert is_ready(f"http://{server.url}", nothing, True, "--http2-prior-knowledge", gzipped) == 0  # it would
    trusts = ("--cacert", files / "ca.pem")
    assert is_ready(f"https://{proxy}", b"", False, *trusts, plain) == 0
    for said in ([gzipped], [plain, gzipped], [gzipped, plain]):
        assert is_ready(f"https://{proxy}", nothing, True, *trusts, *said) != 0


def frame(kind, flags, stream, data=b""):
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    return len(data).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + data


def ask_and_read_nothing(connection, requests):
    """Ask ServerReady so often on a connection whose window for answers is 0."""
    path, window = b"/inference.GRPCInferenceService/ServerReady", (4).to_bytes(2, "big") + bytes(4)
    said = {b":method": b"POST", b":scheme": b"https", b":path": path, b":authority": b"localhost"}
    said |= {b"te": b"trailers", b"content-type": b"application/grpc", b"authorization": b"Bearer CHANGE-ME"}
    headers = b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in said.items())
    asked = [frame(1, 4, stream, headers) + frame(0, 1, stream, bytes(5)) for stream in range(1, 2 * requests, 2)]
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, window) + frame(4, 1, 0) + b"".join(asked))


def test_the_proxy_of_the_documents_limits_an_address_and_drops_answers_that_nobody_reads(files, proxy):
    tls = ClientTls(files / "ca.pem")
    context = ssl.create_default_context(cafile=files / "ca.pem")
    context.set_alpn_protocols(["h2"])
    host, port = proxy.split(":")

    def is_answered():
        try:
            with SearchClient(proxy, tls=tls, token="CHANGE-ME", retries=Retries(0)) as client:
                check(client.search(IMAGES[:1], 5), IMAGES[:1], 5)
            return True
        except MissingError as error:
            if "status: 503" not in str(error):
                raise
            return False

    with context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host) as connection:
        assert is_answered()
        ask_and_read_nothing(connection, 110)
        for expected in (False, True):  # the connection is open all the time, and nginx gives it 60 s if not told
            deadline = time.monotonic() + 40
            while is_answered() is not expected:
                assert time.monotonic() < deadline
                time.sleep(0.1)
