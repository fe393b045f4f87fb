"""The ONNX dialects of the integer network: every logit is the reference's, whatever the runtime's options are."""

import dataclasses
from pathlib import Path
from typing import get_args

import integer_networks as networks
import numpy as np
import onnx
import pytest
import torch

from dmsh_export.compare.generated import generated_images
from dmsh_export.compare.parity import batches_of_every_size
from dmsh_export.graph import Dialect
from dmsh_export.quantise.calibration import POLICIES, Calibration
from dmsh_export.quantise.float_graph_from_model import float_graph
from dmsh_export.quantise.integer_from_float import integer_from_float
from dmsh_export.quantise.scales import ScaleOptions, chosen_scales
from dmsh_export.to_onnx import integer
from dmsh_export.to_onnx.dialects import onnx_from_network
from dmsh_export.to_onnx.integer import export_integer_onnx, known_answer_images
from dmsh_model.config import HashConfig
from dmsh_model.integer.layers import MaxPool
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.codes import Encoded
from dmsh_serving.contract import CODE, IMAGE, LOGITS, Metadata
from dmsh_serving.encoder import known_answer
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.errors import CheckError

DIALECTS = get_args(Dialect)
CPU = Path("/proc/cpuinfo")
HAS_VNNI = CPU.exists() and "vnni" in CPU.read_text()
IS_X86 = CPU.exists() and "avx2" in CPU.read_text()
SATURATES = IS_X86 and not HAS_VNNI  # a CPU whose fast u8 x s8 kernels add two products in int16


