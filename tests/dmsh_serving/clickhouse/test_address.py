import pytest

from dmsh_serving.clickhouse.address import Address, is_address
from dmsh_serving.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "clickhouse://localhost/images/photos",
        "clickhouse://reader@db.example.org:8443/images/photos?timeout=5&secure=1&ca=/etc/ca.pem&cluster=main",
        "clickhouse://[::1]:8123/images/photos",
        "clickhouse://me%40example.org@localhost/images/photos",
        "chdb:///tmp/folder/images/photos",
        "chdb:///tmp/folder/images/photos?timeout=3",
    ],
)
def test_an_address_says_itself(text):
    assert is_address(text)
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("clickhouse://localhost/photos", "write clickhouse://"),
        ("clickhouse://localhost/a/b/c", "write clickhouse://"),
        ("clickhouse:///images/photos", "write clickhouse://"),
        ("clickhouse://localhost:99999/images/photos", "[Pp]ort"),
        ("clickhouse://localhost/images/Photos", "lower-case"),
        ("clickhouse://localhost/images/p-1", "lower-case"),
        ("clickhouse://localhost/images/photos_local", "ends in _local"),
        ("clickhouse://localhost/images/x;drop", "lower-case"),
        ("clickhouse://localhost/images/photos?sekure=1", "no option sekure"),
        ("clickhouse://localhost/images/photos?timeout=0", "timeout=0"),
        ("clickhouse://localhost/images/photos?secure=yes", "secure=1"),
        ("clickhouse://localhost/images/photos?cluster=a b", "lower-case"),
        ("chdb://host/tmp/images/photos", "chdb:///"),
        ("chdb:///images/photos", "chdb:///"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text, reason):
    with pytest.raises(InputError, match=reason):
        Address.parse(text)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(InputError, match="DMSH_CLICKHOUSE_PASSWORD") as refused:
        Address.parse("clickhouse://me:secret@localhost/images/photos")
    assert "secret" not in str(refused.value)


def test_the_password_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("DMSH_CLICKHOUSE_PASSWORD", "word")
    assert Address.parse("clickhouse://me@localhost/images/photos").password == "word"


def test_a_user_with_an_at_sign_is_written_as_in_any_address():
    assert Address.parse("clickhouse://me%40example.org@localhost/images/photos").user == "me@example.org"


def test_a_folder_is_no_address():
    assert not is_address("build/gallery")
