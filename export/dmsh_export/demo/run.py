"""The main job on real images, from end to end: quantise, export, prove, serve, query. MNIST-5k and a real Triton."""

import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmsh_export.compare.latency import latency_from_seconds
from dmsh_export.compare.parity import ParityReport, compare
from dmsh_export.compare.runners import OnnxRunner, TorchRunner, TritonRunner
from dmsh_export.demo import encoders as demo_encoders
from dmsh_export.demo.machines import machines_compared
from dmsh_export.demo.page import DemoPage, Neighbours, speed_name, step_name, write_page
from dmsh_model import checkpoint as checkpoints
from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.data.load import MNIST_5K, load_labelled
from dmsh_model.data.split import SplitOptions, split_images
from dmsh_model.evaluation.mean_average_precision import (
    mean_average_precision,
    mean_average_precision_of_answers,
)
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_serving import gallery
from dmsh_serving.client import Answer, SearchClient
from dmsh_serving.codes import Codes, pack, unpack
from dmsh_serving.console import console, print_table, progress
from dmsh_serving.contract import ENCODER_MODEL
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.hamming.oracle import search_oracle
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.server.launcher import TritonServer
from dmsh_serving.triton.spec import RepositorySpec

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["check_neighbours", "run_demo", "write_images"]

SHOWN_QUERIES = 12
SHOWN_NEIGHBOURS = 10
# Everything that a demo writes into its folder.
_LOG, _PAGE = "triton.log", "report.html"
_GALLERY, _REPOSITORY, _QUERIES, _DATABASE = "gallery", "model_repository", "queries", "database"
_OWN = {_LOG, _PAGE, _GALLERY, _REPOSITORY, _QUERIES, _DATABASE, *demo_encoders.FILES}


@dataclass(frozen=True)
class _Answers:
    """What the live server said: the whole ranking of every query, and how long one query took."""

    ranked: Answer
    seconds: list[float]


def run_demo(checkpoint: Path, out: Path, triton: Path | None) -> dict[str, Any]:
    """Run the demo into the folder ``out`` and return its figures (plain JSON types).

    Raises:
        CheckError: a proof fails, or a bit or a neighbour differs somewhere on the way.
        InputError: no such checkpoint, an integer one, or ``out`` holds what no demo wrote.
        MissingError: this machine lacks Triton or a package.
    """
    started = time.monotonic()
    model = checkpoints.load(checkpoint)
    data = load_labelled(MNIST_5K, model.config.image_size)
    split = split_images(data, SplitOptions())
    _make_empty(out)
    _say(f"1/5 export to ONNX, folded and not, each held against PyTorch on {len(data.images):,} images, every bit")
    float_parity = demo_encoders.export_float(model, data, out)
    _say(f"2/5 quantise to integers on {len(split.train):,} training images, prove, export in two dialects, compile")
    encoders = demo_encoders.export_integer(model, data, split, out)
    integer = encoders.model
    speeds = demo_encoders.encoder_speeds(model, out, data)
    _fill_gallery(out, data, split)
    spec = RepositorySpec(
        gallery=out / _GALLERY,
        bits=integer.config.bits,
        image_size=integer.config.image_size,
        fingerprint=integer.fingerprint,
        model=out / demo_encoders.INTEGER,
    )
    write_repository(out / _REPOSITORY, spec)
    with TritonServer(out / _REPOSITORY, triton=triton, log_file=out / _LOG) as server:
        _say("4/5 a real Triton serves the integer encoder; every code and every neighbour again, over gRPC")
        triton_parity = _compare_triton(integer, server.url, data)
        answers = _query(server.url, data, split)
    _say("5/5 Triton has stopped")
    parity = (float_parity, encoders.parity, triton_parity)
    for report in parity:
        if not report.passed:
            raise CheckError(report.summary())
    logits = model.logits(data.images)
    codes = integer.codes(data.images)
    check_neighbours(answers.ranked, codes[split.query], codes[split.database])
    figures = _figures(pack(logits), codes, integer.config.bits, data, split, answers)
    if figures["map_integer"] != figures["map_triton"]:
        raise CheckError(f"Triton's answers rank other images than PyTorch's codes: {figures}")
    machines = machines_compared((encoders.parity, triton_parity))
    differing = [machine.machine for machine in machines if machine.wrong_bits]
    if differing:
        raise CheckError(f"integer codes differ on {', '.join(differing)}: make test-cpus shows where")
    latency = latency_from_seconds("Triton: image -> neighbours", 1, answers.seconds)
    page = DemoPage(
        fingerprint=integer.fingerprint,
        parity=parity,
        certificate=encoders.certificate,
        plan=encoders.plan,
        machines=machines,
        figures=figures,
        speeds=tuple(speeds),
        latency=latency,
        seconds=tuple(answers.seconds),
        margins=np.abs(logits).ravel(),
        worst_error=max(target.worst_logit_error for target in float_parity.targets),
        queries=_shown(data, split, answers),
    )
    write_page(out / _PAGE, page)
    _print(page)
    _say(f"TensorRT plan of the integer encoder: {encoders.plan}")
    _say(f"wrote {out / _PAGE} in {time.monotonic() - started:.0f} s")
    _say("search by eye, with these two commands and then http://127.0.0.1:8080/ in a browser:")
    _say(f"  dmsh-serve start --repository {out / _REPOSITORY}")
    _say(f"  dmsh-serve web --images {out / _DATABASE} --gallery {out / _GALLERY}")
    return {
        "parity": [report.to_dict() for report in parity],
        "certificate": encoders.certificate.to_dict(),
        "plan": encoders.plan,
        "machines": [machine.to_dict() for machine in machines],
        "figures": figures,
        "speeds": [speed.to_dict() for speed in speeds],
        "latency": latency.to_dict(),
        "report": str(out / _PAGE),
    }


