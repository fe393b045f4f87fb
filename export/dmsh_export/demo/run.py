"""The main job on real images, from end to end: train a head, deploy, serve, query. Drawings and a real Triton."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import dmsh_model
from dmsh_export.choose_runtime import MODEL, OPENVINO_MODEL, served_file
from dmsh_export.compare.latency import Latency, latency_from_seconds
from dmsh_export.compare.parity import ParityReport, compare
from dmsh_export.compare.runners import OnnxRunner, Runner, TorchRunner, TritonRunner, runner_of
from dmsh_export.demo import encoders as demo_encoders
from dmsh_export.demo.drawings import DATABASE, QUERIES, unpack_drawings
from dmsh_export.demo.machines import machines_compared
from dmsh_export.demo.page import DemoPage, Neighbours, write_page
from dmsh_export.demo.tables import print_demo
from dmsh_export.demo.train import IMAGE_SIZE, TrainedDemo, train_heads
from dmsh_export.deploy import GALLERY, REPOSITORY, SETTINGS, deploy
from dmsh_export.deploy import INTEGER as INTEGER_CHECKPOINT
from dmsh_export.prove.certificate import certify
from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.evaluation.mean_average_precision import (
    mean_average_precision,
    mean_average_precision_of_answers,
)
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.client import Answer, SearchClient
from dmsh_serving.codes import Codes, pack, unpack
from dmsh_serving.console import console, progress
from dmsh_serving.contract import ENCODER_MODEL
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.hamming.oracle import search_oracle
from dmsh_serving.triton.server.launcher import TritonServer
from dmsh_serving.triton.settings import read_settings

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["check_neighbours", "run_demo"]

SHOWN_QUERIES = 12
SHOWN_NEIGHBOURS = 10
_AT_ONCE = 16  # images per call of PyTorch: more leave the caches
_EXPORTED_WITH = 64  # images that an export is held against before it is written; more are compared afterwards
# Everything that a demo writes into its folder.
_CHECKPOINT, _LAST_STAGE, _SERVICE, _LOG, _PAGE = "checkpoint", "last-stage", "service", "triton.log", "report.html"
_OWN: Final = {
    _CHECKPOINT, f"{_CHECKPOINT}.taps", _LAST_STAGE, f"{_LAST_STAGE}.taps", _SERVICE, _LOG, _PAGE, QUERIES, DATABASE,
    "everything", *demo_encoders.FILES,
}  # fmt: skip
_MARK: Final = ".dmsh-demo"  # a file that says whose the folder is: its names are common ones


@dataclass(frozen=True)
class _Answers:
    """What the live server said: the whole ranking of every query, and how long one query took."""

    ranked: Answer
    seconds: list[float]


@dataclass(frozen=True)
class _Service:
    """What was deployed: the integer network, the runtime and why, its ONNX files, and the one that is served."""

    integer: IntegerDMSH
    runtime: str
    files: list[Path]
    served: Path


def run_demo(drawings: Path, out: Path, triton: Path | None) -> dict[str, Any]:
    """Run the demo into the folder ``out`` and return its figures (plain JSON types).

    Raises:
        CheckError: a proof fails, or a bit or a neighbour differs somewhere on the way.
        InputError: no such archive of drawings, or ``out`` holds what no demo wrote.
        MissingError: this machine lacks Triton or a package.
    """
    started = time.monotonic()
    if not drawings.is_file():
        raise InputError(
            f"{drawings} does not exist: run the demo where the toolkit was checked out, or name --drawings"
        )
    _make_empty(out)
    data = unpack_drawings(drawings, out, IMAGE_SIZE)
    split = data.given_split
    assert split is not None  # unpack_drawings gives it
    # Every query, and every third image of the gallery: the rest would only take longer.
    compared = data.images[np.union1d(split.query, split.database[::3])]
    images = f"{len(compared):,} of {len(data.images):,} drawings"
    trained = _train(data, out)
    model = trained.model
    float_parity = _export(model, compared, f"every bit of {images}", out)
    service = _deploy(out, len(split.database))
    plan, speeds = _compile(model, service, compared, data.images, out)
    integer_parity, answers = _serve(service, compared, data, split, out, triton)
    parity = (float_parity, integer_parity)
    for report in parity:
        if not report.passed:
            raise CheckError(report.summary())
    integer = service.integer
    logits = model.logits(data.images, _AT_ONCE)
    codes = integer.codes(data.images)
    check_neighbours(answers.ranked, codes[split.query], codes[split.database])
    figures = _figures(pack(logits), codes, integer.config.bits, data, split, answers)
    if figures["map_integer"] != figures["map_triton"]:
        raise CheckError(f"Triton's answers rank other images than PyTorch's codes: {figures}")
    figures |= {"map_last_stage": trained.map_last_stage, "training_seconds": trained.seconds}
    machines = machines_compared((integer_parity,))
    differing = [machine.machine for machine in machines if machine.wrong_bits]
    if differing:
        raise CheckError(f"integer codes differ on {', '.join(differing)}: make test-cpus shows where")
    page = DemoPage(
        fingerprint=integer.fingerprint,
        parity=parity,
        certificate=certify(service.served, integer.network),
        plan=plan,
        machines=machines,
        figures=figures,
        speeds=tuple(speeds),
        latency=latency_from_seconds("Triton: image -> neighbours", 1, answers.seconds),
        seconds=tuple(answers.seconds),
        margins=np.abs(logits).ravel(),
        worst_error=max(target.worst_logit_error for target in float_parity.targets),
        queries=_shown(data, split, answers),
    )
    write_page(out / _PAGE, page)
    print_demo(page)
    _say(f"TensorRT plan of the integer encoder: {plan}")
    _say(f"wrote {out / _PAGE} in {time.monotonic() - started:.0f} s")
    _say("search by eye, with these two commands and then http://127.0.0.1:8080/ in a browser:")
    _say(f"  dmsh-serve start --repository {out / _SERVICE / REPOSITORY}")
    _say(f"  dmsh-serve web --images {out / DATABASE} --gallery {out / _SERVICE / GALLERY}")
    return {
        "parity": [report.to_dict() for report in parity],
        "certificate": page.certificate.to_dict(),
        "plan": plan,
        "runtime": service.runtime,
        "machines": [machine.to_dict() for machine in machines],
        "figures": figures,
        "speeds": [speed.to_dict() for speed in speeds],
        "latency": page.latency.to_dict(),
        "report": str(out / _PAGE),
    }


def _train(data: LabelledImages, out: Path) -> TrainedDemo:
    _say("1/6 train a hash head on three scales of a pretrained EfficientNet-Lite0, and on one")
    with _progress() as show:
        return train_heads(data, out / _CHECKPOINT, out / _LAST_STAGE, show)


def _export(model: DMSH, compared: demo_encoders.Images, what: str, out: Path) -> ParityReport:
    _say(f"2/6 export it in FP32, folded and not; hold both against PyTorch, {what}")
    demo_encoders.export_float(model, compared[:_EXPORTED_WITH], out)
    return _compared(model, [OnnxRunner(out / name) for name in demo_encoders.FLOATS], compared, "FP32 codes")


def _deploy(out: Path, images: int) -> _Service:
    _say(f"3/6 deploy it: quantise to integers, prove, export, encode the gallery of {images:,}, repository")
    folder, step = out / _SERVICE, ""
    with _progress() as show:

        def begins(name: str) -> None:
            nonlocal step
            step = name

        steps = deploy(
            out / _CHECKPOINT,
            out / DATABASE,
            folder,
            on_step=begins,
            on_progress=lambda done, total: show(step, done, total),
        )
    integer = dmsh_model.load(folder / INTEGER_CHECKPOINT)
    assert isinstance(integer, IntegerDMSH)
    runtime = next(step.result for step in steps if step.name == "runtime")
    _say(f"the fastest exact runtime here serves: {runtime}")
    files = [folder / name for name in (MODEL, OPENVINO_MODEL) if (folder / name).is_file()]
    return _Service(integer, runtime, files, served_file(folder, read_settings(folder / SETTINGS)))


def _compile(
    model: DMSH, service: _Service, compared: demo_encoders.Images, images: demo_encoders.Images, out: Path
) -> tuple[str, list[Latency]]:
    _say("4/6 the same integers in TensorRT's dialect, compiled; how fast each encoder is")
    plan = demo_encoders.export_for_tensorrt(service.integer, compared[:_EXPORTED_WITH], out)
    return plan, demo_encoders.encoder_speeds(model, out, service.files, images)


def _serve(
    service: _Service,
    compared: demo_encoders.Images,
    data: LabelledImages,
    split: Split,
    out: Path,
    triton: Path | None,
) -> tuple[ParityReport, _Answers]:
    with TritonServer(out / _SERVICE / REPOSITORY, triton=triton, log_file=out / _LOG) as server:
        _say("5/6 a real Triton serves it; codes and neighbours again, over gRPC")
        targets: list[Runner] = [
            *(runner_of(str(file)) for file in service.files),
            OnnxRunner(out / demo_encoders.FOR_TENSORRT),
            TritonRunner(f"triton://{server.url}/{ENCODER_MODEL}"),
        ]
        parity = _compared(service.integer, targets, compared, "integer codes")
        answers = _query(server.url, data, split)
    _say("6/6 Triton has stopped")
    return parity, answers


def _make_empty(out: Path) -> None:
    """Make the folder, or remove what an earlier demo left in it, and nothing else."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    found = {path.name for path in out.iterdir()}
    foreign = sorted(found - _OWN - {_MARK} if _MARK in found else found)
    if foreign:
        raise InputError(
            f"{out} holds {', '.join(foreign[:5])}, which no demo has marked as its own: empty it, or choose another"
        )
    (out / _MARK).touch()
    for path in sorted(out / name for name in found - {_MARK}):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def check_neighbours(ranked: Answer, queries: Codes, database: Codes) -> None:
    """Hold every neighbour and distance of ``ranked``, whole rankings, against the slow obvious search.

    ``queries`` (Q, B) and ``database`` (N, B) are PyTorch's codes; position in the database is id in the gallery.

    Raises:
        CheckError: says how many places differ, and where the first is.
    """
    distances, ids = search_oracle(queries, database, len(database))
    if ranked.ids.shape != ids.shape:
        raise CheckError(f"Triton ranked {list(ranked.ids.shape)} neighbours, PyTorch's codes {list(ids.shape)}")
    other = (ranked.ids != ids) | (ranked.distances != distances)
    if other.any():
        query, place = np.argwhere(other)[0]
        raise CheckError(
            f"{int(other.sum()):,} of {other.size:,} neighbours are not those of PyTorch's codes; the first is place "
            f"{place} of query {query}: id {ranked.ids[query, place]} at distance {ranked.distances[query, place]}, "
            f"not id {ids[query, place]} at distance {distances[query, place]}"
        )


