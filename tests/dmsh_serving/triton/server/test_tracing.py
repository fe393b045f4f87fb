import pytest

from dmsh_serving.errors import InputError
from dmsh_serving.triton.server.tracing import Tracing


def test_triton_is_told_where_spans_go_and_of_how_many_requests():
    assert Tracing("http://collector:4318/v1/traces", 50).options() == [
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=50",
        "--trace-config=opentelemetry,url=http://collector:4318/v1/traces",
        "--trace-config=opentelemetry,resource=service.name=dmsh",
    ]


@pytest.mark.parametrize("url", ["collector:4318", "grpc://collector:4317", "http://", ""])
def test_what_is_no_address_of_a_collector_is_refused(url):
    with pytest.raises(InputError, match=r"--trace .*name a collector such as http://127\.0\.0\.1:4318/v1/traces"):
        Tracing(url)


def test_no_request_at_all_cannot_be_asked_for():
    with pytest.raises(InputError, match="--trace-every 0"):
        Tracing("http://collector:4318/v1/traces", 0)
