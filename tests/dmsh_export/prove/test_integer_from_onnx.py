"""Whatever is changed in a model, it is refused or read as what it computes: ONNX Runtime has the last word."""

import itertools
from types import SimpleNamespace

import integer_networks as networks
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import AttributeProto, helper, numpy_helper

from dmsh_export.graph import with_shapes
from dmsh_export.prove.integer_from_onnx import integer_from_onnx
from dmsh_export.to_onnx.dialects import onnx_from_network
from dmsh_model.integer import reference
from dmsh_serving.errors import CheckError, InputError

IMAGES = np.concatenate([networks.images(2), np.full((1, networks.SIZE, networks.SIZE, 3), 255, np.uint8)])
DIALECTS = ("onnxruntime", "tensorrt")


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny networks are computed: threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written(dialect):
    return onnx_from_network(networks.network(), dialect, 20)


def computed(model):
    """Return what ONNX Runtime computes, as written: logits and code. None if it cannot run the model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(["logits", "code"], {"image": IMAGES})
    except Exception:  # ONNX Runtime has a class for every status
        return None


def verdict(model):
    """Return "refused", "cannot run", "right" or "wrong"."""
    try:
        network = integer_from_onnx(with_shapes(model, "model")).network
    except (CheckError, InputError):
        return "refused"
    found = computed(model)
    if found is None:
        return "cannot run"
    *_, (_, sums) = reference.outputs(network, IMAGES)
    exponents = network.layers[-1].exponent.astype(np.float64)
    logits = np.ldexp(sums.numpy().astype(np.float64), exponents.astype(np.int64))
    right = np.array_equal(found[0], logits) and np.array_equal(found[1], np.packbits(logits > 0, axis=1))
    return "right" if right else "wrong"


def rewired(model):
    """Every input of every node, taken from each other tensor."""
    constants = [tensor.name for tensor in model.graph.initializer]
    tensors = ["image", *constants, *(name for node in model.graph.node for name in node.output)]
    for node, name in itertools.product(range(len(model.graph.node)), tensors):
        for position in range(len(model.graph.node[node].input)):
            yield f"{model.graph.node[node].name} input {position} = {name}", rewire(node, position, name)


def rewire(node, position, name):
    def change(model):
        model.graph.node[node].input[position] = name

    return change


def with_other_constants(model):
    """Every constant with other values, of other types, in other shapes."""
    ways = {
        "first + 1": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, a + np.ones_like(a), a),
        "last doubled": lambda a: np.where(np.arange(a.size).reshape(a.shape) == a.size - 1, a + a, a),
        "first negated": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, np.negative(a), a),
        "first a half": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, a / 2, a).astype(a.dtype),
        "all doubled": lambda a: a + a,
        "huge": lambda a: np.full_like(a, 2**40) if a.dtype.kind == "f" else np.full_like(a, np.iinfo(a.dtype).max),
        "infinite": lambda a: np.full_like(a, np.inf) if a.dtype.kind == "f" else a.astype(np.float32),
        "double": lambda a: a.astype(np.float64),
        "of 8 bits": lambda a: a.astype(np.int8),
        "flat": lambda a: a.reshape(-1),
        "of one": lambda a: a.reshape(-1)[:1],
        "a scalar": lambda a: a.reshape(-1)[0],
        "one axis more": lambda a: a[None],
        "a row less": lambda a: a[:-1] if a.ndim else a,
        "reversed": lambda a: a[::-1] if a.ndim else a,
        "transposed": lambda a: a.T,
    }
    for number, (name, way) in itertools.product(range(len(model.graph.initializer)), ways.items()):
        yield f"{model.graph.initializer[number].name} {name}", replaced(number, way)


def replaced(number, way):
    def change(model):
        tensor = model.graph.initializer[number]
        with np.errstate(all="ignore"):
            array = np.ascontiguousarray(way(numpy_helper.to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return change


def with_more_nodes(model):
    """After every node one more, which all others read."""
    added = [
        ("Relu", []), ("Round", []), ("Sqrt", []), ("Neg", []), ("Mul", ["own_factor"]), ("Mul", ["2^0"]),
        ("Clip", ["own_zero", "own_seven"]), ("Clip", ["own_uint8_zero"]), ("Add", ["own_factor"]),
        ("QuantizeLinear", ["2^0", "zero_point"]), ("DequantizeLinear", ["2^0", "zero_point"]),
        ("QuantizeLinear", ["own_factor", "zero_point"]), ("DequantizeLinear", ["own_factor", "zero_point"]),
    ]  # fmt: skip
    for node, (operator, inputs) in itertools.product(range(len(model.graph.node)), added):
        yield f"{operator} {inputs} after {model.graph.node[node].name}", followed(node, operator, inputs)


def followed(node, operator, inputs):
    def change(model):
        nodes = list(model.graph.node)
        (source,) = nodes[node].output
        for other in nodes[node + 1 :]:
            other.input[:] = ["more" if name == source else name for name in other.input]
        more = helper.make_node(operator, [source, *inputs], ["more"], name="more")
        if source in ("logits", "code"):  # an output keeps its name
            nodes[node].output[0], more.input[0], more.output[0] = "before", "before", source
            for other in nodes[node + 1 :]:
                other.input[:] = [source if name == "more" else name for name in other.input]
        del model.graph.node[:]
        model.graph.node.extend([*nodes[: node + 1], more, *nodes[node + 1 :]])
        for name, value in (
            ("own_factor", np.float32(0.5)), ("own_zero", np.float32(0)), ("own_seven", np.float32(7)),
            ("own_uint8_zero", np.uint8(128)),
        ):  # fmt: skip
            if name in inputs:
                model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))

    return change


def with_other_attributes(model):
    """Every number of every attribute one higher, one lower; every node of another operator, without its last input."""
    for node, proto in enumerate(model.graph.node):
        for place, entry in enumerate(proto.attribute):
            for index in range(len(entry.ints) if entry.type == AttributeProto.INTS else 1):
                for step in (1, -1):
                    yield f"{proto.name} {entry.name}[{index}] {step:+}", stepped(node, place, index, step)
        for operator in ("Relu", "Add", "Mul", "Gemm", "MaxPool", "ReduceSum", "ReduceMax", "Identity", "Concat"):
            yield f"{proto.name} is {operator}", renamed(node, operator)
        yield f"{proto.name} without its last input", shortened(node)


def stepped(node, place, index, step):
    def change(model):
        entry = model.graph.node[node].attribute[place]
        if entry.type == AttributeProto.INTS:
            entry.ints[index] += step
        else:
            entry.i += step

    return change


def renamed(node, operator):
    def change(model):
        model.graph.node[node].op_type = operator

    return change


def shortened(node):
    def change(model):
        del model.graph.node[node].input[-1]

    return change


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("kind", "one_of"), [
    (rewired, 41), (with_other_constants, 17), (with_more_nodes, 7), (with_other_attributes, 7),
])  # fmt: skip
def test_whatever_is_changed_is_refused_or_read_as_what_it_computes(kind, one_of, dialect):
    """Of the changes of a kind one of so many is tried: all of them take minutes."""
    untouched, found = written(dialect), {}
    for name, change in itertools.islice(kind(untouched), 0, None, one_of):
        model = type(untouched)()
        model.CopyFrom(untouched)
        change(model)
        found[name] = verdict(model)
    assert [name for name, said in found.items() if said == "wrong"] == []
    assert sum(said == "refused" for said in found.values()) > len(found) / 2


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_unchanged_model_is_read_as_what_it_computes(dialect):
    assert verdict(written(dialect)) == "right"


def test_a_reading_that_differs_from_what_is_computed_would_be_seen(monkeypatch):
    other = SimpleNamespace(network=networks.network(1))
    monkeypatch.setitem(globals(), "integer_from_onnx", lambda model: other)
    assert verdict(written("onnxruntime")) == "wrong"
