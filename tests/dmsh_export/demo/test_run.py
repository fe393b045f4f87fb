"""The demo compares what it says it compares, and deletes nothing but its own files."""

import dataclasses
import shutil

import numpy as np
import pytest
from project import DEMO_CHECKPOINT

from dmsh_export.compare.latency import latency_from_seconds
from dmsh_export.compare.parity import BatchInvariance, ParityReport, TargetParity
from dmsh_export.demo import encoders as demo_encoders
from dmsh_export.demo import run as demo
from dmsh_export.prove.certificate import certify
from dmsh_export.quantise.run import quantise
from dmsh_export.to_onnx.integer import export_integer_onnx
from dmsh_model.data.split import SplitOptions, split_images
from dmsh_serving.client import Answer
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.hamming.nearest import search
from dmsh_serving.images.read import ImageSet

RANDOM = np.random.default_rng(0)
QUERIES = RANDOM.integers(0, 4, (5, 2), dtype=np.uint8)
DATABASE = RANDOM.integers(0, 4, (40, 2), dtype=np.uint8)  # so few values that most distances are tied


@pytest.fixture
def ranked():
    """The right answer, to be spoilt."""
    distances, ids = search(QUERIES, DATABASE, len(DATABASE))
    nothing = np.empty((0,), object)
    return Answer(ids.copy(), distances.copy(), keys=nothing, gallery_version=nothing, code=QUERIES)


def test_the_right_ranking_passes(ranked):
    demo.check_neighbours(ranked, QUERIES, DATABASE)


def test_two_neighbours_of_equal_distance_in_the_other_order_are_found(ranked):
    (place,) = np.flatnonzero(ranked.distances[3, 1:] == ranked.distances[3, :-1])[:1]
    ranked.ids[3, [place, place + 1]] = ranked.ids[3, [place + 1, place]]
    with pytest.raises(CheckError, match=rf"2 of 200 neighbours are not .* first is place {place} of query 3: id"):
        demo.check_neighbours(ranked, QUERIES, DATABASE)


def test_one_wrong_distance_is_found(ranked):
    ranked.distances[4, 39] += 1
    with pytest.raises(CheckError, match=r"1 of 200 neighbours .* place 39 of query 4"):
        demo.check_neighbours(ranked, QUERIES, DATABASE)


def test_a_ranking_that_is_cut_short_is_found(ranked):
    short = Answer(ranked.ids[:, :9], ranked.distances[:, :9], ranked.keys, ranked.gallery_version, ranked.code)
    with pytest.raises(CheckError, match=r"ranked \[5, 9\] neighbours"):
        demo.check_neighbours(short, QUERIES, DATABASE)


@pytest.fixture
def out(tmp_path):
    """What an earlier demo left."""
    out = tmp_path / "out"
    (out / "gallery").mkdir(parents=True)
    (out / "gallery" / "CURRENT").write_text("old")
    (out / "report.html").write_text("old")
    return out


