"""OpenVINO gives the integer network's very bits, and whatever it cannot do here is one line before it is tried."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import integer_networks as networks
import numpy as np
import onnx
import pytest
import tiny_model
from onnx import helper

from dmsh_export.compare.parity import batches_of_every_size
from dmsh_export.seal import sealed
from dmsh_export.to_onnx.dialects import onnx_from_network
from dmsh_serving.contract import Metadata
from dmsh_serving.encoder import first_try, known_answer, openvino
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.encoder.open import open_encoder, runtime_of
from dmsh_serving.encoder.openvino import OpenVinoEncoder, compiled
from dmsh_serving.errors import CheckError, InputError, MissingError

HERE = openvino.why_not_here(integer=True)
needs_openvino = pytest.mark.skipif(HERE is not None, reason=f"OpenVINO cannot serve here: {HERE}")


def write(path, dialect, *, said=None, codes=None):
    """The network of every layer in ``dialect``; the file says that it is in the dialect ``said``."""
    model, images = networks.model(), networks.images(9, seed=2)
    proto = onnx_from_network(model.network, dialect, 20)
    answer = known_answer.dump(images, model.codes(images) if codes is None else codes)
    properties = {
        Metadata.FINGERPRINT: model.fingerprint, Metadata.BITS: str(networks.BITS),
        Metadata.IMAGE_SIZE: str(networks.SIZE), Metadata.KNOWN_ANSWER: answer, Metadata.DIALECT: said or dialect,
    }  # fmt: skip
    helper.set_model_props(proto, properties)
    path.write_bytes(sealed(proto))
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "model.onnx", "openvino")


@needs_openvino
@pytest.mark.parametrize("options", [{}, {"threads": 1}, {"threads": 2}, {"threads": 2, "streams": 2}])
def test_every_logit_in_batches_of_1_to_33_is_the_references(path, options):
    images = networks.images(33, seed=8)
    expected = networks.model().logits(images)
    with OpenVinoEncoder(path, tried_first=False, **options) as encoder:
        for rows in batches_of_every_size(len(images), 33):
            encoded = encoder.infer(images[rows])
            np.testing.assert_array_equal(encoded.logits, expected[rows])
            np.testing.assert_array_equal(encoded.code, np.packbits(expected[rows] > 0, axis=1))


@needs_openvino
def test_the_network_is_the_one_that_onnx_reads_whatever_the_bytes_look_like(path, tmp_path):
    images = networks.images(9, seed=8)
    unknown = b"\xa2\x06\x00"  # an empty field 100: OpenVINO would take the file for another framework's
    (tmp_path / "model.onnx").write_bytes(unknown + path.read_bytes())
    with OpenVinoEncoder(tmp_path / "model.onnx", tried_first=False) as encoder:
        np.testing.assert_array_equal(encoder.infer(images).logits, networks.model().logits(images))


@needs_openvino
def test_threads_that_share_an_encoder_get_their_own_codes(path):
    images = networks.images(200, seed=8)
    with OpenVinoEncoder(path, tried_first=False, threads=1) as encoder, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(encoder.infer, np.array_split(images, 200)))
    np.testing.assert_array_equal(np.concatenate([each.logits for each in found]), networks.model().logits(images))


@needs_openvino
def test_a_result_stays_when_the_next_is_computed(path):
    images = networks.images(2, seed=8)
    with OpenVinoEncoder(path, tried_first=False) as encoder:
        first = encoder.infer(images[:1])
        kept = first.logits.copy(), first.code.copy()
        encoder.infer(images[1:])
        assert encoder.infer(images[:0]).code.shape == (0, 2)
    np.testing.assert_array_equal(first.logits, kept[0])
    np.testing.assert_array_equal(first.code, kept[1])


@needs_openvino
def test_openvino_is_told_to_keep_fp32(path, monkeypatch):
    told = []
    monkeypatch.setattr(
        openvino, "compiled", lambda *given, **options: told.append(options) or compiled(*given, **options)
    )
    with OpenVinoEncoder(path, tried_first=False) as encoder:
        assert encoder._model.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert told == [{"threads": None, "streams": 1}]


@needs_openvino
def test_a_float_model_runs_too_and_nan_stays_visible(tmp_path):
    path = tiny_model.write(tmp_path / "float.onnx")
    images = np.concatenate([tiny_model.random_images(4), tiny_model.WHITE])
    with OpenVinoEncoder(path, tried_first=False) as encoder:
        encoded = encoder.infer(images)
    np.testing.assert_array_equal(encoded.code[:4], tiny_model.codes_of(images[:4]))
    assert np.isnan(encoded.logits[4]).all()


@needs_openvino
def test_the_dialect_of_a_file_chooses_its_runtime(path, tmp_path):
    other = write(tmp_path / "other.onnx", "onnxruntime")
    assert (runtime_of(path), runtime_of(other)) == ("openvino", "onnxruntime")
    images = networks.images(3)
    with open_encoder(path) as ours, open_encoder(other) as theirs, open_encoder(path, "onnxruntime") as checked:
        assert isinstance(ours, OpenVinoEncoder)
        assert isinstance(theirs, OnnxEncoder)
        assert isinstance(checked, OnnxEncoder)
        for encoder in (theirs, checked):
            np.testing.assert_array_equal(ours.infer(images).logits, encoder.infer(images).logits)


@pytest.mark.parametrize("dialect", ["onnxruntime", "tensorrt"])
def test_another_dialect_is_refused_before_openvino_sees_it(dialect, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    path = write(tmp_path / "model.onnx", dialect)
    with pytest.raises(InputError, match=rf"model\.onnx is in the {dialect} dialect, .*--dialect openvino"):
        OpenVinoEncoder(path)


def test_a_cpu_without_vnni_is_refused_and_a_float_model_is_not(path, monkeypatch):
    monkeypatch.setattr(openvino, "has_vnni", lambda: False)
    with pytest.raises(MissingError, match=r"this CPU has no VNNI.*saturate silently"):
        OpenVinoEncoder(path)
    assert openvino.why_not_here(integer=False) is None or "not installed" in openvino.why_not_here(integer=False)


def test_a_missing_extra_is_named(path, monkeypatch):
    monkeypatch.setattr(openvino, "has_vnni", lambda: True)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingError, match=r"openvino is not installed: pip install 'dmsh-toolkit\[openvino\]'"):
        OpenVinoEncoder(path)


@needs_openvino
def test_one_bit_of_the_known_answer_is_enough_to_refuse_and_the_runtime_is_named(tmp_path):
    images = networks.images(9, seed=2)
    codes = networks.model().codes(images)
    codes[4, 0] ^= 16
    path = write(tmp_path / "model.onnx", "openvino", codes=codes)
    with pytest.raises(CheckError, match=r"model\.onnx: known answer: 1 of 144 bits differ .*\(in OpenVINO\)"):
        OpenVinoEncoder(path)


@needs_openvino
def test_a_crash_is_one_line_that_names_the_runtime(path, monkeypatch):
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(first_try, "_COMMAND", (sys.executable, "-c", crash))
    with pytest.raises(CheckError, match=r"model\.onnx: OpenVINO crashed \(SIGSEGV\) while it loaded") as error:
        OpenVinoEncoder(path)
    assert "\n" not in str(error.value)


@needs_openvino
def test_a_file_that_lies_about_its_dialect_crashes_elsewhere_or_is_refused(tmp_path):
    path = write(tmp_path / "model.onnx", "onnxruntime", said="openvino")
    with pytest.raises((CheckError, InputError), match="OpenVINO"):
        OpenVinoEncoder(path)


@needs_openvino
@pytest.mark.parametrize("said", [{}, {Metadata.PRECISION: "int8", Metadata.PARENT_FINGERPRINT: "ab" * 32}])
def test_integers_that_name_no_dialect_are_refused(said, tmp_path):
    path = write(tmp_path / "model.onnx", "tensorrt")
    model = onnx.load(path)
    (dialect,) = [prop for prop in model.metadata_props if prop.key == Metadata.DIALECT]
    model.metadata_props.remove(dialect)
    for key, value in said.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    with pytest.raises(InputError, match="names no dialect: export it again"):
        OpenVinoEncoder(path)


@needs_openvino
def test_fault_43_nothing_in_the_current_folder_is_run(tmp_path, monkeypatch):
    write(tmp_path / "model.onnx", "openvino")
    (tmp_path / "pathlib.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom os import path as Path\n")
    monkeypatch.chdir(tmp_path)
    OpenVinoEncoder(Path("model.onnx")).close()
    assert not (tmp_path / "ran").exists()


@needs_openvino
def test_a_trial_that_cannot_be_made_is_no_success(path, monkeypatch):
    monkeypatch.setattr(first_try, "_COMMAND", (sys.executable, "-c", "import no_such_module"))
    with pytest.raises(CheckError, match=r"OpenVINO crashed \(exit code 1\)"):
        OpenVinoEncoder(path)


@needs_openvino
def test_a_trial_that_does_not_end_is_an_error(path, monkeypatch):
    monkeypatch.setattr(first_try, "_COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(first_try, "_SECONDS", 0.5)
    with pytest.raises(CheckError, match=r"OpenVINO did not load it in 0\.5 s"):
        OpenVinoEncoder(path)


@needs_openvino
@pytest.mark.parametrize("location", ["weights.bin", "absent.bin", "../weights.bin", "/dev/null"])
def test_weights_outside_the_file_are_refused_wherever_they_are_said_to_be(path, tmp_path, monkeypatch, location):
    outside = tmp_path / "model.onnx"
    onnx.save(onnx.load(path), outside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(outside, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    outside.write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="external data"):
        OpenVinoEncoder(outside, tried_first=False)


@needs_openvino
def test_a_model_with_an_unknown_operator_is_refused_in_one_line(path, tmp_path):
    model = onnx.load(path)
    model.graph.node[0].op_type = "Nonsense"
    (tmp_path / "model.onnx").write_bytes(sealed(model))
    with pytest.raises(InputError, match="OpenVINO cannot load it") as error:
        OpenVinoEncoder(tmp_path / "model.onnx", tried_first=False)
    assert "\n" not in str(error.value)


@needs_openvino
def test_a_model_with_other_tensors_is_refused(path, tmp_path):
    model = onnx.load(path)
    del model.graph.output[0]
    (tmp_path / "model.onnx").write_bytes(sealed(model))
    with pytest.raises(InputError, match="expected the tensors"):
        OpenVinoEncoder(tmp_path / "model.onnx", tried_first=False)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.onnx is not a file"):
        OpenVinoEncoder(tmp_path / "absent.onnx")
