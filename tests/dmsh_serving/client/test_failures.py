import pytest
from tritonclient.utils import InferenceServerException

from dmsh_serving.client.failures import error_of
from dmsh_serving.errors import InputError, MissingError, UnavailableError


@pytest.mark.parametrize(
    ("status", "message", "kind", "said"),
    [
        ("INVALID_ARGUMENT", "[request id: <id_unknown>] bad shape. NOTE: much advice", InputError, "^bad shape.$"),
        ("INVALID_ARGUMENT", "[request id: 5e1f] bad shape", InputError, "^bad shape$"),
        ("NOT_FOUND", "no model", MissingError, "does not serve this: no model"),
        ("UNAVAILABLE", "failed to connect to all addresses", MissingError, "no Triton at"),
        ("UNAVAILABLE", "Exceeds maximum queue size", MissingError, "is too busy: its queue is full"),
        ("UNKNOWN", "Received http2 header with status: 413", InputError, "longer than the proxy at .* takes"),
        ("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max", InputError, "longer than gRPC sends"),
        ("UNAVAILABLE", "in ensemble 'a', Request timeout expired", MissingError, "is too busy: .* waited too long"),
        (
            "UNAVAILABLE",
            "in ensemble 'a', the server is busy decoding other images: try again",
            MissingError,
            "is too busy: it decodes other images",
        ),
        ("UNAVAILABLE", "Server is stopping", MissingError, r"failed \(UNAVAILABLE\): Server"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", MissingError, "did not answer within 30 s"),
        ("INTERNAL", "boom", MissingError, r"failed \(INTERNAL\): boom"),
        (
            "INTERNAL",
            "in ensemble 'a', batch size 129 for 'dmsh_encoder_0_0', max allowed is 32",
            UnavailableError,
            "refused a batch for another client's request",
        ),
    ],
)
def test_each_status_becomes_its_error(status, message, kind, said):
    error = error_of(InferenceServerException(message, status=f"StatusCode.{status}"), "127.0.0.1:8001", 30.0)
    assert type(error) is kind
    with pytest.raises(kind, match=said):
        raise error