def everything_in(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_a_missing_checkpoint_is_named_before_anything_is_deleted(out, tmp_path):
    before = everything_in(out)
    with pytest.raises(InputError, match="absent does not exist"):
        demo.run_demo(tmp_path / "absent", out, None)
    assert everything_in(out) == before


@pytest.mark.parametrize("name", ["thesis.tex", "photos/"])
def test_a_folder_with_other_things_in_it_is_left_alone(out, name, parts):
    if name.endswith("/"):
        (out / name).mkdir()
    else:
        (out / name).write_text("years of work")
    before = everything_in(out)
    with pytest.raises(InputError, match=f"holds {name.strip('/')}, which no demo wrote"):
        demo.run_demo(DEMO_CHECKPOINT, out, None)
    assert everything_in(out) == before


def test_a_file_in_the_folders_place_is_left_alone(tmp_path, parts):
    (tmp_path / "out").write_text("text")
    with pytest.raises(InputError, match="is not a folder"):
        demo.run_demo(DEMO_CHECKPOINT, tmp_path / "out", None)
    assert (tmp_path / "out").read_text() == "text"


def a_report(wrong_bits, name="model.onnx"):
    invariance = BatchInvariance(32, 1, 0)
    target = TargetParity(name, "f" * 64, 1, 64, wrong_bits, wrong_bits, 1e-6, 1e-3, 0, 0.1, invariance)
    return ParityReport("PyTorch", "f" * 64, (target,))


class FakeServer:
    url = "127.0.0.1:1"

    def __init__(self, repository, **_):
        served = repository / "dmsh_encoder" / "1" / "model.onnx"
        assert served.read_bytes() == (repository.parent / demo_encoders.INTEGER).read_bytes()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture(scope="module")
def few(mnist):
    """A tenth of the images."""
    return dataclasses.replace(mnist, images=mnist.images[::10], labels=mnist.labels[::10], names=mnist.names[::10])


@pytest.fixture(scope="module")
def integer_model(demo_model, few):
    return quantise(demo_model, [ImageSet(few.images, few.names, [])]).model


@pytest.fixture(scope="module")
def integer_file(integer_model, few, tmp_path_factory):
    path = tmp_path_factory.mktemp("integer") / demo_encoders.INTEGER
    export_integer_onnx(integer_model, path, few.images[:8], max_batch=1)
    return path


@pytest.fixture
def parts(monkeypatch, integer_model, integer_file, few):
    """The demo without its long parts: no export, no gallery, no server; returns what those would have found."""
    split = split_images(few, SplitOptions(queries_per_class=5))
    codes = integer_model.codes(few.images)
    distances, ids = search(codes[split.query], codes[split.database], len(split.database))
    nothing = np.empty((0,), object)
    found = {
        "float": a_report(0),
        "integer": a_report(0, demo_encoders.INTEGER),
        "triton": a_report(0, "triton://h:1/m"),
        "ranked": Answer(ids, distances, nothing, nothing, nothing),
    }

    def export_integer(model, data, split, out):
        shutil.copy(integer_file, out)
        proof = certify(integer_file)
        return demo_encoders.IntegerEncoders(integer_model, 160, proof, found["integer"], "not built: no TensorRT")

    monkeypatch.setattr(demo_encoders, "export_float", lambda *_: found["float"])
    monkeypatch.setattr(demo_encoders, "export_integer", export_integer)
    monkeypatch.setattr(demo_encoders, "encoder_speeds", lambda *_: [latency_from_seconds("PyTorch", 32, [0.016])])
    monkeypatch.setattr(demo, "_fill_gallery", lambda out, data, split: None)
    monkeypatch.setattr(demo, "TritonServer", FakeServer)
    monkeypatch.setattr(demo, "_compare_triton", lambda *_: found["triton"])
    monkeypatch.setattr(demo, "_query", lambda *_: demo._Answers(found["ranked"], [0.001, 0.002]))
    monkeypatch.setattr(demo, "load_labelled", lambda *_: few)
    monkeypatch.setattr(demo, "split_images", lambda *_: split)
    return found


def test_what_an_earlier_demo_left_is_replaced_and_the_figures_are_those_of_the_answers(out, parts, capsys):
    found = demo.run_demo(DEMO_CHECKPOINT, out, None)
    figures = found["figures"]
    assert not (out / "gallery").exists()
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert figures["neighbours"] == 50 * 450
    assert figures["map_integer"] == figures["map_triton"] > 0.9
    assert figures["map_float"] > 0.9
    assert 0.98 < figures["equal_bits"] < 1
    assert found["machines"][0]["bits"] == 128
    printed = capsys.readouterr().out
    assert "22,500" in printed
    assert "2,000" in printed  # images/s
    assert "not built: no TensorRT" in printed


@pytest.mark.parametrize("spoilt", ["float", "integer", "triton", "ranked"])
def test_one_wrong_bit_or_neighbour_anywhere_fails_the_demo_and_leaves_no_page(out, parts, spoilt):
    if spoilt == "ranked":
        parts["ranked"].distances[49, 449] += 1
    else:
        parts[spoilt] = a_report(1)
    with pytest.raises(CheckError, match="1 of "):
        demo.run_demo(DEMO_CHECKPOINT, out, None)
    assert not (out / "report.html").exists()
