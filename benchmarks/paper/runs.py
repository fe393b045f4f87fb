"""The runs of the experiment: train, measure, export, and prove the export; each kept as one JSON file."""

import dataclasses
import functools
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.paper.configurations import Configuration, DataChoice, Experiment, with_seed
from dmsh_serving.errors import CheckError, MissingError
from dmsh_serving.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dmsh_model.data.labelled import LabelledImages
    from dmsh_model.network import DMSH

FORMAT_VERSION: Final = 1
RANKS: Final = (100, 1000)
_SMALL: Final = 24  # images per class in a smoke run


@dataclass(frozen=True)
class Run:
    """One training; ``smoke`` cuts its data to a few images per class."""

    configuration: Configuration
    data: DataChoice
    bits: int
    seed: int
    smoke: bool = False

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.data.name}-{self.configuration.name}-{self.bits}-{self.seed}" + ("-smoke" if self.smoke else "")

    def identity(self) -> dict[str, Any]:
        """Return everything that its result follows from but the images, in plain JSON types."""
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        del fields["configuration"]["title"]
        return {**fields, "format_version": FORMAT_VERSION}


def runs_of(experiment: Experiment, *, smoke: bool = False) -> list[Run]:
    """Return every run; first one of each configuration and data set, by which the rest's time can be told."""
    every = [
        Run(configuration, data, bits, seed, smoke)
        for data in experiment.data
        for bits in sorted(experiment.bits, reverse=True)
        for seed in experiment.seeds
        for configuration in experiment.configurations
    ]
    return sorted(every, key=lambda run: (run.bits != max(experiment.bits), run.seed != experiment.seeds[0]))


def finished(run: Run, folder: Path) -> dict[str, Any] | None:
    """Return the kept result of ``run``, of these very settings and images; None where there is none."""
    try:
        kept = json.loads((folder / f"{run.name}.json").read_text())
    except (OSError, ValueError):
        return None
    same = isinstance(kept, dict) and kept.get("identity") == run.identity()
    return kept if same and kept.get("data_sha256") == _sha256(run) else None


def perform(run: Run, folder: Path) -> dict[str, Any]:
    """Train, measure and export ``run``; keep its checkpoint and its result in ``folder``, and return the result.

    Where the folded graph gives another bit than PyTorch, for a logit within rounding of 0, the unfolded one is tried;
    where that does too, the result tells of it: see :func:`refused_exports`.

    Raises:
        CheckError: the training met a NaN.
    """
    from dmsh_model.data.load import MNIST_5K
    from dmsh_model.data.split import SplitOptions, split_images
    from dmsh_model.evaluation.coding import codes_of_rows
    from dmsh_model.evaluation.report import measure_retrieval
    from dmsh_model.training import run as training

    began = time.perf_counter()
    data = _images(run)
    queries = 4 if run.smoke else run.data.queries_per_class
    split_options = SplitOptions(queries, run.data.train_per_class, run.seed)
    config = run.configuration.hash_config(run.bits, len(data.class_names), digits=run.data.source == MNIST_5K)
    options = with_seed(run.configuration, run.seed)
    if run.smoke:
        options = dataclasses.replace(options, epochs=4, batch_size=20)
    trained = training.fit(config, data, split_options, options, folder / run.name, overwrite=True)
    split = split_images(data, split_options)
    codes = [codes_of_rows(trained.model.codes, data.images, rows) for rows in (split.query, split.database)]
    labels = [data.labels[rows] for rows in (split.query, split.database)]
    retrieval = measure_retrieval(*codes, *labels, ks=RANKS)
    queried = data.images[split.query]  # what a server is asked
    folded = _refusal(trained.model, queried, folded=True)
    parity = {
        "bits_compared": len(split.query) * run.bits,
        "refused": None if folded is None else _refusal(trained.model, queried, folded=False),
        "unfolded": folded is not None,
    }
    result = {
        "identity": run.identity(),
        "data_sha256": data.sha256,
        "split_sha256": split.sha256,
        "fingerprint": trained.model.fingerprint,
        "retrieval": dataclasses.asdict(retrieval),
        "parity": parity,
        "seconds": time.perf_counter() - began,
    }
    write_atomically(folder / f"{run.name}.json", (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    return result


def _refusal(model: "DMSH", images: "npt.NDArray[np.uint8]", *, folded: bool) -> str | None:
    """Return why the export of ``model`` is refused, as it is for one wrong bit, or None."""
    from dmsh_export.to_onnx.float import export_onnx

    with tempfile.TemporaryDirectory() as scratch:
        try:
            export_onnx(model, Path(scratch) / "model.onnx", images, folded=folded)
        except CheckError as error:
            return str(error).rpartition(" is not written: ")[2]
    return None


def refused_exports(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line for each export that was refused, as a bit of it was wrong."""
    return [
        f"{name}: {result['parity']['refused']}"
        for name, result in sorted(results.items())
        if result["parity"]["refused"] is not None
    ]


def perform_all(
    runs: list[Run], folder: Path, jobs: int, on_result: Callable[[Run, dict[str, Any]], None]
) -> dict[str, dict[str, Any]]:
    """Perform ``runs``, ``jobs`` at a time, each in one thread; those already finished are not repeated.

    Returns:
        Every result by its run's name.

    Raises:
        CheckError: runs failed; says which and why, after all others are done and kept.
        MissingError: a run's process was killed.
    """
    results, failed = {}, []
    for run, result in _results(runs, folder, jobs):
        if isinstance(result, CheckError):
            failed.append(f"{run.name}: {result}")
            continue
        results[run.name] = result
        on_result(run, result)
    if failed:
        raise CheckError(f"{len(failed)} of {len(runs)} runs failed: " + "; ".join(failed))
    return results


def _results(runs: list[Run], folder: Path, jobs: int) -> Iterator[tuple[Run, dict[str, Any] | CheckError]]:
    left = []
    for run in runs:
        if (kept := finished(run, folder)) is not None:
            yield run, kept
        else:
            left.append(run)
    if jobs == 1:
        for run in left:
            yield run, _attempt(run, folder)
        return
    # Spawned: a fork of a process with PyTorch's threads may hang. Control-C ends a child without a word of its own.
    interruptible = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(jobs, get_context("spawn"), signal.signal, interruptible) as pool:
        futures = {pool.submit(_attempt, run, folder): run for run in left}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise MissingError(
                f"a training was killed, perhaps for want of memory: those finished are kept in {folder}, start again "
                "with fewer --jobs"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _attempt(run: Run, folder: Path) -> dict[str, Any] | CheckError:
    try:
        return perform(run, folder)
    except CheckError as error:
        return error


def _images(run: Run) -> "LabelledImages":
    return _loaded(run.data.source, run.configuration.image_size, run.smoke)


def _sha256(run: Run) -> str:
    return _loaded_sha256(run.data.source, run.configuration.image_size, run.smoke)


@functools.cache
def _loaded_sha256(source: str, image_size: int, smoke: bool) -> str:
    return _loaded(source, image_size, smoke).sha256


@functools.cache
def _loaded(source: str, image_size: int, smoke: bool) -> "LabelledImages":
    import numpy as np

    from dmsh_model.data.labelled import LabelledImages
    from dmsh_model.data.load import load_labelled

    data = load_labelled(source, image_size)
    if not smoke:
        return data
    rows = np.concatenate([np.flatnonzero(data.labels == label)[:_SMALL] for label in range(len(data.class_names))])
    names = [data.names[row] for row in rows]
    return LabelledImages(data.source, data.images[rows], data.labels[rows], names, data.class_names)
