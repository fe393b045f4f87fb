"""The precision audit: counts what each layer computes in, and fails an engine that is not what was asked for."""

import json
import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from dmsh_export.engine.audit import (
    LayerRecord,
    check_precision,
    is_audited,
    records_from_inspector,
    records_of_network,
    rows_of,
)
from dmsh_export.engine.precision import typed_graph
from dmsh_export.graph import model_from_file
from dmsh_export.parts import GraphParts, parts_of
from dmsh_serving.errors import CheckError

PARTS = GraphParts(frozenset({"cast"}), frozenset({"conv_0", "relu_0", "conv_1"}), frozenset({"pool", "gemm"}))


def record(node, kind, *, product=True):
    return LayerRecord(node, PARTS.part_of(node), kind, product, 10)


def parsed(model):
    """Parse a model with the real TensorRT-RTX and return (module, network, what must outlive the network)."""
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    return trt, network, (logger, builder, parser)


def flops_from_shapes(graph):
    """The oracle: 2 x outputs x multiply-adds an output, from the ONNX shapes alone."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    work = {}
    for node in graph.node:
        if node.op_type == "Conv":  # weight (out, in / groups, h, w)
            work[node.name] = 2 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            work[node.name] = 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return work


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_parsed_demo_has_its_trunk_in_the_type_asked_for_and_its_head_in_fp32(encoders, precision):
    typed = typed_graph(model_from_file(encoders.named("demo", precision)), precision)
    trt, network, _alive = parsed(typed.model)
    records = list(records_of_network(trt, network, typed.parts))
    products = [record for record in records if record.product]
    assert [record.type for record in products if record.part == "trunk"] == [precision] * 8
    assert [record.type for record in products if record.part == "head"] == ["fp32"] * 3
    assert {record.node: record.flops for record in products} == flops_from_shapes(typed.model.graph)
    check_precision(records, precision, "parsed network")
    with pytest.raises(CheckError, match=r"8 of 8 convolutions of the trunk are not"):
        check_precision(records, "fp8", "parsed network")


def test_grouped_convolutions_count_only_the_channels_they_read():
    weight = numpy_helper.from_array(np.ones((8, 1, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="depthwise", group=8, pads=[1, 1, 1, 1])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 5, 5])],
        [weight],
    )
    trt, network, _alive = parsed(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    (record,) = records_of_network(trt, network, PARTS)
    assert record.flops == 2 * 8 * 25 * 9


def test_a_trunk_that_stayed_fp32_or_a_head_that_did_not_is_named():
    good = [record("conv_0", "fp16"), record("conv_1", "fp16"), record("gemm", "fp32")]
    check_precision(good, "fp16", "parsed network")
    with pytest.raises(CheckError, match=r"\(engine inspector\): 1 of 2 .* not fp16, the first is conv_1 in fp32$"):
        check_precision([good[0], record("conv_1", "fp32"), good[2]], "fp16", "engine inspector")
    with pytest.raises(CheckError, match="1 layers of the head are not fp32, the first is gemm in fp16"):
        check_precision([*good[:2], record("gemm", "fp16")], "fp16", "parsed network")
    with pytest.raises(CheckError, match="1 layers of the head are not fp32, the first is pool in int8"):
        check_precision([*good, record("pool", "int8", product=False)], "fp16", "parsed network")
    with pytest.raises(CheckError, match="no convolution of the trunk is found"):
        check_precision([record("gemm", "fp32")], "fp16", "parsed network")


def test_rows_sum_layers_products_and_work_by_part_and_type():
    rows = rows_of([record("conv_0", "fp16"), record("relu_0", "fp16", product=False), record("gemm", "fp32")])
    assert [(row.part, row.type, row.layers, row.products, row.flops) for row in rows] == [
        ("trunk", "fp16", 2, 1, 20),
        ("head", "fp32", 1, 1, 10),
    ]


NETWORK = [
    record("conv_0", "fp16"),
    record("relu_0", "fp16", product=False),
    record("conv_1", "fp16"),
    record("pool", "fp32", product=False),
    record("gemm", "fp32"),
]


def inspector(trunk="Half", head="Float"):
    def layer(kind, nodes, fed):
        return {
            "Name": "+".join(nodes),
            "LayerType": kind,
            "Inputs": [{"Name": "in", "Format/Datatype": fed}],
            "Outputs": [{"Name": "out", "Format/Datatype": fed}],
            "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes),
        }

    return json.dumps(
        {
            "Layers": [
                layer("CaskConvolution", ["conv_0", "relu_0"], f"Channel major {trunk} format where channel % 8 == 0"),
                layer("CaskConvolution", ["conv_1"], trunk),
                layer("Reformat", [], "Float"),
                layer("CaskGemmMatrixMultiply", ["gemm"], head),
            ]
        }
    )


@pytest.mark.parametrize(
    ("name", "precision"), [("FP16", "fp16"), ("Half", "fp16"), ("BFloat16", "bf16"), ("Int8", "int8")]
)
def test_the_engine_inspectors_layers_are_read_by_type(name, precision):
    records = records_from_inspector(inspector(trunk=name), NETWORK, PARTS)
    assert [(record.part, record.type) for record in records] == [
        ("trunk", precision), ("trunk", precision), ("head", "fp32"),
    ]  # fmt: skip
    check_precision(records, precision, "engine inspector")


def test_an_engine_that_fell_back_to_fp32_in_silence_is_found():
    with pytest.raises(CheckError, match=r"\(engine inspector\): 2 of 2 convolutions of the trunk are not fp16"):
        check_precision(records_from_inspector(inspector(trunk="Float"), NETWORK, PARTS), "fp16", "engine inspector")


def test_a_convolution_fused_with_the_casts_around_it_counts_by_its_lowest_type():
    layer = {
        "Name": "fused",
        "LayerType": "kgen",
        "Inputs": [{"Name": "image", "Format/Datatype": "UInt8"}, {"Name": "w", "Format/Datatype": "Half"}],
        "Outputs": [{"Name": "out", "Format/Datatype": "Float"}],
        "Metadata": "[ONNX Layer: cast]\x1e[ONNX Layer: conv_0]\x1e[ONNX Layer: pool]",
    }
    (found,) = records_from_inspector(json.dumps({"Layers": [layer]}), NETWORK, PARTS)
    assert (found.node, found.part, found.type, found.product) == ("conv_0", "trunk", "fp16", True)
    check_precision([found], "fp16", "engine inspector")


@pytest.mark.parametrize("found", [[], [record("gemm", "fp32")]])
def test_an_engine_that_hides_its_convolutions_in_one_block_is_no_failure_and_not_audited(found):
    check_precision(found, "fp16", "engine inspector")
    assert not is_audited(found)


def test_an_engine_that_shows_trunk_and_head_is_audited():
    assert is_audited(records_from_inspector(inspector(), NETWORK, PARTS))


@pytest.mark.parametrize(("trunk", "head"), [("", "Float"), ("Half", "")])
def test_an_engine_whose_inspector_states_no_types_is_no_failure_and_not_audited(trunk, head):
    unstated = "N/A due to dynamic shapes"
    records = records_from_inspector(inspector(trunk or unstated, head or unstated), NETWORK, PARTS)
    check_precision(records, "fp16", "engine inspector")
    assert not is_audited(records)
    with pytest.raises(CheckError, match="unstated"):
        check_precision(records, "fp16", "parsed network")


@pytest.mark.parametrize("head", ["FP4", "Int4", ""])
def test_a_head_in_a_format_that_is_not_known_fails(head):
    records = records_from_inspector(inspector(head=head), NETWORK, PARTS)
    with pytest.raises(CheckError, match="1 layers of the head are not fp32, the first is gemm in unknown"):
        check_precision(records, "fp16", "engine inspector")


@pytest.mark.parametrize("kind", ["int32", "int64", "uint8", "bool"])
def test_a_heads_numbers_bits_and_codes_are_no_low_precision(kind):
    check_precision([record("conv_0", "fp16"), record("gemm", kind)], "fp16", "parsed network")


def test_an_inspector_that_names_layers_only_proves_nothing():
    with pytest.raises(CheckError, match="names its layers only"):
        records_from_inspector(json.dumps({"Layers": ["conv_0 + relu_0", "gemm"]}), NETWORK, PARTS)


def test_every_node_of_the_demo_belongs_to_exactly_one_part(encoders):
    graph = model_from_file(encoders.demo).graph
    parts = parts_of(graph)
    assert sorted([*parts.stem, *parts.trunk, *parts.head]) == sorted(node.name for node in graph.node)
