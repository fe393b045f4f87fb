"""A checkpoint and images become a folder that a server starts from; a rerun does only what is missing."""

import errno
import fcntl
import json
import os
import shutil

import numpy as np
import pytest
import torch
from command_line import dmsh_export
from google.protobuf import text_format
from PIL import Image
from project import DEMO_CHECKPOINT
from tritonclient.grpc import model_config_pb2

import dmsh_model
from dmsh_export import deploy as deployment
from dmsh_export.deploy import deploy
from dmsh_export.manifest import read_manifest
from dmsh_export.quantise.checkpoint import quantise_checkpoint
from dmsh_export.quantise.run import MIN_IMAGES
from dmsh_model import checkpoint
from dmsh_model.config import HashConfig
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving import gallery
from dmsh_serving.contract import FILE, IMAGE
from dmsh_serving.encoder.open import open_encoder
from dmsh_serving.encoder.openvino import why_not_here
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.images.read import load_images
from dmsh_serving.triton.services import DecodeService, Settings
from dmsh_serving.triton.settings import EncoderSettings, read_settings

HERE = why_not_here(integer=True)
STEPS = ["quantise", "export", "runtime", "gallery", "repository"]


@pytest.fixture(scope="module")
def images(mnist, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "mnist.npy"
    np.save(path, mnist.images[::80])
    return path


@pytest.fixture(scope="module")
def original(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("deployed") / "service"
    done = dmsh_export("deploy", DEMO_CHECKPOINT, "--images", images, "--out", out, "--json", out.parent / "done.json")
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.fixture
def deployed(original, tmp_path):
    """A copy of the deployment, to damage."""
    return shutil.copytree(original[0], tmp_path / "service")


def made_and_kept(steps):
    return [step.name for step in steps if not step.kept], [step.name for step in steps if step.kept]


def test_a_checkpoint_becomes_an_integer_service_whose_codes_are_pytorchs(original, mnist):
    out, done = original
    model = dmsh_model.load(out / deployment.INTEGER)
    assert isinstance(model, IntegerDMSH)
    snapshot = gallery.open_current(out / deployment.GALLERY, fingerprint=model.fingerprint)
    images = mnist.images[::80]
    assert (snapshot.contents().codes == model.codes(images)).all()
    served = out / deployment.REPOSITORY / "dmsh_encoder" / "1" / "model.onnx"
    with open_encoder(served) as encoder:
        assert encoder.fingerprint == model.fingerprint
        assert encoder.runtime == read_settings(out / deployment.SETTINGS).runtime
        assert (encoder.infer(images[:9]).code == model.codes(images[:9])).all()
    report = json.loads((out.parent / "done.json").read_text())
    assert [step["name"] for step in report["steps"]] == STEPS
    assert "proven for every image; 0 wrong of 4,032 bits" in done.stdout
    assert f"dmsh-serve start --repository {out / deployment.REPOSITORY}" in done.stdout
    assert "images/s" in report["steps"][2]["result"]  # the runtime, and why it was chosen


def test_a_rerun_keeps_everything_and_writes_none_of_it(deployed, images):
    before = {path: path.stat().st_mtime_ns for path in deployed.rglob("*") if path.is_file()}
    steps = deploy(DEMO_CHECKPOINT, images, deployed)
    assert made_and_kept(steps) == ([], STEPS)
    after = {path: path.stat().st_mtime_ns for path in deployed.rglob("*") if path.is_file()}
    assert before == after


def test_an_interrupted_run_goes_on_where_it_stopped(deployed, images, monkeypatch):
    shutil.rmtree(deployed / deployment.GALLERY)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(deployment, "codes_of_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deploy(DEMO_CHECKPOINT, images, deployed)
    assert json.loads((deployed / "deploy.json").read_text())["done"].keys() == set(STEPS[:3])
    monkeypatch.undo()
    assert made_and_kept(deploy(DEMO_CHECKPOINT, images, deployed)) == (STEPS[3:], STEPS[:3])


@pytest.mark.parametrize(
    ("damaged", "made"),
    [
        ("model.onnx", STEPS[1:]),
        ("settings.json", STEPS[2:]),
        ("gallery/gallery-*.safetensors", STEPS[3:]),
        ("repository/dmsh_encoder/1/model.onnx", STEPS[4:]),
    ],
)
def test_a_damaged_artefact_is_made_anew_with_all_that_follows_it(deployed, images, damaged, made):
    (file,) = deployed.glob(damaged)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.unlink()
    file.write_bytes(content)
    steps = deploy(DEMO_CHECKPOINT, images, deployed)
    assert made_and_kept(steps)[0] == made


def test_another_network_in_the_place_of_the_quantised_one_is_exported_anew(deployed, images):
    before = read_manifest(deployed / "model.onnx")["fingerprint"]
    quantise_checkpoint(DEMO_CHECKPOINT, images, deployed / "integer", most=40, overwrite=True)
    steps = deploy(DEMO_CHECKPOINT, images, deployed)
    assert made_and_kept(steps) == (STEPS[1:], STEPS[:1])
    assert "in place of" in next(step.result for step in steps if step.name == "gallery")
    now = read_manifest(deployed / "model.onnx")["fingerprint"]
    assert now == checkpoint.read_header(deployed / "integer")["fingerprint"] != before


def test_a_folder_made_of_something_else_is_refused_by_name_and_left_alone(deployed, images, tmp_path):
    other = tmp_path / "other.npy"
    np.save(other, np.load(images)[:50])
    before = (deployed / "deploy.json").read_bytes()
    with pytest.raises(InputError, match="made of another set of images: choose another --out, or --overwrite"):
        deploy(DEMO_CHECKPOINT, other, deployed)
    with pytest.raises(InputError, match="made of another precision"):
        deploy(DEMO_CHECKPOINT, images, deployed, in_float=True)
    assert (deployed / "deploy.json").read_bytes() == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes").touch()
    with pytest.raises(InputError, match=r"holds other files and no deploy\.json"):
        deploy(DEMO_CHECKPOINT, images, tmp_path / "foreign")
    (deployed / "deploy.json").write_text("{")
    with pytest.raises(InputError, match="is damaged: --overwrite"):
        deploy(DEMO_CHECKPOINT, images, deployed)


def test_another_config_beside_the_same_weights_is_another_checkpoint(images, tmp_path):
    weights, config = tmp_path / "weights.pth", tmp_path / "config.json"
    torch.save(dmsh_model.load(DEMO_CHECKPOINT).state_dict(), weights)
    said = json.loads((DEMO_CHECKPOINT / "config.json").read_text())
    config.write_text(json.dumps(said))
    deploy(weights, images, tmp_path / "service", in_float=True)
    said["config"]["crop"] = "pad"
    config.write_text(json.dumps(said))
    with pytest.raises(InputError, match="made of another checkpoint"):
        deploy(weights, images, tmp_path / "service", in_float=True)


def test_images_of_another_folder_are_others_though_names_sizes_and_times_are_the_same(deployed, images, tmp_path):
    (tmp_path / "images").mkdir()
    twin = shutil.copy2(images, tmp_path / "images" / images.name)
    with pytest.raises(InputError, match="made of another set of images"):
        deploy(DEMO_CHECKPOINT, twin, deployed)


def test_images_that_were_exchanged_for_others_of_one_size_and_time_are_others(tmp_path):
    file = tmp_path / "a.bmp"
    file.write_bytes(b"one")
    held, before = file.stat(), deployment._listing(tmp_path)
    assert deployment._listing(tmp_path) == before
    file.write_bytes(b"two")
    os.utime(file, ns=(held.st_atime_ns, held.st_mtime_ns))  # as archives give all their files
    assert deployment._listing(tmp_path) != before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_another_process_writes_is_left_to_it(deployed, images, overwrite):
    held = os.open(deployed, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="is being written by another process"):
        deploy(DEMO_CHECKPOINT, images, deployed, overwrite=overwrite)
    os.close(held)
    assert made_and_kept(deploy(DEMO_CHECKPOINT, images, deployed)) == ([], STEPS)


def test_what_was_changed_in_the_gallery_since_is_kept_unless_it_is_to_be_overwritten(deployed, images):
    folder = deployed / deployment.GALLERY
    count = gallery.open_current(folder).count
    gallery.remove(folder, np.array([3]))
    (deployed / deployment.SETTINGS).unlink()  # so that all that follows is made anew
    assert made_and_kept(deploy(DEMO_CHECKPOINT, images, deployed)) == (STEPS[2:], STEPS[:2])
    assert gallery.open_current(folder).count == count - 1
    deploy(DEMO_CHECKPOINT, images, deployed, overwrite=True)
    assert gallery.open_current(folder).count == count


@pytest.mark.parametrize("damaged", ["gallery-00000001-*", "gallery-00000002-*", "CURRENT"])
def test_a_damaged_gallery_that_may_hold_more_is_not_made_anew_unless_it_is_asked_for(deployed, images, damaged):
    folder = deployed / deployment.GALLERY
    before = gallery.open_current(folder)
    gallery.append(folder, before.contents().codes[:1], None, ["new.png"], fingerprint=before.fingerprint)
    (file,) = folder.glob(damaged)
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:5])
    with pytest.raises(InputError, match=f"dmsh-serve gallery rollback {folder}, or deploy again with --overwrite"):
        deploy(DEMO_CHECKPOINT, images, deployed)
    assert file.read_bytes() == content[:5]
    if damaged == "gallery-00000001-*":  # on which the other one stands
        deploy(DEMO_CHECKPOINT, images, deployed, overwrite=True)
    else:
        gallery.rollback(folder)
        deploy(DEMO_CHECKPOINT, images, deployed)
    assert gallery.open_current(folder).count == before.count + (damaged == "CURRENT")


def test_a_gallery_that_cannot_be_read_for_a_moment_is_not_made_anew(deployed, images, monkeypatch):
    folder = deployed / deployment.GALLERY
    count = gallery.open_current(folder).count
    gallery.remove(folder, np.array([3]))

    def away(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))

    for interrupted in (False, True):
        if interrupted:  # before the gallery was noted
            record = json.loads((deployed / "deploy.json").read_text())
            del record["done"]["gallery"], record["done"]["repository"]
            (deployed / "deploy.json").write_text(json.dumps(record))
        with monkeypatch.context() as patched:
            patched.setattr(gallery, "open_current", away)
            with pytest.raises(OSError, match="Input/output error"):
                deploy(DEMO_CHECKPOINT, images, deployed)
    deploy(DEMO_CHECKPOINT, images, deployed)
    assert gallery.open_current(folder).count == count - 1


