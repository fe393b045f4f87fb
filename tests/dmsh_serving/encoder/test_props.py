"""The metadata of an ONNX file, read without ONNX: what onnx itself reads, and nothing of a damaged file."""

import onnx
import pytest
import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from dmsh_serving.encoder.props import graph_sha256, has_external_data, props_of_onnx
from dmsh_serving.errors import InputError


@given(props=st.dictionaries(st.text(min_size=1), st.text()))
def test_the_properties_are_those_that_onnx_wrote(props):
    model = onnx.ModelProto(ir_version=10, producer_name="a name", model_version=2**40)
    helper.set_model_props(model, props)
    assert props_of_onnx(model.SerializeToString(), "model.onnx") == props


def test_a_whole_model_gives_its_properties(tmp_path):
    path = tiny_model.write(tmp_path / "model.onnx")
    expected = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert props_of_onnx(path.read_bytes(), "model.onnx") == expected
    assert {"dmsh.fingerprint", "dmsh.bits", "dmsh.image_size", "dmsh.framing"} <= expected.keys()


def test_the_hash_of_the_graph_is_of_what_it_computes_and_of_nothing_else(tmp_path):
    model = onnx.load(tiny_model.write(tmp_path / "model.onnx"))
    expected = graph_sha256((tmp_path / "model.onnx").read_bytes(), "model.onnx")
    helper.set_model_props(model, {"another": "property"})
    model.producer_name = "another tool"
    assert graph_sha256(model.SerializeToString(), "model.onnx") == expected
    for change in (
        lambda: setattr(model.graph.node[0], "name", "renamed"),
        lambda: setattr(model.opset_import[0], "version", 18),
        lambda: model.functions.add(name="function"),
    ):
        change()
        before, expected = expected, graph_sha256(model.SerializeToString(), "model.onnx")
        assert before != expected
    with pytest.raises(InputError, match="is not an ONNX model"):
        graph_sha256(b"\x3a\xff", "model.onnx")


@pytest.mark.parametrize("tag", [b"\xba\x80\x80\x80\x10", b"\x02"], ids=["field 2^29 + 7", "field 0"])
def test_a_field_that_readers_with_narrower_numbers_take_for_another_is_refused(tag):
    hidden = tag + b"\x00"  # of 32 bits, the first tag is the graph's
    for read in (props_of_onnx, graph_sha256, has_external_data):
        with pytest.raises(InputError, match="is not an ONNX model"):
            read(onnx.ModelProto(ir_version=10).SerializeToString() + hidden, "model.onnx")


@pytest.mark.parametrize("data", [b"not a model" * 50, b"\x72", b"\x72\xff\xff", b"\xff" * 20, b"\x07"])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(InputError, match=r"^model\.onnx is not an ONNX model"):
        props_of_onnx(data, "model.onnx")


def test_a_file_that_was_cut_short_is_refused(tmp_path):
    whole = tiny_model.write(tmp_path / "model.onnx").read_bytes()
    with pytest.raises(InputError, match="is not an ONNX model"):
        props_of_onnx(whole[: len(whole) // 2], "model.onnx")


def outside(name="weight"):
    """A tensor whose values lie in another file."""
    tensor = onnx.TensorProto(name=name, data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def with_attribute(**fields):
    return helper.make_node("Constant", [], ["value"], **fields)


def graph(nodes=(), constants=(), sparse=()):
    found = onnx.GraphProto(name="graph", node=nodes, initializer=constants)
    found.sparse_initializer.extend(sparse)
    return found


PLACES = {
    "a constant": lambda: onnx.ModelProto(graph=graph(constants=[outside()])),
    "a sparse constant": lambda: onnx.ModelProto(graph=graph(sparse=[onnx.SparseTensorProto(values=outside())])),
    "an attribute": lambda: onnx.ModelProto(graph=graph([with_attribute(value=outside())])),
    "attributes": lambda: onnx.ModelProto(graph=graph([with_attribute(values=[outside(), outside("other")])])),
    "a graph in a node": lambda: onnx.ModelProto(graph=graph([with_attribute(body=graph(constants=[outside()]))])),
    "a function": lambda: onnx.ModelProto(functions=[onnx.FunctionProto(node=[with_attribute(value=outside())])]),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_outside_the_file_is_found_wherever_it_stands(place):
    assert has_external_data(PLACES[place]().SerializeToString(), "model.onnx")


def test_a_whole_file_has_none_outside(tmp_path):
    assert not has_external_data(tiny_model.write(tmp_path / "model.onnx").read_bytes(), "model.onnx")
