"""The demo compares what it says it compares, and deletes nothing but its own files."""

import io
import re
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from project import DEMO_CHECKPOINT

import dmsh_model
from dmsh_export.choose_runtime import MODEL, served_file
from dmsh_export.compare.latency import latency_from_seconds
from dmsh_export.compare.parity import BatchInvariance, ParityReport, TargetParity
from dmsh_export.demo import encoders as demo_encoders
from dmsh_export.demo import run as demo
from dmsh_export.demo.drawings import unpack_drawings
from dmsh_export.demo.train import TrainedDemo
from dmsh_export.deploy import SETTINGS, Step, deploy
from dmsh_serving.client import Answer
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.hamming.nearest import search
from dmsh_serving.triton.settings import read_settings

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
    (out / "service").mkdir(parents=True)
    (out / "service" / "deploy.json").write_text("old")
    (out / "report.html").write_text("old")
    (out / ".dmsh-demo").touch()
    return out


def everything_in(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_a_missing_archive_is_named_before_anything_is_deleted(out, tmp_path):
    before = everything_in(out)
    with pytest.raises(InputError, match=r"absent\.zip does not exist: .* --drawings"):
        demo.run_demo(tmp_path / "absent.zip", out, None)
    assert everything_in(out) == before


@pytest.fixture(scope="module")
def archive(mnist, tmp_path_factory):
    """A tenth of MNIST, packed as the drawings are."""
    path = tmp_path_factory.mktemp("archive") / "digits.zip"
    with zipfile.ZipFile(path, "w") as file:
        for row in range(0, 5000, 10):
            buffer = io.BytesIO()
            Image.fromarray(mnist.images[row]).save(buffer, "PNG")
            file.writestr(f"drawings/{mnist.labels[row]}/{row:04d}.png", buffer.getvalue())
    return path


@pytest.mark.parametrize("name", ["thesis.tex", "photos/"])
def test_a_folder_with_other_things_in_it_is_left_alone(out, name, archive):
    if name.endswith("/"):
        (out / name).mkdir()
    else:
        (out / name).write_text("years of work")
    before = everything_in(out)
    with pytest.raises(InputError, match=f"holds {name.strip('/')}, which no demo has marked"):
        demo.run_demo(archive, out, None)
    assert everything_in(out) == before


def test_a_folder_of_the_same_names_that_no_demo_wrote_is_left_alone(tmp_path, archive):
    for name in ("database", "queries"):
        (tmp_path / "out" / name).mkdir(parents=True)
    before = everything_in(tmp_path)
    with pytest.raises(InputError, match="holds database, queries, which no demo has marked"):
        demo.run_demo(archive, tmp_path / "out", None)
    assert everything_in(tmp_path) == before


def test_a_file_in_the_folders_place_is_left_alone(tmp_path, archive):
    (tmp_path / "out").write_text("text")
    with pytest.raises(InputError, match="is not a folder"):
        demo.run_demo(archive, tmp_path / "out", None)
    assert (tmp_path / "out").read_text() == "text"


def a_report(wrong_bits, name):
    invariance = BatchInvariance(32, (), 1, 0)
    target = TargetParity(name, "f" * 64, 1, 64, wrong_bits, wrong_bits, 1e-6, 1e-3, 0, 0.1, invariance)
    return ParityReport("PyTorch", "f" * 64, (target,))


class FakeServer:
    url = "127.0.0.1:1"

    def __init__(self, repository, **_):
        served = repository / "dmsh_encoder" / "1" / "model.onnx"
        expected = served_file(repository.parent, read_settings(repository.parent / SETTINGS))
        assert served.read_bytes() == expected.read_bytes()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture(scope="module")
def world(archive, demo_model, tmp_path_factory):
    """The digits unpacked and deployed once: the folder and its images."""
    folder = tmp_path_factory.mktemp("world")
    data = unpack_drawings(archive, folder, 32)
    deploy(DEMO_CHECKPOINT, folder / "database", folder / "service")
    demo_encoders.export_float(demo_model, data.images[:8], folder)
    return folder, data


@pytest.fixture
def parts(monkeypatch, world, demo_model):
    """The demo without its long parts: no training, no export, no server; returns what those would have found."""
    folder, data = world
    integer = dmsh_model.load(folder / "service" / "integer")
    codes = integer.codes(data.images)
    split = data.given_split
    distances, ids = search(codes[split.query], codes[split.database], len(split.database))
    nothing = np.empty((0,), object)
    found = {
        "FP32 codes": a_report(0, "float.onnx"),
        "integer codes": a_report(0, MODEL),
        "ranked": Answer(ids, distances, nothing, nothing, nothing),
    }

    def deployed(checkpoint, images, out, **_):
        assert (checkpoint.name, images.name) == ("checkpoint", "database")
        shutil.copytree(folder / "service", out)
        return [Step("runtime", out / "settings.json", False, 1.0, "ONNX Runtime (400 images/s)")]

    def exported(model, images, out):
        for name in demo_encoders.FLOATS:
            shutil.copy(folder / name, out)

    monkeypatch.setattr(demo, "IMAGE_SIZE", 32)
    monkeypatch.setattr(demo, "train_heads", lambda *_: TrainedDemo(demo_model, 0.98, 0.9, 1.0))
    monkeypatch.setattr(demo, "deploy", deployed)
    monkeypatch.setattr(demo_encoders, "export_float", exported)
    monkeypatch.setattr(demo_encoders, "export_for_tensorrt", lambda *_: "not built: no TensorRT")
    monkeypatch.setattr(demo_encoders, "encoder_speeds", lambda *_: [latency_from_seconds("PyTorch", 32, [0.016])])
    monkeypatch.setattr(demo, "OnnxRunner", lambda path: path)
    monkeypatch.setattr(demo, "TritonRunner", lambda url: url)
    monkeypatch.setattr(demo, "TritonServer", FakeServer)
    monkeypatch.setattr(demo, "_compared", lambda model, targets, images, what: found[what])
    monkeypatch.setattr(demo, "_query", lambda *_: demo._Answers(found["ranked"], [0.001, 0.002]))
    return found


def test_what_an_earlier_demo_left_is_replaced_and_the_figures_are_those_of_the_answers(out, parts, archive, capsys):
    found = demo.run_demo(archive, out, None)
    figures = found["figures"]
    assert (out / "service" / "deploy.json").read_text() != "old"
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert figures["neighbours"] == 100 * 400
    assert figures["map_integer"] == figures["map_triton"] > 0.9
    assert figures["map_float"] > 0.9
    assert 0.98 < figures["equal_bits"] < 1
    assert found["machines"][0]["bits"] == 64
    printed = capsys.readouterr().out
    assert "40,000" in printed
    assert "2,000" in printed  # images/s
    assert re.search(r"the last stage alone │ +0\.9000", printed)
    assert "not built: no TensorRT" in printed
    assert "the fastest exact runtime here serves: ONNX Runtime (400 images/s)" in printed


@pytest.mark.parametrize("spoilt", ["FP32 codes", "integer codes", "ranked"])
def test_one_wrong_bit_or_neighbour_anywhere_fails_the_demo_and_leaves_no_page(out, parts, archive, spoilt):
    if spoilt == "ranked":
        parts["ranked"].distances[99, 399] += 1
    else:
        parts[spoilt] = a_report(1, "model")
    with pytest.raises(CheckError, match="1 of "):
        demo.run_demo(archive, out, None)
    assert not (out / "report.html").exists()
