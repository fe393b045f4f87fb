"""What a plan's runner decides without a GPU (tests/gpu has the rest): the engine behind it is the oracle."""

import json

import numpy as np
import pytest
import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from plan_files import GPU, write_plan

from dmsh_export.compare.runners import runner_of
from dmsh_export.engine import runner as trt_runner
from dmsh_export.engine.manifest import read_plan_manifest
from dmsh_export.engine.runner import TensorRTRunner, batches_of
from dmsh_export.engine.tensorrt_api import Gpu, find_gpu
from dmsh_export.manifest import manifest_path
from dmsh_serving.codes import Encoded
from dmsh_serving.errors import InputError, MissingError

IMAGES = tiny_model.random_images(40)
BUILT_ON = Gpu(**GPU)
VERSION = "10.16.1.11"


class Oracle:
    """In place of a loaded engine: exact codes, and a note of each batch's size."""

    def __init__(self):
        self.batches, self.closed = [], False

    def run(self, images):
        self.batches.append(len(images))
        return Encoded(tiny_model.codes_of(images), tiny_model.logits_of(images).astype(np.float32))

    def close(self):
        self.closed = True


@pytest.fixture
def engine(monkeypatch):
    oracle = Oracle()
    monkeypatch.setattr(trt_runner, "load_engine", lambda manifest: oracle)
    return oracle


@pytest.fixture
def plan(tmp_path):
    return write_plan(tmp_path / "model.plan")


def test_the_runner_is_of_the_code_space_its_manifest_names(engine, tmp_path):
    plan = write_plan(tmp_path / "model.plan", parent_fingerprint="cd" * 32)
    with runner_of(str(plan)) as runner:
        assert isinstance(runner, TensorRTRunner)
        assert (runner.name, runner.bits, runner.image_size) == ("model.plan", tiny_model.BITS, tiny_model.SIZE)
        assert (runner.fingerprint, runner.parent_fingerprint) == (tiny_model.FINGERPRINT, "cd" * 32)
    assert engine.closed


@pytest.mark.parametrize(("count", "batches"), [(0, []), (1, [1]), (8, [8]), (9, [8, 1]), (20, [8, 8, 4])])
def test_images_are_encoded_in_batches_of_the_profile_and_come_back_in_order(engine, plan, count, batches):
    with TensorRTRunner(plan) as runner:
        encoded = runner.infer(IMAGES[:count])
    assert engine.batches == batches
    np.testing.assert_array_equal(encoded.code, tiny_model.codes_of(IMAGES[:count]))
    np.testing.assert_array_equal(encoded.logits, tiny_model.logits_of(IMAGES[:count]))
    assert (encoded.code.dtype, encoded.logits.dtype) == (np.uint8, np.float32)


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 60))
def test_batches_cover_all_images_within_the_profile_or_none_could(smallest, more, count):
    largest = smallest + more
    fewest = -(-count // largest)
    if not any(number * smallest <= count <= number * largest for number in range(count + 1)):
        with pytest.raises(InputError, match=f"{count} images do not divide into batches of {smallest} to {largest}"):
            batches_of(count, smallest, largest, "model.plan")
        return
    batches = batches_of(count, smallest, largest, "model.plan")
    assert [row for rows in batches for row in range(rows.start, rows.stop)] == list(range(count))
    assert all(smallest <= rows.stop - rows.start <= largest for rows in batches)
    assert len(batches) == fewest


@pytest.mark.parametrize(
    "images", [IMAGES[:2].astype(np.float32), IMAGES[:2, :8], IMAGES[0], IMAGES[:2].transpose(0, 3, 1, 2)]
)
def test_other_shapes_and_types_are_refused_with_what_was_expected(engine, plan, images):
    with (
        TensorRTRunner(plan) as runner,
        pytest.raises(InputError, match=r"model.plan: images must be uint8 \[N, 16, 16, 3\], got"),
    ):
        runner.infer(images)
    assert engine.batches == []


def test_a_plan_without_its_manifest_or_with_anothers_is_refused(engine, plan, tmp_path):
    with pytest.raises(InputError, match=r"absent\.plan is not a file: name an engine"), runner_of("absent.plan"):
        pass
    other = tmp_path / "other.plan"
    other.write_bytes(b"other")
    with pytest.raises(InputError, match=r"other\.plan\.json is missing"), TensorRTRunner(other):
        pass
    plan.write_bytes(b"changed")
    with pytest.raises(InputError, match="the SHA-256 differs"), TensorRTRunner(plan):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "onnx"}, "is of kind 'onnx', not of a plan"),
        ({"profile": {"min": 1, "max": 8}}, r"is incomplete \('opt'\): build the plan again"),
        ({"tensorrt": None}, "is incomplete"),
        ({"tensorrt": {"flavour": "openvino"}}, "flavour 'openvino'"),
        ({"bits": 0}, "bits = 0 is out of range"),
    ],
)
def test_a_damaged_manifest_is_refused(plan, change, message):
    manifest = json.loads(manifest_path(plan).read_text())
    manifest_path(plan).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(InputError, match=message):
        read_plan_manifest(plan)


REBUILD = r"on this machine, build it again: dmsh-export trt model\.onnx --fp32 --out model\.plan"


def test_fault_26_another_gpu_is_named_beside_the_plans_own_with_the_command_to_rebuild(plan):
    with pytest.raises(
        MissingError,
        match=rf"built for compute capability 8\.6, here is NVIDIA L4 \(compute capability 8\.9\): {REBUILD}",
    ):
        read_plan_manifest(plan).check_runs_on(Gpu("NVIDIA L4", "8.9"), VERSION)


