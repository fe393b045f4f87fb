"""The network client against a server that goes away, hangs, is too old, or shows an expired certificate."""

import datetime
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from clickhouse_world import F, Server, free_port, wait_until

from dmsh_serving import gallery
from dmsh_serving.clickhouse import rows
from dmsh_serving.clickhouse.address import PASSWORD, Address
from dmsh_serving.clickhouse.breaker import Breaker
from dmsh_serving.clickhouse.connection import Connection
from dmsh_serving.clickhouse.push import push
from dmsh_serving.clickhouse.rows import source_of_gallery
from dmsh_serving.clickhouse.search import open_remote
from dmsh_serving.codes import uniform_codes
from dmsh_serving.errors import InputError, UnavailableError
from dmsh_serving.ranker.follower import Ranker


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("clickhouse"), free_port()).start()
    yield started
    started.kill()


@pytest.fixture
def folder(tmp_path):
    keys = [f"key-{number}" for number in range(500)]
    gallery.build(tmp_path / "g", uniform_codes(500, 64, 1), None, keys, bits=64, fingerprint=F)
    return tmp_path / "g"


def publish(folder, address):
    return push(source_of_gallery(folder, gallery.open_current(folder)), address)[0].version


def test_over_the_network_too_the_answers_are_the_folders(server, folder):
    address = server.address()
    publish(folder, address)
    local, remote = gallery.open_current(folder), open_remote(address)
    queries = uniform_codes(5, 64, 2)
    for allowed in (None, np.arange(0, 500, 3), np.arange(3000)):
        expected = local.search(queries, 30, allowed=allowed)
        found = remote.search(queries, 30, allowed=allowed)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.distances, expected.distances)
    assert remote.keys_of(found.rows[:, :2]) == local.keys_of(expected.rows[:, :2])


def test_a_server_that_is_down_is_unavailable_at_once_and_is_found_again_by_itself(server, folder):
    address = server.address()
    version = publish(folder, address)
    query = uniform_codes(1, 64, 2)
    with Ranker(address, bits=64, fingerprint=F, poll_seconds=0.05) as ranker:
        assert ranker.search(query, 3).gallery_version == version
        server.kill()
        try:
            with pytest.raises(UnavailableError):
                ranker.search(query, 3)
            start = time.monotonic()
            with pytest.raises(UnavailableError, match="did not answer a moment ago"):
                ranker.search(query, 3)
            assert time.monotonic() - start < 0.2
        finally:
            server.start()

        def answers():
            try:
                return ranker.search(query, 3).gallery_version == version
            except UnavailableError:
                return False

        wait_until(answers)
        gallery.remove(folder, np.array([1]))
        newer = publish(folder, address)
        wait_until(lambda: ranker.version == newer)
        assert ranker.search(query, 3).gallery_version == newer


def test_a_server_that_dies_in_a_push_is_told_in_one_line_and_the_push_goes_on(server, folder, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_ROWS", 100)
    address, insert, arrived = server.address(), Connection.insert, []

    def dying(self, table, block, **settings):
        if len(arrived) == 2:
            server.kill()
        insert(self, table, block, **settings)
        arrived.append(block.num_rows)

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "insert", dying)
        with pytest.raises(UnavailableError, match=r"does not answer: [^?]{5,60}$"):
            publish(folder, address)
    server.start()
    with Connection(address) as connection:
        connection.run(f"TRUNCATE TABLE {address.database}.leases")  # the dead writer's runs out in a minute
    assert push(source_of_gallery(folder, gallery.open_current(folder)), address)[1] == 300
    expected = gallery.open_current(folder).search(uniform_codes(2, 64, 2), 500)
    np.testing.assert_array_equal(open_remote(address).search(uniform_codes(2, 64, 2), 500).ids, expected.ids)


def test_a_server_that_hangs_is_given_up_at_the_deadline(server, folder):
    address = server.address(timeout=1)
    publish(folder, address)
    remote = open_remote(address)
    server.pause(True)
    try:
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            remote.search(uniform_codes(1, 64, 2), 3)
        assert time.monotonic() - start < 10
    finally:
        server.pause(False)


def test_the_servers_own_deadline_is_set(server):
    with Connection(server.address(timeout=1)) as connection, pytest.raises(UnavailableError, match="deadline"):
        connection.value("SELECT sum(sipHash64(number)) FROM numbers(1000000000000)")