def _make_empty(out: Path) -> None:
    """Make the folder, or remove what an earlier demo left in it, and nothing else."""
    if not out.exists():
        out.mkdir(parents=True)
        return
    if not out.is_dir():
        raise InputError(f"{out} is not a folder: choose another --out")
    foreign = sorted({path.name for path in out.iterdir()} - _OWN)
    if foreign:
        raise InputError(f"{out} holds {', '.join(foreign[:5])}, which no demo wrote: empty it, or choose another")
    for path in out.iterdir():
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


def write_images(out: Path, data: LabelledImages, split: Split) -> list[str]:
    """Write the split as PNG files, ``out/queries/CLASS/*.png`` and ``out/database/CLASS/*.png``, to try by hand.

    Returns the names of the database's files below ``out/database``, in the gallery's order.
    """
    from PIL import Image

    names: dict[str, list[str]] = {}
    for part, rows in ((_QUERIES, split.query), (_DATABASE, split.database)):
        names[part] = [f"{'/'.join(data.names[row].rsplit('/', 2)[-2:])}.png" for row in rows]
        for name, row in zip(names[part], rows, strict=True):
            file = out / part / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.images[row]).save(file)
    return names[_DATABASE]


def _fill_gallery(out: Path, data: LabelledImages, split: Split) -> None:
    _say(f"3/5 gallery of {len(split.database):,} images, encoded by the integer model")
    keys = write_images(out, data, split)
    with OnnxRunner(out / demo_encoders.INTEGER) as runner:
        codes = np.concatenate(
            [
                runner.infer(data.images[split.database[start : start + 64]]).code
                for start in range(0, len(split.database), 64)
            ]
        )
        gallery.build(
            out / _GALLERY,
            codes,
            np.arange(len(codes)),
            keys,
            bits=runner.bits,
            fingerprint=runner.fingerprint,
        )


def _compare_triton(model: IntegerDMSH, url: str, data: LabelledImages) -> ParityReport:
    with progress() as bar:
        show = partial(_show, bar, bar.add_task("codes from Triton", total=len(data.images)))
        target = TritonRunner(f"triton://{url}/{ENCODER_MODEL}")
        return compare(TorchRunner(model), [target], data.images, max_batch=demo_encoders.MAX_BATCH, on_progress=show)


def _show(bar: "Progress", task: "TaskID", done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


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


def _print(page: DemoPage) -> None:
    print_table(
        "Is every bit PyTorch's? (in batches: the codes of the same images in batches of 1 to 32)",
        ["", "bits", "wrong", "largest logit error", "in batches", "wrong"],
        [
            [
                step_name(target),
                f"{target.bits_compared:,}",
                f"{target.wrong_bits:,}",
                f"{target.worst_logit_error:.1e}" if target.worst_logit_error else "0",
                f"{target.invariance.codes_compared:,}",
                f"{target.invariance.wrong_codes:,}",
            ]
            for report in page.parity
            for target in report.targets
        ],
    )
    print_table(
        "On which machines were the integer codes compared?",
        ["machine", "bits", "wrong"],
        [[machine.machine, f"{machine.bits:,}", f"{machine.wrong_bits:,}"] for machine in page.machines],
    )
    figures = page.figures
    neighbours = f"{figures['neighbours']:,}"
    print_table(
        "Are the answers the same? (every id and distance of every ranking)",
        ["500 queries ranked by", "neighbours", "other", "mAP@all"],
        [
            ["float codes, PyTorch", "", "", f"{figures['map_float']:.6f}"],
            ["integer codes, PyTorch", neighbours, "", f"{figures['map_integer']:.6f}"],
            ["integer codes, Triton over gRPC", neighbours, "0", f"{figures['map_triton']:.6f}"],
        ],
    )
    _say(
        f"{figures['equal_bits']:.3%} of the integer code bits are the float codes', {figures['equal_codes']:.1%} of "
        "the codes: another code space, so the gallery was encoded anew"
    )
    print_table(
        "How fast is the encoder? (in turns, medians)",
        ["", "batch", "p50 ms", "images/s"],
        [
            [speed_name(speed), str(speed.batch), f"{speed.p50_ms:.2f}", f"{speed.images_per_s:,.0f}"]
            for speed in page.speeds
        ],
    )
    latency = page.latency
    print_table(
        "How long does one query take?",
        ["image in, neighbours out", "p50 ms", "p90 ms", "p99 ms"],
        [["Triton, over gRPC", *(f"{value:.2f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms))]],
    )
