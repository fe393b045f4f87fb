"""What other users of the machine can read of a running server; the numbers are those of the table of faults."""

import contextlib
import http.client
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from live_world import IMAGES, check
from tritonclient.utils import InferenceServerException

from dmsh_serving.contract import RANKER_MODEL, SEARCH_MODEL
from dmsh_serving.triton.server.leftovers.shared_memory import SHARED_MEMORY


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def test_fault_42_no_process_shows_the_control_key_and_without_it_no_model_is_loaded(server, client):
    shown = list(command_lines())
    assert sum(b"--model-control-mode=explicit" in line for line in shown) >= 1
    assert not [line for line in shown if server._control.key.encode() in line]
    assert server._control.key.encode() not in server.log_file.read_bytes()
    for action in ("load", "unload"):
        connection = http.client.HTTPConnection(server.http_url, timeout=5)
        connection.request("POST", f"/v2/repository/models/{RANKER_MODEL}/{action}", headers={"dmsh-control": "x"})
        assert connection.getresponse().status == http.HTTPStatus.FORBIDDEN
        connection.close()
    with triton.InferenceServerClient(server.url) as asking:
        for act in (asking.load_model, asking.unload_model):
            with pytest.raises(InferenceServerException, match="restricted"):
                act(SEARCH_MODEL)
    check(client.search(IMAGES[:2], 5), IMAGES[:2], 5)


def test_fault_44_the_shared_memory_of_requests_is_the_owners_alone(server):
    regions = list(SHARED_MEMORY.glob(f"{server._regions.name}*"))
    assert len(regions) >= 1 + len(server.stubs)
    assert {oct(region.stat().st_mode & 0o777) for region in regions} == {"0o600"}