def test_a_profiles_limits_cut_no_answer_short_and_inserts_are_not_queued(server):
    with Connection(server.address()) as connection:
        for setting, value in (("async_insert", "0"), ("insert_deduplicate", "1"), ("skip_unavailable_shards", "0")):
            assert str(int(connection.value(f"SELECT getSetting('{setting}')"))) == value
        for limit in ("timeout", "read", "set", "sort", "result", "transfer"):
            assert connection.value(f"SELECT getSetting('{limit}_overflow_mode')") == "throw"
        for limit in ("timeout", "read"):
            assert connection.value(f"SELECT getSetting('{limit}_overflow_mode_leaf')") == "throw"
        assert connection.value("SELECT [getSetting('limit'), getSetting('offset')]") == [0, 0]


def test_a_server_that_answers_with_a_refusal_is_not_down(server):
    with Connection(server.address()) as connection:
        connection._breaker.failed("it was down")
        connection._breaker._again = 0.0
        for _ in range(2):
            with pytest.raises(InputError, match="is not there"):
                connection.value("SELECT * FROM nowhere.nothing")


def test_a_dropped_table_is_named(server, folder):
    address = server.address()
    publish(folder, address)
    remote = open_remote(address)
    with Connection(address) as connection:
        connection.run(f"DROP TABLE {address.database}.codes_photos SYNC")
    with pytest.raises(InputError, match="was dropped: make it with dmsh-serve gallery push"):
        remote.search(uniform_codes(1, 64, 2), 3)


def test_nothing_there_is_an_input_error_that_says_what_to_do(server):
    with pytest.raises(InputError, match="dmsh-serve gallery push"):
        open_remote(server.address())


def test_a_server_that_is_too_old_is_refused(tmp_path):
    old = Server(tmp_path / "old", free_port(), ("--version", "23.3.1.1")).start()
    try:
        with pytest.raises(InputError, match=r"is ClickHouse 23.3.1.1: 24.8 or later is needed"):
            open_remote(old.address())
    finally:
        old.kill()


def test_an_expired_certificate_is_refused(tmp_path):
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(9)).not_valid_after(now - datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "both.pem").write_bytes(made.public_bytes(pem) + secret)
    (tmp_path / "ca.pem").write_bytes(made.public_bytes(pem))
    server = Server(tmp_path / "tls", free_port(), ("--certificate", str(tmp_path / "both.pem"))).start()
    try:
        with pytest.raises(UnavailableError, match="certificate has expired"):
            open_remote(server.address(host="localhost", secure=True, ca=str(tmp_path / "ca.pem")))
    finally:
        server.kill()


def test_nobody_listens_and_the_error_is_one_line(tmp_path):
    address = f"clickhouse://127.0.0.1:{free_port()}/images/photos"
    command = [Path(sys.executable).with_name("dmsh-serve"), "gallery", "info", address]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"error: {address} does not answer: Connection refused\n"


def test_a_port_without_tls_and_a_file_that_is_not_there_are_named(server):
    with pytest.raises(UnavailableError, match="speaks no TLS on this port: leave out secure=1"):
        open_remote(server.address(secure=True))
    with pytest.raises(InputError, match=r"nowhere\.pem is not there"):
        open_remote(server.address(secure=True, ca="/nowhere.pem"))


class Refusing(BaseHTTPRequestHandler):
    """What a server answers to a wrong password."""

    def do_POST(self):
        text = (
            b"Code: 516. DB::Exception: reader: Authentication failed: password is incorrect. (AUTHENTICATION_FAILED)"
        )
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(403)
        self.send_header("X-ClickHouse-Exception-Code", "516")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def test_a_wrong_password_is_named(monkeypatch):
    monkeypatch.setenv(PASSWORD, "wrong")
    with HTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        address = Address("images", "photos", host="127.0.0.1", port=refusing.server_port, user="reader")
        with pytest.raises(InputError, match=f"refuses the user reader: give it rights, or set {PASSWORD}"):
            open_remote(address)
        refusing.shutdown()


def test_a_breaker_lets_one_caller_try_and_waits_longer_each_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    breaker = Breaker()
    assert breaker.allows()
    assert breaker.allows()
    breaker.failed("gone")
    waits = []
    for _ in range(7):
        before = now[0]
        while not breaker.allows():
            now[0] += 0.25
        assert not breaker.allows()  # the others wait
        waits.append(now[0] - before)
        breaker.failed("gone")
    assert waits == [0.5, 1, 2, 4, 8, 8, 8]
    breaker.answered()
    assert breaker.allows()
    assert breaker.allows()


def test_the_client_that_is_missing_is_named(tmp_path):
    program = (
        "import sys; sys.modules['clickhouse_connect'] = None\n"
        "from dmsh_serving.clickhouse.address import Address\n"
        "from dmsh_serving.clickhouse.connection import Connection\n"
        "from dmsh_serving.errors import MissingError\n"
        "try: Connection(Address('a', 'b')).value('SELECT 1')\n"
        "except MissingError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'dmsh-toolkit[clickhouse]'" in done.stdout