def quantised(backbone, size, bits=24):
    """A network with random weights and BN statistics, in integers."""
    torch.manual_seed(4)
    model = DMSH(HashConfig(backbone, bits, size)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(0, 0.2)
    calibration = Calibration(float_graph(model))
    calibration.add(generated_images(4, size))
    converted = integer_from_float(calibration.graph, chosen_scales(calibration, ScaleOptions(POLICIES[0], 0)))
    return IntegerDMSH(model.config, converted.network)


def session(path, *, exact=True, optimise=True):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1" if exact else "0")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """The network of every layer in every dialect: {dialect: path}."""
    folder = tmp_path_factory.mktemp("dialects")
    for dialect in DIALECTS:
        export_integer_onnx(
            networks.model(), folder / f"{dialect}.onnx", networks.images(12), dialect=dialect, max_batch=2
        )
    return {dialect: folder / f"{dialect}.onnx" for dialect in DIALECTS}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_logit_in_batches_of_1_to_33_is_the_references(exports, dialect, threads):
    images = networks.images(33, seed=8)
    expected = networks.model().logits(images)
    with OnnxEncoder(exports[dialect], threads=threads) as encoder:
        for rows in batches_of_every_size(len(images), 33):
            np.testing.assert_array_equal(encoder.infer(images[rows]).logits, expected[rows])


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_other_weights_are_exact_too(dialect, seed, tmp_path):
    model = networks.model(seed)
    export = export_integer_onnx(model, tmp_path / "model.onnx", networks.images(16), dialect=dialect, max_batch=2)
    assert {(target.wrong_bits, target.worst_logit_error) for target in export.parity.targets} == {(0, 0)}


@pytest.mark.parametrize(
    ("backbone", "size"), [("vgg_small", 32), ("vgg11_bn", 32), ("resnet18", 32), ("efficientnet_lite0", 32)]
)
def test_backbones_are_exact_in_every_dialect(backbone, size, tmp_path):
    model = quantised(backbone, size)
    images = generated_images(6, size, seed=3)
    for dialect in DIALECTS:
        export = export_integer_onnx(model, tmp_path / f"{dialect}.onnx", images, dialect=dialect, max_batch=2)
        for target in export.parity.targets:
            assert (target.wrong_bits, target.worst_logit_error, target.invariance.wrong_codes) == (0, 0, 0)
        assert export.certificate.fingerprint == model.fingerprint


@pytest.mark.parametrize("dialect", ["tensorrt", "openvino"])
def test_a_qdq_dialect_is_exact_without_graph_optimisation_on_every_cpu(exports, dialect):
    images = networks.images(20, seed=9)
    with OnnxEncoder(exports[dialect], optimise=False) as encoder:
        np.testing.assert_array_equal(encoder.infer(images).logits, networks.model().logits(images))


@pytest.mark.skipif(SATURATES, reason="without VNNI the precision option needs ONNX Runtime's optimiser")
def test_the_onnxruntime_dialect_is_exact_without_graph_optimisation(exports):
    images = networks.images(20, seed=9)
    with OnnxEncoder(exports["onnxruntime"], optimise=False) as encoder:
        np.testing.assert_array_equal(encoder.infer(images).logits, networks.model().logits(images))


@pytest.mark.skipif(not SATURATES, reason="this CPU's kernels do not saturate: nothing to catch")
@pytest.mark.parametrize("options", [{"exact": False}, {"optimise": False}])
def test_a_cpu_whose_kernels_saturate_is_caught_by_the_known_answer(exports, options):
    path = exports["onnxruntime"]
    images = networks.images(20, seed=9)
    wrong = session(path, **options)
    (logits,) = wrong.run([LOGITS], {IMAGE: images})
    assert (logits != networks.model().logits(images)).any()
    answer = wrong.get_modelmeta().custom_metadata_map[Metadata.KNOWN_ANSWER]
    with pytest.raises(CheckError, match="kernels saturate"):
        known_answer.check(lambda images: Encoded(*wrong.run([CODE, LOGITS], {IMAGE: images})), answer)
    right = session(path)
    known_answer.check(lambda images: Encoded(*right.run([CODE, LOGITS], {IMAGE: images})), answer)


def test_the_known_answer_drives_the_network_and_comes_close_to_thresholds():
    model, given = networks.model(), networks.images(40)
    images = known_answer_images(model, given)
    assert images.dtype == np.uint8
    for value in (0, 255):
        assert (images == value).all(axis=(1, 2, 3)).any()
    assert 5 + 3 <= len(images) <= 5 + 6
    assert set(np.unique(images[4])) == {0, 255}  # noise of black and white
    assert images[4].std() > 100
    for nearest in given[np.abs(model.logits(given)).min(axis=1).argsort()[:3]]:
        assert (images == nearest).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize("here", [None, "this CPU has no VNNI"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_openvino_compares_its_own_dialect_where_it_computes_integers_exactly(dialect, here, monkeypatch):
    monkeypatch.setattr(integer, "why_not_here", lambda *, integer: here if integer else None)
    monkeypatch.setattr(integer, "OnnxRunner", lambda path: "ONNX Runtime")
    monkeypatch.setattr(integer, "OpenVinoRunner", lambda path: "OpenVINO")
    with_openvino = dialect == "openvino" and here is None
    assert integer._runners(Path("model.onnx"), dialect) == ["ONNX Runtime", *(["OpenVINO"] if with_openvino else [])]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_has_standard_operators_only_and_packs_as_agreed(dialect):
    model = onnx_from_network(networks.network(), dialect, 20)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    operators = [node.op_type for node in model.graph.node]
    if dialect == "onnxruntime":
        assert operators.count("QLinearConv") == 4
        assert "Conv" not in operators
    else:
        assert operators.count("Conv") == 4
        first = ["Cast", "Transpose"] if dialect == "tensorrt" else ["Transpose", "Cast"]
        assert operators[:4] == [*first, "Sub", "QuantizeLinear"]
    rounded = {node.input[0] for node in model.graph.node if node.op_type == "Round"} & {"3_grouped", "1_stem.relu"}
    assert len(rounded) == (2 if dialect == "openvino" else 0)


def test_a_relu_moves_behind_the_max_pool_that_alone_reads_it():
    operators = [node.op_type for node in onnx_from_network(networks.network(), "onnxruntime", 20).graph.node]
    # The residual's ReLU: read by the pool and by the sum, so it stays where it is.
    assert operators[operators.index("MaxPool") - 1] == "Clip"
    small = quantised("vgg_small", 32).network
    pooled = [node.op_type for node in onnx_from_network(small, "onnxruntime", 20).graph.node]
    position = pooled.index("MaxPool")
    assert pooled[position - 1 : position + 2] == ["QLinearConv", "MaxPool", "Clip"]
    first = next(index for index, layer in enumerate(small.layers) if isinstance(layer, MaxPool))
    gaps = dataclasses.replace(small.layers[first], dilation=(2, 2))
    apart = dataclasses.replace(small, layers=(*small.layers[:first], gaps, *small.layers[first + 1 :]))
    dilated = [node.op_type for node in onnx_from_network(apart, "onnxruntime", 20).graph.node]
    assert dilated[position : position + 2] == ["Clip", "MaxPool"]
