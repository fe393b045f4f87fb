"""An integer checkpoint comes back integer for integer, or not at all."""

import json
import shutil

import integer_networks
import numpy as np
import pytest
import safetensors.numpy

import dmsh_model
from dmsh_model import checkpoint
from dmsh_model.integer import checkpoint as integer_checkpoint
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_serving.errors import InputError


@pytest.fixture
def folder(tmp_path):
    integer_checkpoint.save(integer_networks.model(), tmp_path / "integer", parent="ab" * 32)
    return tmp_path / "integer"


def test_a_saved_network_comes_back_with_its_fingerprint_and_codes(folder):
    model, images = integer_networks.model(), integer_networks.images(4)
    loaded = dmsh_model.load(folder)
    assert isinstance(loaded, IntegerDMSH)
    assert loaded.fingerprint == model.fingerprint == model.fingerprint
    assert np.array_equal(loaded.logits(images), model.logits(images))


def test_the_file_holds_integers_alone(folder):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    assert {str(array.dtype) for array in tensors.values()} == {"int8", "int32"}


def test_a_folder_that_exists_is_kept_unless_told_otherwise(folder):
    with pytest.raises(InputError, match="exists already"):
        integer_checkpoint.save(integer_networks.model(1), folder, parent="ab" * 32)
    integer_checkpoint.save(integer_networks.model(1), folder, parent="ab" * 32, overwrite=True)
    assert dmsh_model.load(folder).fingerprint == integer_networks.model(1).fingerprint


def test_what_needs_floats_refuses_it(folder):
    with pytest.raises(InputError, match="this needs the float one it was made from"):
        checkpoint.load(folder)


def tensors_changed(change):
    def apply(folder):
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        change(tensors)
        (folder / "model.safetensors").write_bytes(safetensors.numpy.save(tensors))

    return apply


def header_changed(change):
    def apply(folder):
        header = json.loads((folder / "config.json").read_text())
        change(header)
        (folder / "config.json").write_text(json.dumps(header))

    return apply


def flip(tensors):
    tensors["1.weight"] = tensors["1.weight"].copy()
    tensors["1.weight"].flat[5] ^= 1


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (tensors_changed(flip), "its integers give the fingerprint"),
        (tensors_changed(lambda tensors: tensors.pop("1.bias")), "layer 1 (Convolution): missing or unknown bias"),
        (tensors_changed(lambda tensors: tensors.update({"99.weight": np.zeros(1, np.int8)})), "extra tensors 99."),
        (
            tensors_changed(lambda tensors: tensors.update({"1.weight": tensors["1.weight"].astype(np.float32)})),
            "weights are float32",
        ),
        (
            tensors_changed(lambda tensors: tensors.update({"1.weight": np.full_like(tensors["1.weight"], -128)})),
            "216 of 216 weights are -128",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"{}" * 99),
            "model.safetensors is damaged",
        ),
        (header_changed(lambda header: header.pop("graph")), "has no list 'graph'"),
        (header_changed(lambda header: header["graph"].pop()), "extra tensors 11."),
        (header_changed(lambda header: header["graph"].__setitem__(2, 7)), "layer 2 of the graph is of no known kind"),
        (header_changed(lambda header: header["graph"][2].update(kind="Sigmoid")), "is of no known kind"),
        (header_changed(lambda header: header["graph"][2].update(kind=["Convolution"])), "is of no known kind"),
        (header_changed(lambda header: header["graph"][2].update(gain=2)), "missing or unknown gain"),
        (header_changed(lambda header: header["graph"][2].update(low="0")), "low = '0' is of a wrong type"),
        (header_changed(lambda header: header["graph"][2].update(low=0.5)), "low = 0.5 is of a wrong type"),
        (header_changed(lambda header: header["graph"][2].update(high=95)), "its integers give the fingerprint"),
        (header_changed(lambda header: header["graph"][2].update(stride=[1])), "must be a list of 2 whole numbers"),
        (header_changed(lambda header: header["graph"][2].update(weight=3)), "weight is no tensor"),
        (header_changed(lambda header: header.update(fingerprint="0" * 64)), "its config says 000000000000"),
        (header_changed(lambda header: header["config"].update(bits=64)), "64 bits"),
        (header_changed(lambda header: header["config"].update(bits=None)), "a field has a wrong type"),
        (header_changed(lambda header: header.update(kind="complex")), "is a checkpoint of kind complex"),
    ],
)  # fmt: skip
def test_a_tampered_checkpoint_is_refused_in_one_line(folder, tamper, message):
    tamper(folder)
    with pytest.raises(InputError) as error:
        dmsh_model.load(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_names_no_kind_is_a_float_one(folder, tmp_path):
    from project import DEMO_CHECKPOINT

    shutil.copytree(DEMO_CHECKPOINT, tmp_path / "demo")
    assert "kind" not in json.loads((tmp_path / "demo" / "config.json").read_text())
    assert not isinstance(dmsh_model.load(tmp_path / "demo"), IntegerDMSH)
