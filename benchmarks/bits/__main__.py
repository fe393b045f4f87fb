"""Ten million bits of the integer network, in every way to run it here, each held against PyTorch: none may differ.

The demo's checkpoint is quantised and exported in every dialect. ONNX Runtime runs two of them at each level of
optimisation, on one and two threads; OpenVINO runs its own, in one stream and two. Batches are of 1 to 33 images,
filled up or not; and a live Triton serves each runtime over gRPC.
"""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, console, print_table, progress, write_json
from dmsh_serving.errors import CheckError
from dmsh_serving.program import run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dmsh_export.graph import Dialect
    from dmsh_model.integer.reference import IntegerDMSH
    from dmsh_serving.codes import Encoded
    from dmsh_serving.encoder.base import Runtime

app = make_app("Compare ten million bits of the integer network, in every setting, with PyTorch.")

LARGEST_BATCH: Final = 33
WANTED_BITS: Final = 10_000_000
LEVELS: Final = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}
_QUICK_IMAGES = 300
_CALIBRATION_IMAGES = 800
_DEMO_CHECKPOINT = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"


@dataclass(frozen=True)
class Setting:
    """One way to run the network: in ONNX Runtime at a level of optimisation, or in OpenVINO in some streams."""

    dialect: "Dialect"
    optimisation: str
    threads: int
    streams: int = 0

    @property
    def name(self) -> str:
        """For the table."""
        if self.streams:
            return f"OpenVINO, {self.threads} thread(s), {self.streams} stream(s)"
        return f"ONNX Runtime, {self.dialect} dialect, optimisation {self.optimisation}, {self.threads} thread(s)"


@dataclass(frozen=True)
class Compared:
    """One setting on one set of images: every bit and every logit, each a float32 compared for equality."""

    setting: str
    images: str
    bits: int
    wrong_bits: int
    different_logits: int
    seconds: float


@app.command()
def bits(
    quick: Annotated[bool, typer.Option("--quick", help=f"{_QUICK_IMAGES} images of each set, every setting.")] = False,
    json: JsonOption = None,
) -> None:
    """Compare every bit and every integer logit of every setting with PyTorch; exit 1 on one difference."""
    from dmsh_export.compare.machine import machine_name

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, progress() as bar:
        task = bar.add_task("quantising, exporting", total=None)
        rows = compared_everywhere(Path(folder), quick=quick, say=lambda what: bar.update(task, description=what))
    total = sum(row.bits for row in rows)
    print_table(
        f"The integer network on {machine_name()}",
        ["setting", "images", "bits", "wrong bits", "different logits", "seconds"],
        [
            [
                row.setting,
                row.images,
                f"{row.bits:,}",
                f"{row.wrong_bits:,}",
                f"{row.different_logits:,}",
                f"{row.seconds:.1f}",
            ]
            for row in rows
        ],
    )
    wrong, different = sum(row.wrong_bits for row in rows), sum(row.different_logits for row in rows)
    console().print(
        f"{wrong:,} wrong bits and {different:,} different logits of {total:,}, in {time.monotonic() - started:.0f} s"
    )
    write_json(
        json,
        {
            "machine": machine_name(),
            "bits": total,
            "wrong_bits": wrong,
            "different_logits": different,
            "settings": [dataclasses.asdict(row) for row in rows],
        },
    )
    check(rows)
    if not quick and total < WANTED_BITS:
        raise CheckError(f"only {total:,} bits were compared, {WANTED_BITS:,} are wanted")


def check(rows: list[Compared]) -> None:
    """Raise :class:`CheckError`, naming the first setting, where a bit or a logit differs."""
    for row in rows:
        if row.wrong_bits or row.different_logits:
            raise CheckError(
                f"{row.setting}, {row.images}: {row.wrong_bits:,} bits and {row.different_logits:,} logits of "
                f"{row.bits:,} are not PyTorch's"
            )


def settings() -> list[Setting]:
    """Return every way to run the network that is exact on this CPU."""
    from dmsh_serving.cpu import has_vnni
    from dmsh_serving.encoder.openvino import why_not_here

    of_onnxruntime: tuple[Dialect, ...] = ("onnxruntime", "tensorrt")
    every = [Setting(*one) for one in itertools.product(of_onnxruntime, LEVELS, (1, 2))]
    # Without VNNI only an optimiser's pass makes QLinearConv exact, and it runs from the level extended on.
    exact = [one for one in every if has_vnni() or one.dialect == "tensorrt" or one.optimisation in ("all", "extended")]
    in_openvino = [Setting("openvino", "", *one) for one in ((1, 1), (2, 1), (2, 2))]
    return exact if why_not_here(integer=True) else [*exact, *in_openvino]


