"""A server's metrics, read."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dmsh_serving.errors import MissingError
from dmsh_serving.triton.server.addresses import Addresses
from dmsh_serving.triton.server.status import Seen, quantile, samples_of

TEXT = """# HELP dmsh_restarts how often
# TYPE dmsh_restarts gauge
dmsh_restarts 2
dmsh_gallery_version_number 7
dmsh_gallery_wanted_version_number 8
dmsh_rank_seconds_bucket{le="0.001"} 50
dmsh_rank_seconds_bucket{le="0.01"} 99
dmsh_rank_seconds_bucket{le="+Inf"} 100
dmsh_rank_seconds_count 100
dmsh_rank_refused_total{reason="invalid"} 3
dmsh_rank_refused_total{reason="internal"} 0
dmsh_build_info{version="1.2",python="3.11.2",numpy="1.26.4"} 1
nv_inference_count{model="dmsh_ranker",version="1"} 9
"""


def test_what_a_server_says_has_names():
    said = Seen(True, samples_of(TEXT)).to_dict()
    assert (said["ready"], said["version"], said["restarts"]) == (True, "1.2", 2)
    assert (said["gallery"]["serving"], said["gallery"]["wanted"]) == (7, 8)
    assert said["steps"]["rank"] == {"requests": 100, "p50_ms": 1.0, "p99_ms": 10.0}
    assert said["steps"]["decode"] == {"requests": 0, "p50_ms": None, "p99_ms": None}
    assert said["refused"] == {"rank: invalid": 3}


def test_a_person_is_told_what_is_wrong():
    rows = dict(Seen(False, samples_of(TEXT)).rows())
    assert rows["ready"] == "NO"
    assert rows["gallery"] == "version 7, but 8 is wanted, None codes"
    assert rows["refused, rank: invalid"] == "3"


@pytest.mark.parametrize(
    ("buckets", "share", "edge"),
    [
        ([], 0.5, None),
        ([(0.1, 0.0), (float("inf"), 0.0)], 0.5, None),
        ([(0.1, 1.0), (float("inf"), 2.0)], 0.5, 100.0),
        ([(0.1, 1.0), (float("inf"), 2.0)], 0.51, None),
    ],
)
def test_a_quantile_is_the_edge_of_its_bucket(buckets, share, edge):
    assert quantile(buckets, share) == edge


def test_nothing_there_is_said():
    with pytest.raises(MissingError, match=r"nothing answers at http://127\.0\.0\.1:1/metrics"):
        Seen.of("127.0.0.1:1", "127.0.0.1:1")


@pytest.fixture
def says():
    """An HTTP server whose every answer is the text that it is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.server.text.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize(
    "line",
    [
        "dmsh_restarts many",
        "dmsh_restarts NaN",
        "dmsh_gallery_codes +Inf",
        "dmsh_rank_refused_total 3",
        'dmsh_rank_seconds_bucket{le="soon"} 1',
        "dmsh_rank_seconds_bucket 1",
        'dmsh_decode_seconds_bucket{le="+Inf"} NaN',
    ],
)
def test_metrics_that_no_server_of_ours_has_are_one_clear_error(says, line):
    url = f"127.0.0.1:{says.server_port}"
    says.text = TEXT
    assert Seen.of(url, url).ready
    says.text = f"{line}\n{TEXT}"
    with pytest.raises(MissingError, match=f"the metrics at http://{url}/metrics are not those of a server of ours"):
        Seen.of(url, url)


@pytest.mark.parametrize("url", ["localhost:port", "http://localhost:8000", "a" * 70 + ".example:80", "a b:80"])
def test_an_address_that_is_none_is_one_clear_error(url):
    with pytest.raises(MissingError, match="nothing answers at"):
        Seen.of(url, url)


def test_where_a_server_is_reached_is_noted_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    noted = Addresses("127.0.0.1:8001", "127.0.0.1:8000", "127.0.0.1:8002", "log", "repository", 1.5)
    noted.note()
    assert Addresses.noted(8001) == noted
    noted.forget()
    with pytest.raises(MissingError, match="no server of yours on port 8001"):
        Addresses.noted(8001)
