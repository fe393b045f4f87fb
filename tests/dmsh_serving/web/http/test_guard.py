"""Who is let in: raw requests over a socket, as a browser led by another site would send them."""

import socket
from urllib.parse import urlsplit

import pytest
from web_world import KEYS

pytestmark = pytest.mark.live


def raw(page, head, body=b""):
    """Send bytes as they are; return the status and everything that comes back."""
    with socket.create_connection((urlsplit(page.url).hostname, urlsplit(page.url).port), timeout=10) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
        connection.settimeout(10)
        said = b""
        while b"\r\n\r\n" not in said:
            part = connection.recv(65536)
            if not part:
                break
            said += part
    return int(said.split()[1]), said.decode(errors="replace")


def host(page):
    return urlsplit(page.url).netloc


def post(page, *headers):
    body = b'{"key": "%s", "k": 1}' % KEYS[3].encode()
    given = {"Host": host(page), "Content-Type": "application/json", "Content-Length": str(len(body)), **dict(headers)}
    head = "POST /v1/search HTTP/1.1\n" + "".join(f"{name}: {value}\n" for name, value in given.items())
    return raw(page, head, body)[0]


def get(page, path, *headers):
    given = {"Host": host(page), **dict(headers)}
    return raw(page, f"GET {path} HTTP/1.1\n" + "".join(f"{name}: {value}\n" for name, value in given.items()))[0]


def test_the_page_itself_and_plain_programs_are_let_in(web_page):
    assert post(web_page) == 200
    assert post(web_page, ("Origin", f"http://{host(web_page)}"), ("Sec-Fetch-Site", "same-origin")) == 200
    assert post(web_page, ("Origin", f"https://{host(web_page)}")) == 200  # behind a proxy that speaks TLS
    assert get(web_page, "/", ("Sec-Fetch-Site", "none"), ("Sec-Fetch-Mode", "navigate")) == 200
    assert get(web_page, "/", ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")) == 200  # a link


@pytest.mark.parametrize(
    "headers",
    [
        [("Origin", "https://elsewhere.example")],
        [("Origin", "null")],
        [("Origin", "http://127.0.0.1:1")],
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")],
    ],
)
def test_a_page_elsewhere_cannot_post(web_page, headers):
    assert post(web_page, *headers) == 403


def test_a_page_elsewhere_can_show_nothing_of_this_one(web_page):
    elsewhere = ("Sec-Fetch-Site", "cross-site")
    for path in ("/v1/gallery", f"/v1/thumbnails/{KEYS[3]}", "/v1/gallery/bits"):
        assert get(web_page, path) == 200
        assert get(web_page, path, elsewhere, ("Sec-Fetch-Mode", "no-cors")) == 403
        assert get(web_page, path, elsewhere, ("Sec-Fetch-Mode", "navigate")) == 403


@pytest.mark.parametrize(
    "name",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "[::1].evil.example", ""],
)
def test_a_name_that_is_made_to_lead_here_is_refused(web_page, name):
    assert get(web_page, "/", ("Host", name)) in (400, 421)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:80", "127.0.0.1", "192.168.7.9:8080", "[::1]:8080"])
def test_addresses_and_localhost_are_names_of_this_page(web_page, name):
    assert get(web_page, "/", ("Host", name)) == 200


def test_a_body_over_the_limit_is_refused_before_it_is_sent(web_page):
    status, said = raw(web_page, f"POST /v1/search HTTP/1.1\nHost: {host(web_page)}\nContent-Length: 99999999999\n")
    assert status == 413
    assert "connection: close" in said.lower()
    assert raw(web_page, f"POST /v1/search HTTP/1.1\nHost: {host(web_page)}\nContent-Length: -5\n")[0] == 400


def test_every_answer_carries_the_policy(web_page):
    for path in ("/", "/gallery", "/v1/gallery", "/v1/nothing", f"/v1/thumbnails/{KEYS[3]}"):
        _, said = raw(web_page, f"GET {path} HTTP/1.1\nHost: {host(web_page)}\n")
        head = said.partition("\r\n\r\n")[0].lower()
        assert "content-security-policy: default-src 'none'; script-src 'self';" in head
        assert "unsafe" not in head
        assert "x-content-type-options: nosniff" in head
        assert "cross-origin-resource-policy: same-origin" in head
        assert "set-cookie" not in head