def compared_everywhere(folder: Path, *, quick: bool, say: Callable[[str], None]) -> list[Compared]:
    """Quantise, export, and compare every setting on every set of images; files go to ``folder``."""
    import numpy as np

    from benchmarks.common.networks import photograph_crops
    from dmsh_export.compare.runners import TritonRunner
    from dmsh_export.to_onnx.integer import export_integer_onnx
    from dmsh_model.data.load import MNIST_5K, load_labelled
    from dmsh_serving.encoder.base import RUNTIMES

    digits = load_labelled(MNIST_5K, 32).images
    model = _quantised(digits, _CALIBRATION_IMAGES // 4 if quick else _CALIBRATION_IMAGES)
    chosen = settings()
    served: list[Runtime] = ["onnxruntime", "openvino"] if chosen[-1].streams else ["onnxruntime"]
    # Images per setting, so that all make enough.
    least = -(-WANTED_BITS // (model.config.bits * (len(chosen) + len(served))))
    photographs = photograph_crops(_QUICK_IMAGES if quick else max(len(digits), least - len(digits)), 32)
    sets = {
        "MNIST-5k": np.ascontiguousarray(digits[:: len(digits) // _QUICK_IMAGES] if quick else digits),
        "crops of photographs": photographs,
    }
    files: dict[Dialect, Path] = {}
    for dialect in dict.fromkeys(setting.dialect for setting in chosen):
        files[dialect] = folder / f"{dialect}.onnx"
        export_integer_onnx(model, files[dialect], digits[:16], dialect=dialect, max_batch=2)
    expected = {name: model.logits(images) for name, images in sets.items()}
    rows = []
    for setting in chosen:
        say(setting.name)
        infer = (_openvino if setting.streams else _session)(files[setting.dialect], setting)
        rows += [compared(setting.name, name, infer, images, expected[name]) for name, images in sets.items()]
    for runtime in served:
        what = f"live Triton over gRPC, {RUNTIMES[runtime]}"
        say(what)
        with ExitStack() as stack:
            server = stack.enter_context(_served(folder / f"served-by-{runtime}", model, runtime, files[runtime]))
            runner = stack.enter_context(TritonRunner(f"triton://{server.url}/dmsh_encoder"))
            rows += [compared(what, name, runner.infer, images, expected[name]) for name, images in sets.items()]
    return rows


def compared(
    setting: str,
    name: str,
    infer: "Callable[[npt.NDArray[np.uint8]], Encoded]",
    images: "npt.NDArray[np.uint8]",
    expected: "npt.NDArray[np.float32]",
) -> Compared:
    """Compare all ``images`` (N, H, W, 3) uint8 with their logits ``expected`` (N, K), in :func:`batches`."""
    import numpy as np

    from dmsh_serving.codes import unpack

    wrong = different = 0
    start = time.monotonic()
    for rows, count in batches(len(images)):
        found = infer(np.ascontiguousarray(images[rows]))
        code, logits = found.code[:count], found.logits[:count]
        wanted = expected[rows[:count]]
        wrong += int((unpack(code, expected.shape[1]) != (wanted > 0)).sum())
        different += int((logits != wanted).sum())
    return Compared(setting, name, expected.size, wrong, different, time.monotonic() - start)


def batches(images: int) -> "Iterator[tuple[npt.NDArray[np.int64], int]]":
    """Yield (rows, how many of them count), sizes 1 to 33 in turn; in every other turn filled up to 33, as servers do.

    Each of ``images`` counts once; what fills up is other images.
    """
    import numpy as np

    start = 0
    for number in itertools.count():
        count = min(number % LARGEST_BATCH + 1, images - start)
        filled = LARGEST_BATCH if number // LARGEST_BATCH % 2 else count
        yield (start + np.arange(filled)) % images, count
        start += count
        if start == images:
            return


def _quantised(digits: "npt.NDArray[np.uint8]", count: int) -> "IntegerDMSH":
    import numpy as np

    from dmsh_export.quantise.run import quantise
    from dmsh_model import checkpoint
    from dmsh_serving.images.read import ImageSet

    # In random order, as they stand by class: the first ones alone choose the padding.
    images = digits[np.random.default_rng(0).permutation(len(digits))[:count]]
    parts = np.array_split(np.arange(len(images)), len(images) // 50)
    batches = (ImageSet(images[rows], [str(row) for row in rows], []) for rows in parts)
    return quantise(checkpoint.load(_DEMO_CHECKPOINT), batches).model


def _session(path: Path, setting: Setting) -> "Callable[[npt.NDArray[np.uint8]], Encoded]":
    import onnxruntime

    from dmsh_serving.codes import Encoded
    from dmsh_serving.contract import CODE, IMAGE, LOGITS
    from dmsh_serving.cpu import has_vnni

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = setting.threads
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[setting.optimisation])
    options.add_session_config_entry("session.x64quantprecision", "0" if has_vnni() else "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: Encoded(*session.run([CODE, LOGITS], {IMAGE: images}))


def _openvino(path: Path, setting: Setting) -> "Callable[[npt.NDArray[np.uint8]], Encoded]":
    from dmsh_serving.encoder.openvino import OpenVinoEncoder

    encoder = OpenVinoEncoder(path, threads=setting.threads, streams=setting.streams, check_known_answer=False)
    return encoder.infer


def _served(folder: Path, model: "IntegerDMSH", runtime: "Runtime", encoder: Path) -> Any:
    """Return a Triton, to be started, that serves ``encoder`` in ``runtime`` over a gallery of eight codes."""
    import numpy as np

    from dmsh_serving import gallery
    from dmsh_serving.codes import bytes_per_code
    from dmsh_serving.triton.repository import write_repository
    from dmsh_serving.triton.server.launcher import TritonServer
    from dmsh_serving.triton.spec import PythonBackend, RepositorySpec

    folder.mkdir()
    bits, fingerprint = model.config.bits, model.fingerprint
    codes = np.zeros((8, bytes_per_code(bits)), np.uint8)
    gallery.build(folder / "gallery", codes, np.arange(len(codes)), None, bits=bits, fingerprint=fingerprint)
    spec = RepositorySpec(
        gallery=folder / "gallery",
        bits=bits,
        image_size=model.config.image_size,
        fingerprint=fingerprint,
        model=encoder,
        encoder=PythonBackend(runtime=runtime),
        framing=model.config.framing,
        max_batch=LARGEST_BATCH,
    )
    write_repository(folder / "model_repository", spec)
    return TritonServer(folder / "model_repository", log_file=folder / "triton.log")


if __name__ == "__main__":
    run(app)
