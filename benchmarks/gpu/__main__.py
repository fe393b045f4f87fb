"""On this machine's NVIDIA GPU: build FP32, FP16 and INT8 plans, run the tests, compare every bit, time them.

TensorRT builds where it is installed, else TensorRT-RTX. Without a GPU this says so and exits with 3.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, console, progress, write_json
from dmsh_serving.errors import CheckError, InputError, MissingError
from dmsh_serving.program import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.gpu.page import GpuReport, PlanResult
    from dmsh_export.compare.latency import Latency
    from dmsh_export.compare.runners import Images
    from dmsh_export.engine.build import EngineBuild
    from dmsh_export.engine.precision import Precision
    from dmsh_export.engine.tensorrt_api import FlavourChoice
    from dmsh_model.integer.reference import IntegerDMSH
    from dmsh_model.network import DMSH

app = make_app("Build, test, compare and time TensorRT plans on this machine's GPU.")

_NETWORKS: Final = ("demo", "resnet50")
_PRECISIONS: "Final[tuple[Precision, ...]]" = ("fp32", "fp16", "int8")
_BATCHES: Final = {1: 100, 8: 50, 32: 25}  # images per call: rounds
_MAX_BATCH: Final = 32
_CALIBRATION_IMAGES: Final = 48
_COMPARED_IMAGES: Final = 512
_FLOAT, _INTEGER = "float.onnx", "integer.onnx"
_ROOT: Final = Path(__file__).resolve().parents[2]


@app.command()
def gpu(
    page: Annotated[Path | None, typer.Option(help="The page to write, whole.")] = None,
    json: JsonOption = None,
) -> None:
    """Build, test, compare and time plans; exit 1 if a bit is wrong that must not be, 3 without a GPU."""
    from benchmarks.gpu.page import markdown
    from dmsh_export.engine.tensorrt_api import choose_flavour, find_gpu
    from dmsh_serving.files import write_atomically

    if find_gpu() is None:
        raise MissingError(
            "no NVIDIA GPU (or no driver) is found here: run make gpu on the machine whose plans are to be shown"
        )
    if page is not None and not page.absolute().parent.is_dir():
        raise InputError(f"--page {page}: name a file in a folder that exists")
    choice = choose_flavour("auto")
    with progress() as bar:
        task = bar.add_task("tests", total=None)
        report = measured(choice, lambda what: bar.update(task, description=what))
    if page is not None:
        write_atomically(page, markdown(report).encode())
        console().print(f"wrote {page}")
    write_json(json, report.to_dict())
    if failures := report.failures():
        raise CheckError("; ".join(failures))
    console().print(f"{len(report.plans)} plans on {report.gpu}: every bit that must be PyTorch's is")


def measured(choice: "FlavourChoice", say: "Callable[[str], None]") -> "GpuReport":
    """Run the tests, then build, compare and time the plans of every network with the flavour of ``choice``."""
    from benchmarks.gpu.page import GpuReport

    assert choice.gpu is not None  # the caller has found it
    say("tests that need a GPU")
    passed, last_line = tests()
    plans: list[PlanResult] = []
    latencies: dict[str, tuple[Latency, ...]] = {}
    version = ""
    for name in _NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            found, timed, version = _network(name, Path(folder), say)
        plans += found
        latencies[name] = timed
    return GpuReport(
        gpu=f"{choice.gpu.name} (compute capability {choice.gpu.compute_capability})",
        built_with=f"{choice.flavour} {version} ({choice.why})",
        plans=tuple(plans),
        latencies=latencies,
        tests=last_line,
        tests_passed=passed,
    )


def tests() -> tuple[bool, str]:
    """Run the tests marked ``gpu``; return whether all passed, and pytest's last line."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1].strip("= ") if lines else "no output"


def _network(
    name: str, folder: Path, say: "Callable[[str], None]"
) -> "tuple[list[PlanResult], tuple[Latency, ...], str]":
    """Return the plans of one network, how fast they are, and the version of TensorRT that built them."""
    from benchmarks.common.networks import network, real_images
    from dmsh_export.compare.latency import measure
    from dmsh_export.compare.runners import OnnxRunner, Runner
    from dmsh_export.engine.runner import TensorRTRunner
    from dmsh_export.to_onnx.float import export_onnx
    from dmsh_export.to_onnx.integer import export_integer_onnx

    say(f"{name}: quantising, exporting")
    images = real_images(name, _CALIBRATION_IMAGES + _COMPARED_IMAGES)
    calibration, compared = images[:_CALIBRATION_IMAGES], images[_CALIBRATION_IMAGES:]
    model = network(name, calibration)
    integer = _quantised(model, calibration)
    export_onnx(model, folder / _FLOAT, calibration[:4], max_batch=1)
    export_integer_onnx(integer, folder / _INTEGER, calibration[:4], dialect="tensorrt", max_batch=1)
    results = []
    for precision in _PRECISIONS:
        say(f"{name}: {precision} plan")
        build = _built(folder, precision)
        results.append(_compared(name, precision, build, integer if precision == "int8" else model, compared))
    say(f"{name}: timing")
    runners: list[Runner] = [OnnxRunner(folder / _FLOAT)]
    runners += [TensorRTRunner(folder / f"{precision}.plan", built_here=True) for precision in _PRECISIONS]
    timed: list[Latency] = []
    for batch, rounds in _BATCHES.items():
        timed += measure(runners, lambda _: compared, batch=batch, rounds=rounds)
    return results, tuple(timed), build.version


def _quantised(model: "DMSH", images: "Images") -> "IntegerDMSH":
    from dmsh_export.quantise.run import quantise
    from dmsh_serving.images.read import ImageSet

    parts = [images[start : start + 4] for start in range(0, len(images), 4)]
    return quantise(model, (ImageSet(part, [str(row) for row in range(len(part))], []) for part in parts)).model


def _built(folder: Path, precision: "Precision") -> "EngineBuild":
    from dmsh_export.engine.build import BatchProfile, EngineOptions, engine_from_onnx

    source = folder / (_INTEGER if precision == "int8" else _FLOAT)
    options = EngineOptions(precision, BatchProfile(1, 8, _MAX_BATCH))
    return engine_from_onnx(source, folder / f"{precision}.plan", options)


def _compared(
    name: str, precision: "Precision", build: "EngineBuild", model: "DMSH | IntegerDMSH", images: "Images"
) -> "PlanResult":
    from benchmarks.gpu.page import PlanResult
    from dmsh_export.compare.parity import compare
    from dmsh_export.compare.runners import TorchRunner
    from dmsh_export.engine.runner import TensorRTRunner

    runner = TensorRTRunner(build.path, built_here=True)
    (target,) = compare(TorchRunner(model), [runner], images, max_batch=_MAX_BATCH).targets
    types = sorted({f"{row.part} in {row.type}" for row in build.engine_audit if row.products})
    return PlanResult(
        network=name,
        precision=precision,
        bits=target.bits_compared,
        wrong_bits=target.wrong_bits,
        worst_logit_error=target.worst_logit_error,
        codes_in_batches=target.invariance.codes_compared,
        changed_codes=target.invariance.wrong_codes,
        audit=", ".join(types) if build.engine_audited else "shows no types",
        proof=build.proof.why,
    )


if __name__ == "__main__":
    run(app)