def _say(line: str) -> None:
    console().print(line)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows (what, images or epochs done, in all); a new ``what`` begins a new bar."""
    tasks: dict[str, TaskID] = {}
    with progress() as bar:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        yield show


def _compared(
    model: DMSH | IntegerDMSH, targets: list[Runner], images: demo_encoders.Images, what: str
) -> ParityReport:
    with _progress() as show:
        return compare(
            TorchRunner(model),
            targets,
            images,
            max_batch=demo_encoders.MAX_BATCH,
            on_progress=partial(show, what),
        )


def _query(url: str, data: LabelledImages, split: Split) -> _Answers:
    queries = data.images[split.query]
    seconds = []
    with SearchClient(url) as client, progress() as bar:
        client.search(queries[:1])
        for image in bar.track(queries, description="single queries"):
            start = time.perf_counter()
            client.search(image[None], k=SHOWN_NEIGHBOURS)
            seconds.append(time.perf_counter() - start)
        return _Answers(client.search(queries, k=len(split.database)), seconds)


def _figures(
    float_codes: Codes, codes: Codes, bits: int, data: LabelledImages, split: Split, answers: _Answers
) -> dict[str, float]:
    """Return mAP@all by every way to the codes, and how far the integer codes are from the float ones."""
    query_labels, database_labels = data.labels[split.query], data.labels[split.database]

    def map_all(every: Codes) -> float:
        return mean_average_precision(every[split.query], every[split.database], query_labels, database_labels)

    equal = unpack(float_codes, bits) == unpack(codes, bits)
    return {
        "map_float": map_all(float_codes),
        "map_integer": map_all(codes),
        "map_triton": mean_average_precision_of_answers(answers.ranked.ids, query_labels, database_labels),
        "equal_bits": float(equal.mean()),
        "equal_codes": float(equal.all(axis=1).mean()),
        "neighbours": answers.ranked.ids.size,
    }


def _shown(data: LabelledImages, split: Split, answers: _Answers) -> tuple[Neighbours, ...]:
    """Pick queries of every class, and the one whose nearest images are the most mixed."""
    labels = data.labels[split.query]
    first_of_class = [int(np.flatnonzero(labels == label)[0]) for label in range(len(data.class_names))]
    nearest = data.labels[split.database[answers.ranked.ids[:, :SHOWN_NEIGHBOURS]]]
    hardest = np.argsort((nearest == labels[:, None]).sum(axis=1), kind="stable")
    rows = [*first_of_class, *(int(row) for row in hardest if row not in first_of_class)][:SHOWN_QUERIES]
    shown = []
    for row in rows:
        places = split.database[answers.ranked.ids[row, :SHOWN_NEIGHBOURS]]
        shown.append(
            Neighbours(
                query=data.images[split.query[row]],
                images=data.images[places],
                distances=answers.ranked.distances[row, :SHOWN_NEIGHBOURS],
                same_class=data.labels[places] == labels[row],
            )
        )
    return tuple(shown)
