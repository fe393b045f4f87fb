import numpy as np
import onnx
import pytest
import tiny_model

from dmsh_serving.contract import Metadata
from dmsh_serving.encoder import known_answer
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.errors import CheckError, InputError, MissingError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.mark.parametrize("options", [{}, {"optimise": False}, {"threads": 1}, {"threads": 2}])
def test_codes_and_logits_equal_whole_number_arithmetic(path, options):
    images = tiny_model.random_images(33)
    with OnnxEncoder(path, **options) as encoder:
        encoded = encoder.infer(images)
    np.testing.assert_array_equal(encoded.logits, tiny_model.logits_of(images))
    np.testing.assert_array_equal(encoded.checked().code, tiny_model.codes_of(images))


def test_the_network_is_the_one_that_onnx_reads_whatever_the_bytes_look_like(path, tmp_path):
    model = onnx.load(path)
    model.producer_name = "ORTM"  # at byte 4 it is the mark of ONNX Runtime's own format
    content = model.SerializeToString()
    assert content[4:8] == b"ORTM"
    (tmp_path / "model.onnx").write_bytes(content)
    images = tiny_model.random_images(5)
    with OnnxEncoder(tmp_path / "model.onnx") as encoder:
        np.testing.assert_array_equal(encoder.infer(images).logits, tiny_model.logits_of(images))


def test_the_file_says_what_it_is(path):
    with OnnxEncoder(path) as encoder:
        found = encoder.bits, encoder.image_size, encoder.fingerprint
        assert found == (tiny_model.BITS, tiny_model.SIZE, tiny_model.FINGERPRINT)
        assert encoder.metadata.known_answer
        assert encoder.metadata.parent_fingerprint is None


def test_no_images_give_no_codes(path):
    with OnnxEncoder(path) as encoder:
        encoded = encoder.infer(tiny_model.random_images(0))
    assert encoded.code.shape == (0, 8)
    assert encoded.logits.shape == (0, 64)


def test_nan_stays_visible_and_is_refused_when_checked(path):
    images = np.concatenate([tiny_model.random_images(1), tiny_model.WHITE])
    with OnnxEncoder(path) as encoder:
        encoded = encoder.infer(images)
    assert np.isnan(encoded.logits[1]).all()
    assert np.isfinite(encoded.logits[0]).all()
    with pytest.raises(InputError, match="row 1 hold NaN"):
        encoded.checked()


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 3, 16, 16), np.uint8), np.zeros((16, 16, 3), np.uint8)],
)
def test_other_images_are_refused_with_what_was_expected(path, images):
    with OnnxEncoder(path) as encoder, pytest.raises(InputError, match=r"must be uint8 \[N, 16, 16, 3\], got"):
        encoder.infer(images)


@pytest.mark.parametrize(
    "key",
    [Metadata.FINGERPRINT, Metadata.BITS, Metadata.IMAGE_SIZE, Metadata.KNOWN_ANSWER, Metadata.GRAPH_SHA256],
)
def test_a_model_without_its_metadata_is_refused(tmp_path, key):
    path = tiny_model.write(tmp_path / "model.onnx", without=[key])
    with pytest.raises(InputError, match=rf"model\.onnx .*has no {key} in its metadata"):
        OnnxEncoder(path)


def test_a_graph_that_was_changed_after_its_export_keeps_no_code_space_though_its_known_answer_is_right(tmp_path):
    changed = tiny_model.quantise(tiny_model.write(tmp_path / "model.onnx"))
    with pytest.raises(InputError, match=r"was changed after its export, and still names the code space abab"):
        OnnxEncoder(changed)
    with OnnxEncoder(changed, check_known_answer=False) as encoder:  # for whoever compares every bit
        assert encoder.fingerprint == tiny_model.FINGERPRINT


def test_one_bit_of_the_known_answer_is_enough_to_refuse(tmp_path):
    images = tiny_model.random_images(2)
    codes = tiny_model.codes_of(images)
    codes[1, 3] ^= 16
    path = tiny_model.write(tmp_path / "model.onnx", answer=known_answer.dump(images, codes))
    with pytest.raises(CheckError, match=r"model\.onnx: known answer: 1 of 128 bits differ"):
        OnnxEncoder(path)


@pytest.mark.parametrize("location", ["weights.bin", "absent.bin", "../weights.bin", "/dev/null"])
def test_fault_27_large_weights_outside_the_file_are_refused_wherever_they_are_said_to_be(path, tmp_path, location):
    model = onnx.load(path)
    outside = tmp_path / "model.onnx"
    onnx.save(model, outside, save_as_external_data=True, location="weights.bin", size_threshold=1000)
    model = onnx.load(outside, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    outside.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="external data"):
        OnnxEncoder(outside)


@pytest.mark.parametrize("content", [b"", b"not a model" * 50])
def test_what_is_not_a_model_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is it an ONNX model") as error:
        OnnxEncoder(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.onnx is not a file"):
        OnnxEncoder(tmp_path / "absent.onnx")


def test_fault_27_weights_outside_the_file_are_refused_even_when_they_are_there(path, tmp_path, monkeypatch):
    model = onnx.load(path)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="external data"):
        OnnxEncoder(tmp_path / "model.onnx")


def test_the_word_external_alone_does_not_mean_that_weights_lie_outside(path, tmp_path):
    model = onnx.load(path)
    model.graph.node[0].op_type = "ExternalCast"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"ONNX Runtime cannot load it.*No Op registered for ExternalCast"):
        OnnxEncoder(tmp_path / "model.onnx")


def test_a_model_with_other_tensors_is_refused(path, tmp_path):
    model = onnx.load(path)
    del model.graph.output[0]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="expected the tensors"):
        OnnxEncoder(tmp_path / "model.onnx")


@pytest.mark.parametrize(("threads", "asked"), [(None, 0), (1, 1), (3, 3)])
def test_the_number_of_threads_is_what_onnx_runtime_is_asked_for(path, monkeypatch, threads, asked):
    import onnxruntime

    session, seen = onnxruntime.InferenceSession, []

    def noted(model, options, **rest):
        seen.append(options.intra_op_num_threads)
        return session(model, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    OnnxEncoder(path, threads=threads).close()
    assert seen == [asked]


def test_a_provider_that_is_there_and_does_not_start_is_an_error_and_no_fallback(path, monkeypatch):
    """As on a machine whose ONNX Runtime has CUDA, and whose driver is missing."""
    import onnxruntime

    session = onnxruntime.InferenceSession
    cuda = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: cuda)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, providers, enable_fallback: session(model, options, providers=cuda[1:]),
    )
    with pytest.raises(MissingError, match="could not start CUDAExecutionProvider: is its GPU driver"):
        OnnxEncoder(path, providers=cuda)


def test_a_provider_that_is_not_there_is_an_error_and_no_fallback(path):
    with pytest.raises(MissingError, match="has no NoSuchExecutionProvider"):
        OnnxEncoder(path, providers=["NoSuchExecutionProvider", "CPUExecutionProvider"])
