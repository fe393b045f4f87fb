"""The files of TLS, and what is made of them."""

import subprocess

import pytest

from dmsh_serving.errors import InputError
from dmsh_serving.tls import ClientTls, ServerTls, client_tls, read_token


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    pair_in(folder, "cert", "key")
    pair_in(folder, "ca", "its_key")
    return [folder / name for name in ("cert", "key", "ca")]


def pair_in(folder, cert, key, bits=2048, password=None):
    """Make a certificate that signs itself, and its key."""
    made = ["openssl", "req", "-x509", "-newkey", f"rsa:{bits}", "-days", "2", "-subj", "/CN=x"]
    encrypted = ["-nodes"] if password is None else ["-passout", f"pass:{password}"]
    command = [*made, *encrypted, "-keyout", folder / key, "-out", folder / cert]
    subprocess.run(command, check=True, capture_output=True)


def test_a_pair_that_cannot_serve_is_refused(files, tmp_path):
    cert, key, _ = files
    garbage = tmp_path / "garbage"
    garbage.write_text("-----BEGIN CERTIFICATE-----")
    pair_in(tmp_path, "cert", "other")
    pair_in(tmp_path, "locked_cert", "locked", password="secret")
    pair_in(tmp_path, "weak_cert", "weak", bits=1024)
    for one, other in (
        (cert, tmp_path / "other"),
        (tmp_path / "locked_cert", tmp_path / "locked"),
        (tmp_path / "weak_cert", tmp_path / "weak"),
        (garbage, key),
        (key, cert),
    ):
        with pytest.raises(InputError, match=r"^--tls-cert .* and --tls-key .* cannot serve: \S"):
            ServerTls(one, other)
    for authority in (garbage, key):
        with pytest.raises(InputError, match=r"^--tls-client-ca .* holds no certificates: \S"):
            ServerTls(cert, key, authority)
    garbage.write_text("")
    with pytest.raises(InputError, match="holds no certificates"):
        ServerTls(cert, key, garbage)


def test_a_server_is_told_its_files_and_whose_clients_it_answers(files):
    cert, key, ca = files
    assert ServerTls(cert, key).options() == [
        "--grpc-use-ssl=true", f"--grpc-server-cert={cert}", f"--grpc-server-key={key}",
    ]  # fmt: skip
    mutual = ServerTls(cert, key, ca).options()
    assert mutual[-2:] == ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={ca}"]


def test_a_file_that_is_not_there_is_named(files, tmp_path):
    for make in (lambda: ServerTls(files[0], tmp_path / "no"), lambda: ClientTls(ca=tmp_path / "no")):
        with pytest.raises(InputError, match=r"--tls-(key|ca) .*no is not a file"):
            make()


def test_half_a_pair_is_refused(files):
    with pytest.raises(InputError, match="belong together"):
        ClientTls(cert=files[0])


def test_a_client_asks_over_tls_if_it_is_told_to(files):
    cert, key, ca = files
    assert client_tls(False, None, None, None) is None
    assert client_tls(True, None, None, None) == ClientTls()
    assert client_tls(False, ca, cert, key).channel() == {
        "ssl": True, "root_certificates": str(ca), "certificate_chain": str(cert), "private_key": str(key),
    }  # fmt: skip


def test_a_token_is_read_from_a_file_and_anything_but_one_token_is_refused(tmp_path):
    file = tmp_path / "token"
    assert read_token(None) is None
    file.write_text("s3cret-of/us==\n")
    assert read_token(file) == "s3cret-of/us=="
    for wrong in ("", "\n", "two words", "two\nlines", "caf\u00e9", "be\u0007ll"):
        file.write_text(wrong)
        with pytest.raises(InputError, match="must hold one token") as caught:
            read_token(file)
        assert "words" not in str(caught.value)
    with pytest.raises(InputError, match=r"--server-token-file .*no is not a file: name one with a token in it"):
        read_token(tmp_path / "no", "--server-token-file")