@pytest.mark.parametrize("version", ["11.4.0.106", "10.16.0.1", "10.12.0"])
def test_fault_26_another_tensorrt_is_named_beside_the_plans_own_with_the_command_to_rebuild(plan, version):
    with pytest.raises(
        MissingError,
        match=rf"built with tensorrt 10\.16\.1\.11 and runs on that, here is tensorrt {version}: {REBUILD}",
    ):
        read_plan_manifest(plan).check_runs_on(BUILT_ON, version)


def test_no_gpu_is_said_in_one_line(plan):
    with pytest.raises(MissingError, match=r"runs on an NVIDIA GPU \(compute capability 8\.6\), and none is found"):
        read_plan_manifest(plan).check_runs_on(None, VERSION)


@pytest.mark.parametrize(
    ("options", "gpu", "version", "runs"),
    [
        ({}, "8.6", VERSION, True),
        ({"version_compatible": True}, "8.6", "11.4.0.106", True),
        ({"version_compatible": True}, "8.6", "10.16.1.9", False),
        ({"version_compatible": True}, "8.9", VERSION, False),
        ({"hardware_compatibility": "ampere-plus"}, "12.0", VERSION, True),
        ({"hardware_compatibility": "ampere-plus"}, "7.5", VERSION, False),
        ({"hardware_compatibility": "same-compute-capability"}, "8.6", VERSION, True),
        ({"hardware_compatibility": "same-compute-capability"}, "8.9", VERSION, False),
    ],
)
def test_a_compatible_plan_runs_on_what_it_was_made_compatible_with(tmp_path, options, gpu, version, runs):
    manifest = read_plan_manifest(write_plan(tmp_path / "model.plan", options=options))
    if runs:
        manifest.check_runs_on(Gpu("a GPU", gpu), version)
    else:
        with pytest.raises(MissingError, match="build it again"):
            manifest.check_runs_on(Gpu("a GPU", gpu), version)


def test_an_engine_built_ahead_of_time_is_for_no_gpu_in_particular(tmp_path):
    plan = write_plan(tmp_path / "model.plan", flavour="tensorrt-rtx", gpu=None, version="1.7.1.116")
    manifest = read_plan_manifest(plan)
    manifest.check_runs_on(Gpu("NVIDIA L4", "8.9"), "1.7.1.116")
    with pytest.raises(MissingError, match=r"built with tensorrt-rtx 1\.7\.1\.116 .*here is tensorrt-rtx 1\.8\.0"):
        manifest.check_runs_on(Gpu("NVIDIA L4", "8.9"), "1.8.0")


@pytest.mark.skipif(find_gpu() is not None, reason="this machine has a GPU")
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_the_real_loader_says_so_before_it_needs_a_package(tmp_path, flavour):
    plan = write_plan(tmp_path / "model.plan", flavour=flavour)
    with pytest.raises(MissingError, match="and none is found here") as error, TensorRTRunner(plan):
        pass
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)


def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.mark.skipif(find_gpu() is not None, reason="this machine has a GPU")
def test_what_tensorrt_says_of_a_plan_it_cannot_load_is_passed_on(tmp_path):
    plan = write_plan(tmp_path / "model.plan", flavour="tensorrt-rtx", gpu=None, version=rtx().__version__)
    with pytest.raises(
        MissingError, match=rf"tensorrt-rtx \S+ cannot load .*model\.plan \(.+\), built for .*{REBUILD}"
    ):
        trt_runner._GpuEngine(rtx(), read_plan_manifest(plan))


def test_a_plan_that_is_replaced_while_it_is_opened_is_refused(tmp_path):
    plan = write_plan(tmp_path / "model.plan", flavour="tensorrt-rtx", gpu=None, version=rtx().__version__)
    manifest = read_plan_manifest(plan)
    plan.write_bytes(b"another plan")
    with pytest.raises(InputError, match=r"model\.plan was replaced while it was opened"):
        trt_runner._GpuEngine(rtx(), manifest)


class Tensors:
    """The part of an engine that says what its tensors are."""

    def __init__(self, *tensors):
        self.tensors, self.num_io_tensors = tensors, len(tensors)

    def get_tensor_name(self, index):
        return self.tensors[index][0]

    def get_tensor_dtype(self, name):
        return {tensor[0]: tensor[1] for tensor in self.tensors}[name]

    def get_tensor_shape(self, name):
        return (-1, *{tensor[0]: tensor[2] for tensor in self.tensors}[name])


def test_a_plan_with_other_tensors_than_an_encoders_is_refused(plan):
    types = rtx().DataType
    image, code = ("image", types.UINT8, (16, 16, 3)), ("code", types.UINT8, (8,))
    manifest = read_plan_manifest(plan)
    trt_runner._check_tensors(rtx(), Tensors(image, code, ("logits", types.FLOAT, (64,))), manifest)
    for tensors in (
        (image, code),
        (image, code, ("logits", types.HALF, (64,))),
        (image, code, ("logits", types.FLOAT, (32,))),
        (image, code, ("scores", types.FLOAT, (64,))),
    ):
        with pytest.raises(InputError, match=r"expected the tensors code .*, found code .*build it again"):
            trt_runner._check_tensors(rtx(), Tensors(*tensors), manifest)
