"""The fastest runtime wins among those whose known answer is right; every reason against another is told."""

import contextlib

import pytest
import tiny_model

from dmsh_export.compare import fastest as module
from dmsh_export.compare.fastest import Choice, Measured, fastest
from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import CheckError, MissingError


@pytest.fixture
def path(tmp_path):
    return tiny_model.write(tmp_path / "model.onnx")


@pytest.fixture
def opened(monkeypatch):
    """Encoders that take the given seconds per call; an error instead of seconds is raised when it is opened."""

    def use(**found):
        class Encoder:
            def __init__(self, name):
                self.name = name
                images = tiny_model.random_images(3)
                text = known_answer.dump(images, tiny_model.codes_of(images))
                self.metadata = type("Metadata", (), {"known_answer": text})

            def infer(self, images):
                assert len(images) == 8

        def open_encoder(path, name, *, threads):
            if isinstance(found[name], Exception):
                raise found[name]
            return contextlib.nullcontext(Encoder(name))

        monkeypatch.setattr(module, "open_encoder", open_encoder)
        names = [name for name, value in found.items() if not isinstance(value, Exception)]

        def in_turns(calls, rounds, **_):
            assert len(calls) == len(names)
            return [[9.0, found[name], found[name]] for name in names]  # the first turn is cold, and not counted

        monkeypatch.setattr(module, "in_turns", in_turns)

    return use


@pytest.mark.parametrize(("seconds", "winner"), [((0.02, 0.01), "openvino"), ((0.01, 0.02), "onnxruntime")])
def test_the_faster_one_wins_and_the_line_says_by_how_much(opened, path, seconds, winner):
    opened(onnxruntime=seconds[0], openvino=seconds[1])
    choice = fastest({"onnxruntime": path, "openvino": path})
    assert choice.runtime == winner
    assert "2.00 times as fast" in choice.why
    assert "both known answers are right here" in choice.why
    assert choice.to_dict()["measured"][0]["runtime"] == "onnxruntime"


def test_a_runtime_with_a_wrong_answer_is_left_out_however_fast_it_is(opened, path):
    opened(onnxruntime=0.02, openvino=CheckError("known answer: 3 of 144 bits differ"))
    choice = fastest({"onnxruntime": path, "openvino": path})
    assert choice.runtime == "onnxruntime"
    assert "OpenVINO left out: known answer: 3 of 144 bits differ" in choice.why


def test_a_runtime_that_is_known_to_be_missing_is_told_too(opened, path):
    opened(onnxruntime=0.02)
    choice = fastest({"onnxruntime": path}, {"openvino": "openvino is not installed"})
    assert choice.measured == (
        Measured("onnxruntime", 400.0), Measured("openvino", None, "openvino is not installed")
    )  # fmt: skip
    assert "left out: openvino is not installed" in choice.why


def test_no_runtime_at_all_is_an_error_with_every_reason(opened, path):
    opened(onnxruntime=CheckError("one bit differs"), openvino=MissingError("no VNNI"))
    with pytest.raises(CheckError, match="no runtime can serve it here: one bit differs; no VNNI"):
        fastest({"onnxruntime": path, "openvino": path})


def test_a_lone_runtime_is_timed_for_real(path):
    choice = fastest({"onnxruntime": path})
    assert isinstance(choice, Choice)
    assert choice.measured[0].images_per_s > 1
    assert "times as fast" not in choice.why