def test_an_overwriting_run_that_stopped_before_its_gallery_leaves_none_of_other_images_to_be_kept(
    original, deployed, images, tmp_path, mnist, monkeypatch
):
    integer, other = original[0] / "integer", tmp_path / "other.npy"  # one fingerprint, whatever the images
    np.save(other, mnist.images[1::160])

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(deployment, "codes_of_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deploy(integer, other, deployed, overwrite=True)
    monkeypatch.undo()
    deploy(integer, other, deployed)
    served = gallery.open_current(deployed / deployment.GALLERY).contents().codes
    assert (served == dmsh_model.load(integer).codes(np.load(other))).all()


@pytest.mark.parametrize(
    ("said", "images"),
    [
        ({"gallery_of": "these", "done": {}}, "these"),
        ({"done": {"gallery": "10 codes"}}, "all"),  # from before it was noted
        ({"done": {"export": "0 wrong"}}, None),
        ({"gallery_of": None, "done": {"gallery": "10 codes"}}, None),
        (None, None),
    ],
)
def test_a_gallery_is_of_the_images_that_the_record_says_or_that_an_older_one_means(tmp_path, said, images):
    if said:
        (tmp_path / "deploy.json").write_text(json.dumps({"made_of": {"set of images": "all"}, **said}))
    assert deployment._images_of_gallery(tmp_path / "deploy.json") == images
    with pytest.raises(OSError, match="Is a directory"):
        deployment._images_of_gallery(tmp_path)  # a disk that does not answer says nothing of the gallery


def test_a_served_file_that_is_gone_is_made_anew_and_none_of_another_runtime_served_in_its_place(
    original, images, tmp_path
):
    if HERE is not None:
        pytest.skip(f"OpenVINO cannot serve here: {HERE}")
    out, settings = tmp_path / "service", EncoderSettings("openvino")
    deploy(original[0] / "integer", images, out, settings=settings)
    served = out / "openvino.onnx"
    served.unlink()
    steps = deploy(original[0] / "integer", images, out, settings=settings)
    assert made_and_kept(steps)[0] == STEPS[2:]
    assert served.is_file()


def test_float_stays_in_float_and_an_integer_checkpoint_is_not_quantised_again(deployed, images, tmp_path, mnist):
    steps = deploy(DEMO_CHECKPOINT, images, tmp_path / "float", in_float=True)
    assert made_and_kept(steps) == (STEPS[1:], [])
    codes = gallery.open_current(tmp_path / "float" / deployment.GALLERY).contents().codes
    assert (codes == dmsh_model.load(DEMO_CHECKPOINT).codes(mnist.images[::80])).all()
    integer = deployed / deployment.INTEGER
    assert made_and_kept(deploy(integer, images, tmp_path / "integer")) == (STEPS[1:], [])
    with pytest.raises(InputError, match="--float needs the float one"):
        deploy(integer, images, tmp_path / "none", in_float=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("in_float", [False, True], ids=["integer", "float"])
def test_pictures_are_framed_as_the_checkpoint_says_wherever_they_become_codes(in_float, tmp_path):
    """Wide pictures, of which the central square alone would give other codes: gallery, decoder and file agree."""
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(MIN_IMAGES):
        Image.fromarray(random.integers(0, 256, (20, 60, 3), np.uint8)).save(tmp_path / "photos" / f"{number:02}.png")
    torch.manual_seed(0)
    config = HashConfig("vgg_small", 32, 16, lateral_features=8, fusion_features=8, crop="pad", interpolation="lanczos")
    checkpoint.save(DMSH(config), tmp_path / "model")
    out = tmp_path / "service"
    deploy(tmp_path / "model", tmp_path / "photos", out, in_float=in_float)
    model = dmsh_model.load(tmp_path / "model" if in_float else out / deployment.INTEGER)
    framed = load_images(tmp_path / "photos", 16, config.framing)
    assert not np.array_equal(framed.images, load_images(tmp_path / "photos", 16).images)
    assert np.array_equal(gallery.open_current(out / deployment.GALLERY).contents().codes, model.codes(framed.images))
    decoder = out / deployment.REPOSITORY / "dmsh_decode"
    parsed = text_format.Parse((decoder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    parameters = {name: value.string_value for name, value in parsed.parameters.items()}
    service = DecodeService.open(Settings(decoder, decoder / "1", parameters))
    files = np.array([[(tmp_path / "photos" / name).read_bytes()] for name in framed.names], object)
    (answer,) = service.answer([{FILE: files}])
    service.close()
    assert np.array_equal(answer[IMAGE], framed.images)


def test_given_settings_are_served_and_belong_to_what_the_deployment_is_made_of(original, images, tmp_path):
    integer, settings = original[0] / deployment.INTEGER, EncoderSettings("onnxruntime", 1, max_batch=4)
    steps = deploy(integer, images, tmp_path / "service", settings=settings)
    assert steps[1].result.startswith("ONNX Runtime (")
    config = (tmp_path / "service" / deployment.REPOSITORY / "dmsh_encoder" / "config.pbtxt").read_text()
    assert "max_batch_size: 4" in config
    assert not (tmp_path / "service" / "openvino.onnx").exists()
    with pytest.raises(InputError, match="made of another kind of serving"):
        deploy(integer, images, tmp_path / "service", settings=EncoderSettings("onnxruntime", 2))


def test_what_another_deployment_left_is_not_served(deployed, images, tmp_path, mnist, monkeypatch):
    left = deployed / "openvino.onnx"
    if not left.is_file():  # OpenVINO cannot serve here
        shutil.copy(deployed / "model.onnx", left)
    stale, settings = left.read_bytes(), EncoderSettings("openvino")
    steps = deploy(DEMO_CHECKPOINT, images, deployed, in_float=True, settings=settings, overwrite=True)
    assert made_and_kept(steps) == (STEPS[1:], [])
    codes = gallery.open_current(deployed / deployment.GALLERY).contents().codes
    assert (codes == dmsh_model.load(DEMO_CHECKPOINT).codes(mnist.images[::80])).all()
    assert not left.exists()
    before = gallery.current_version(deployed / deployment.GALLERY)
    chosen = deployment.choose_runtime

    def leave_it(*arguments):
        choice = chosen(*arguments)
        left.write_bytes(stale)  # as a second deployment into the folder would
        return choice

    monkeypatch.setattr(deployment, "choose_runtime", leave_it)
    with pytest.raises(CheckError, match="has other codes than"):
        deploy(DEMO_CHECKPOINT, images, deployed, in_float=True, settings=settings, overwrite=True)
    assert gallery.current_version(deployed / deployment.GALLERY) == before
