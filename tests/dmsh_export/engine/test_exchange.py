"""A build's request and result come through JSON as they were."""

import json

from dmsh_export.engine.audit import LayerRecord
from dmsh_export.engine.exchange import BuildRequest, BuildResult
from dmsh_export.parts import GraphParts

REQUEST = BuildRequest(
    flavour="tensorrt",
    precision="fp16",
    image_size=224,
    profile=(1, 8, 32),
    workspace_mib=None,
    optimization_level=3,
    version_compatible=True,
    hardware_compatibility="ampere-plus",
    timing_cache=False,
    inspect=True,
    parts=GraphParts(frozenset({"cast"}), frozenset({"conv_1", "conv_0"}), frozenset()),
)


def test_a_request_comes_through_json_as_it_was():
    assert BuildRequest.from_json(REQUEST.to_json()) == REQUEST


def test_one_request_gives_the_same_bytes_whatever_the_order_of_its_sets():
    assert json.loads(REQUEST.to_json())["parts"]["trunk"] == ["conv_0", "conv_1"]


def test_a_result_comes_through_json_as_it_was():
    records = (LayerRecord("conv_0", "trunk", "fp16", True, 12), LayerRecord("pool", "head", "fp32", False, 0))
    result = BuildResult("10.16.1", False, records, records[1:])
    assert BuildResult.from_fields(json.loads(json.dumps(result.to_fields()))) == result
