"""Export: one file that says what it is, proven before it bears its name."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from dmsh_export.compare.generated import generated_images
from dmsh_export.graph import metadata_of
from dmsh_export.manifest import read_manifest
from dmsh_export.to_onnx import float as onnx_export
from dmsh_export.to_onnx.float import export_onnx
from dmsh_model.config import HashConfig
from dmsh_model.network import DMSH
from dmsh_serving.codes import Encoded, pack
from dmsh_serving.encoder import known_answer
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.files import sha256_of_file


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def random_network(**fields):
    torch.manual_seed(1)
    return DMSH(HashConfig(**{"backbone": "vgg_small", "image_size": 32, **fields})).eval()


def test_the_demo_model_is_exported_folded_and_unfolded_without_a_wrong_bit(demo_exports):
    for export in demo_exports.values():
        (target,) = export.parity.targets
        assert (target.bits_compared, target.wrong_bits) == (320_000, 0)
        assert (target.invariance.codes_compared, target.invariance.wrong_codes) == (1088, 0)


def test_folding_leaves_no_normalisation_and_two_gemms(demo_exports):
    folded, plain = operators(demo_exports["folded"].path), operators(demo_exports["unfolded"].path)
    assert (folded.count("BatchNormalization"), folded.count("Conv"), folded.count("Gemm")) == (0, 8, 2)
    # Unfolded: eight of the trunk and three laterals, each with its BN.
    assert (plain.count("BatchNormalization"), plain.count("Conv"), plain.count("Gemm")) == (11, 11, 2)


def test_the_graph_goes_from_uint8_images_to_logits_and_codes_with_a_dynamic_batch(demo_exports):
    graph = onnx.load(demo_exports["folded"].path).graph

    def signature(values):
        return {
            value.name: (
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        }

    assert signature(graph.input) == {"image": ("uint8", ["batch", 32, 32, 3])}
    assert signature(graph.output) == {"logits": ("float32", ["batch", 64]), "code": ("uint8", ["batch", 8])}


def test_the_file_says_what_it_is_and_nothing_of_where_it_was_made(demo_exports, demo_model):
    path = demo_exports["folded"].path
    proto = onnx.load(path)
    said = metadata_of(proto)
    assert said["dmsh.fingerprint"] == demo_model.fingerprint
    assert (said["dmsh.bits"], said["dmsh.image_size"]) == ("64", "32")
    assert json.loads(said["dmsh.config"])["backbone"] == "vgg_small"
    images, codes = known_answer.load(said["dmsh.known_answer"])
    np.testing.assert_array_equal(codes, demo_model.codes(images))
    assert all(not node.metadata_props and not node.doc_string for node in proto.graph.node)
    assert b"site-packages" not in path.read_bytes()


class Stated:
    """A model whose logits are given; it notes how many images it was asked."""

    def __init__(self, logits, image_size=32):
        self._logits, self.config, self.asked = logits, SimpleNamespace(image_size=image_size), 0

    def logits(self, images):
        self.asked = len(images)
        return self._logits[: len(images)]


@pytest.mark.parametrize(("size", "asked"), [(32, 64), (80, 64), (160, 16), (224, 8), (1000, 8)])
def test_the_known_answer_is_chosen_from_fewer_images_if_they_are_large(size, asked):
    model = Stated(np.random.default_rng(0).normal(size=(70, 16)), size)
    onnx_export._telling(model, np.zeros((70, 1, 1, 3), np.uint8))
    assert model.asked == asked


def test_the_known_answer_shows_each_bit_in_both_values_if_an_image_has_it():
    logits = np.full((24, 8), 0.1)  # the clearest half has 12: 11 of ones, and one of zeros
    logits[:11], logits[11] = 2, -0.5
    _, codes = onnx_export._telling(Stated(logits), np.zeros((24, 1, 1, 3), np.uint8))
    assert sorted({int(code) for code in codes[:, 0]}) == [0, 255]


def test_an_encoder_that_ignores_its_input_fails_the_known_answer(demo_exports):
    _, codes = known_answer.load(metadata_of(onnx.load(demo_exports["folded"].path))["dmsh.known_answer"])
    bits = np.unpackbits(codes, axis=1)
    assert len(codes) == 8
    assert (bits != bits[0]).any(axis=0).mean() > 0.9  # nearly every bit takes both values
    for code in codes:
        with pytest.raises(CheckError, match="bits differ"):
            known_answer.check(
                lambda images, code=code: Encoded(np.repeat(code[None], len(images), axis=0), np.empty(0)),
                metadata_of(onnx.load(demo_exports["folded"].path))["dmsh.known_answer"],
            )


def test_the_manifest_is_about_these_bytes_and_holds_the_proof(demo_exports, demo_model):
    export = demo_exports["folded"]
    manifest = read_manifest(export.path)
    assert manifest["sha256"] == sha256_of_file(export.path)
    assert manifest["made_from"] == {"checkpoint": demo_model.fingerprint}
    assert manifest["parity"]["passed"] is True
    assert len(manifest["fold"]) == len(export.fold_steps)


def test_exporting_twice_gives_the_same_bytes(small_images, tmp_path):
    model = random_network(bits=16)
    for name in ("a.onnx", "b.onnx"):
        export_onnx(model, tmp_path / name, small_images)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("bits", [1, 7, 12, 129])
def test_any_number_of_bits_is_packed_inside_the_graph_as_numpy_packs(bits, small_images, tmp_path):
    model = random_network(bits=bits)
    export_onnx(model, tmp_path / "model.onnx", small_images)
    with OnnxEncoder(tmp_path / "model.onnx") as encoder:
        encoded = encoder.infer(small_images)
    np.testing.assert_array_equal(encoded.code, pack(encoded.logits))
    np.testing.assert_array_equal(encoded.code, model.codes(small_images))


@pytest.mark.parametrize("backbone", ["vgg19", "vgg11_bn", "resnet50", "efficientnet_lite0"])
def test_backbones_of_timm_are_exported_without_a_wrong_bit(backbone, tmp_path):
    model = random_network(backbone=backbone, image_size=64)
    export = export_onnx(model, tmp_path / "model.onnx", generated_images(12, 64), max_batch=4)
    assert export.parity.targets[0].wrong_bits == 0
    assert all(step.folded for step in export.fold_steps if step.what.startswith("BN "))


def test_a_plus_or_minus_zero_logit_gives_bit_zero_in_the_graph_too(small_images, tmp_path):
    model = random_network(bits=8)
    torch.nn.init.zeros_(model.hash.weight)
    with torch.no_grad():
        model.hash.bias.copy_(torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 0.0, 2.0]))
    export_onnx(model, tmp_path / "model.onnx", small_images)
    with OnnxEncoder(tmp_path / "model.onnx") as encoder:
        assert set(encoder.infer(small_images).code.ravel()) == {0b00101001}


def test_a_wrong_bit_leaves_no_file_under_the_final_name(small_images, tmp_path, monkeypatch):
    model = random_network(bits=16)
    true_fold = onnx_export.fold

    def wrong_fold(network):
        folded, steps = true_fold(network)
        with torch.no_grad():
            folded.head[-1].weight[3].neg_()
            folded.head[-1].bias[3].neg_()
        return folded, steps

    monkeypatch.setattr(onnx_export, "fold", wrong_fold)
    with pytest.raises(CheckError, match=r"is not written: .*\.onnx: \d+ of 256 bits differ from PyTorch's"):
        export_onnx(model, tmp_path / "model.onnx", small_images)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_file_that_was_there(small_images, tmp_path, monkeypatch):
    model = random_network(bits=16)
    (tmp_path / "model.onnx").write_bytes(b"the old one")
    monkeypatch.setattr(onnx_export, "fold", lambda network: (random_network(bits=16, taps=(0, 1)), []))
    with pytest.raises(CheckError):
        export_onnx(model, tmp_path / "model.onnx", small_images)
    assert (tmp_path / "model.onnx").read_bytes() == b"the old one"


def test_logits_that_are_no_numbers_are_refused_not_exported(small_images, tmp_path):
    model = random_network(bits=16)
    with torch.no_grad():
        model.hash.bias[0] = float("nan")
    with pytest.raises(InputError, match="NaN or Inf"):
        export_onnx(model, tmp_path / "model.onnx", small_images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opset": 9}, "opset = 9 must be 18 to"),
        ({"opset": 99}, "opset = 99 must be 18 to"),
        ({"out": "nowhere/model.onnx"}, "name a file in a folder that exists"),
        ({"images": np.empty((0, 32, 32, 3), np.uint8)}, "give at least one"),
        ({"images": np.zeros((2, 16, 16, 3), np.uint8)}, r"images must be uint8 \[N, 32, 32, 3\]"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message, small_images, tmp_path):
    out = tmp_path / arguments.pop("out", "model.onnx")
    images = arguments.pop("images", small_images)
    with pytest.raises(InputError, match=message):
        export_onnx(random_network(bits=16), out, images, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_another_opset_gives_the_same_codes(small_images, tmp_path):
    model = random_network(bits=16)
    export_onnx(model, tmp_path / "model.onnx", small_images, opset=18)
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 18
