"""Checkpoint and images -> one folder with all that a service needs; each step proven, and kept if it is whole.

    OUT/integer          the integer checkpoint (none if the service stays in FP32)
    OUT/model.onnx       the encoder, held against PyTorch bit for bit, with its manifest
    OUT/openvino.onnx    the same integer network for OpenVINO, if that can serve here
    OUT/settings.json    the runtime that serves, the fastest exact one of this machine, and what was measured
    OUT/gallery          the codes of the images
    OUT/repository       what Triton serves
    OUT/deploy.json      what all this was made of, and the steps that are done

The steps run in this order and each reads only what the one before it wrote, so an interrupted run goes on with the
first step that is missing or damaged. A damaged gallery that may hold more than the images is not made anew.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dmsh_model
from dmsh_export.choose_runtime import COMPARED_IMAGES, MODEL, choose_runtime, served_file
from dmsh_export.compare.parity import ParityReport
from dmsh_export.graph import metadata_of, model_from_file
from dmsh_export.manifest import read_manifest
from dmsh_export.quantise.batches import spread_images
from dmsh_export.quantise.checkpoint import quantise_checkpoint
from dmsh_export.to_onnx.float import export_onnx
from dmsh_export.to_onnx.integer import export_integer_onnx
from dmsh_model import checkpoint as float_checkpoint
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_serving import __version__, gallery
from dmsh_serving.console import write_json
from dmsh_serving.contract import DEFAULT_MAX_BATCH, ENCODER_MODEL, MODEL_FILE, Metadata
from dmsh_serving.encoder.codes_of_images import codes_of_images
from dmsh_serving.encoder.metadata import EncoderMetadata
from dmsh_serving.encoder.props import props_of_onnx
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.files import sha256_of_file, state_of
from dmsh_serving.gallery.folder import part_paths
from dmsh_serving.images.read import Progress, image_paths
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.settings import EncoderSettings, read_settings, write_settings
from dmsh_serving.triton.spec import PythonBackend, RepositorySpec

__all__ = ["GALLERY", "INTEGER", "REPOSITORY", "SETTINGS", "Step", "deploy"]

INTEGER, SETTINGS = "integer", "settings.json"
GALLERY, REPOSITORY, _RECORD = "gallery", "repository", "deploy.json"
_CALIBRATION_IMAGES: Final = 500  # more gain little, and a gallery may have a million


@dataclass(frozen=True)
class Step:
    """One step of a deployment.

    Attributes:
        name: quantise, export, runtime, gallery or repository.
        artefact: the file or folder it made.
        kept: whether an earlier run made it, and it is whole.
        seconds: how long it took now.
        result: one line for people.
    """

    name: str
    artefact: Path
    kept: bool
    seconds: float
    result: str


def deploy(
    checkpoint: Path,
    images: Path,
    out: Path,
    *,
    in_float: bool = False,
    settings: EncoderSettings | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
    on_progress: Progress | None = None,
) -> tuple[Step, ...]:
    """Make everything that serves ``checkpoint`` over ``images``; a rerun does only what is missing.

    Args:
        checkpoint: a float checkpoint, or an integer one, which is then not quantised again.
        images: the gallery's images, and those that calibrate: a folder, or an .npy file, uint8 [N, H, W, 3].
        out: the folder to write, or one that an earlier run of the same deployment wrote.
        in_float: serve FP32; otherwise the network is quantised to integers.
        settings: how to serve; without them the fastest exact runtime of this machine does.
        skip_bad: leave out images that cannot be read.
        overwrite: make everything anew, whatever an earlier run left.
        on_step: is told which step begins.
        on_progress: called with (images done, images in all) within a step.

    Raises:
        CheckError: a proof fails, or a bit differs from PyTorch's.
        InputError: ``out`` was made of something else, or an argument is no checkpoint or no images.
    """
    header = float_checkpoint.read_header(checkpoint)
    if in_float and header.get("kind") == float_checkpoint.INTEGER:
        raise InputError(f"{checkpoint} is an integer checkpoint: --float needs the float one it was made from")
    given = in_float or header.get("kind") == float_checkpoint.INTEGER
    made = _Deployment(checkpoint if given else out / INTEGER, images, out, settings, skip_bad, on_progress)
    with _Run(out, _made_of(checkpoint, images, in_float, settings), overwrite, on_step) as run:
        if not given:
            run.step("quantise", made.source, lambda: made.quantise(checkpoint), lambda: dmsh_model.load(made.source))
        run.step("export", made.model, made.export, made.check_model)
        run.step("runtime", made.settings, made.choose_runtime, made.check_served)
        run.step("gallery", made.gallery, lambda: made.encode(keep=run.has_gallery), made.check_gallery)
        run.step("repository", made.repository, made.write_repository, made.check_repository)
        return tuple(run.steps)


class _Deployment:
    """What each step makes in ``out``; each method returns its step's result, one line for people."""

    def __init__(
        self,
        source: Path,
        images: Path,
        out: Path,
        asked: EncoderSettings | None,
        skip_bad: bool,
        on_progress: Progress | None,
    ) -> None:
        self.source, self.model, self.settings = source, out / MODEL, out / SETTINGS
        self.gallery, self.repository = out / GALLERY, out / REPOSITORY
        self._out, self._images, self._asked = out, images, asked
        self._skip_bad, self._on_progress = skip_bad, on_progress

    @property
    def fingerprint(self) -> str:
        """The code space of the exported model."""
        return str(read_manifest(self.model)["fingerprint"])

    @property
    def served(self) -> Path:
        """The ONNX file that the chosen runtime serves."""
        return served_file(self._out, read_settings(self.settings))

    def quantise(self, checkpoint: Path) -> str:
        made = quantise_checkpoint(
            checkpoint,
            self._images,
            self.source,
            most=_CALIBRATION_IMAGES,
            overwrite=True,
            skip_bad=self._skip_bad,
            on_progress=self._on_progress,
        )
        return f"{made.codes.equal_bits_share:.2%} of the bits as in FP32, on held-out images"

    def export(self) -> str:
        model = dmsh_model.load(self.source)
        sample = spread_images(self._images, model.config.image_size, COMPARED_IMAGES, model.config.framing)
        if sample is None:
            raise InputError(f"{self._images} holds no images that can be read")
        if isinstance(model, IntegerDMSH):
            parity = export_integer_onnx(model, self.model, sample).parity
            return f"proven for every image; {_compared(parity)}"
        return _compared(export_onnx(model, self.model, sample).parity)

    def choose_runtime(self) -> str:
        asked = self._asked
        choice = choose_runtime(self.source, self._images, self._out, None if asked is None else asked.runtime)
        write_settings(self.settings, asked or EncoderSettings(choice.runtime), choice.to_dict())
        return choice.why

    def encode(self, *, keep: bool) -> str:
        """Encode the images, or ``keep`` the gallery that is there, and whatever was added to it since.

        Raises:
            InputError: the gallery to be kept is damaged, and may hold what is not among the images.
        """
        there = None
        try:
            there = gallery.open_current(self.gallery)
        except InputError as damage:  # or there is none
            if keep and self._may_hold_more():
                raise InputError(
                    f"{damage}: dmsh-serve gallery rollback {self.gallery}, or deploy again with --overwrite"
                ) from damage
        if keep and there is not None and there.fingerprint == self.fingerprint:
            return f"{there.count:,} codes of {there.bits} bits, which were there, with what was changed since"
        found = codes_of_images(
            self.served, self._images, DEFAULT_MAX_BATCH, skip_bad=self._skip_bad, on_progress=self._on_progress
        )
        if found.fingerprint != self.fingerprint:
            raise CheckError(f"{self.served} has other codes than {self.model}: deploy again, with --overwrite")
        gallery.build(
            self.gallery, found.codes, None, found.names,
            bits=found.bits, fingerprint=found.fingerprint, overwrite=True,
        )  # fmt: skip
        left_out = f", {len(found.bad):,} left out" if found.bad else ""
        instead = "" if there is None else f", in place of {there.count:,} there, with all that was changed in them"
        return f"{len(found.codes):,} codes of {found.bits} bits{left_out}{instead}"

    def write_repository(self) -> str:
        config, serving, served = dmsh_model.load(self.source).config, read_settings(self.settings), self.served
        spec = RepositorySpec(
            self.gallery,
            config.bits,
            config.image_size,
            self.fingerprint,
            model=served,
            known_answer=metadata_of(model_from_file(served))[Metadata.KNOWN_ANSWER],
            encoder=PythonBackend(serving.threads, serving.runtime, serving.streams, serving.instances),
            max_batch=serving.max_batch,
            queue_delay_microseconds=serving.queue_delay_microseconds,
            framing=config.framing,
        )
        write_repository(self.repository, spec)
        return "decoder, encoder, ranker and two ensembles"

    def check_model(self) -> None:
        """Refuse a model that is not the exported one, or one of another network than the checkpoint holds now."""
        said = self._checked(self.model)
        # A state dict may lie beside the config of other weights.
        named = float_checkpoint.read_header(self.source).get("fingerprint") if self.source.is_dir() else None
        if named not in (None, said.fingerprint):
            raise InputError(f"{self.model} is of another network than {self.source}")

    def check_served(self) -> None:
        """Refuse a model that is not the exported one, or that its runtime does not compute."""
        if self._checked(self.served).dialect not in (None, read_settings(self.settings).runtime):
            raise InputError(f"{self.served} is in the dialect of another runtime")

    def _checked(self, path: Path) -> EncoderMetadata:
        read_manifest(path)
        content = path.read_bytes()
        said = EncoderMetadata.from_props(props_of_onnx(content, str(path)), str(path))
        said.check_graph(content, str(path))
        return said

    def _may_hold_more(self) -> bool:
        if not self.gallery.is_dir() or not part_paths(self.gallery):
            return False
        with contextlib.suppress(InputError):
            gallery.open_sound(self.gallery)
            return True
        return len(part_paths(self.gallery)) > 1  # one alone is what an earlier run wrote

    def check_gallery(self) -> None:
        """Refuse a gallery that is damaged or of another model."""
        gallery.open_current(self.gallery, fingerprint=self.fingerprint)

    def check_repository(self) -> None:
        """Refuse a repository that serves another model."""
        if sha256_of_file(self.repository / ENCODER_MODEL / "1" / MODEL_FILE) != sha256_of_file(self.served):
            raise InputError(f"{self.repository} serves another model")


class _Run:
    """The steps of one deployment and their record in ``out``, which no other process writes to meanwhile."""

    def __init__(self, out: Path, made_of: dict[str, str], overwrite: bool, on_step: Callable[[str], None]) -> None:
        self.steps: list[Step] = []
        self._record = out / _RECORD
        self._made_of = made_of
        self._on_step = on_step
        if not overwrite:
            _earlier_results(out, made_of)  # refused before anything is written
        out.mkdir(exist_ok=True)
        self._lock = _locked(out)
        self._results = {} if overwrite else _earlier_results(out, made_of)
        self._gallery_of = _images_of_gallery(self._record)
        self.has_gallery = not overwrite and self._gallery_of == made_of["set of images"]

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def step(self, name: str, artefact: Path, make: Callable[[], str], check: Callable[[], object]) -> None:
        """Run ``make``, or keep what an earlier run made if ``check`` finds it whole; then note it in the record."""
        started = time.monotonic()
        self._on_step(name)
        result = self._results.get(name)
        kept = result is not None and artefact.exists() and _whole(check)
        if result is None or not kept:
            # What follows was made of what is about to go.
            self._note({step.name: step.result for step in self.steps})
            result = make()
            if name == GALLERY:
                self._gallery_of = self._made_of["set of images"]
            self._note({**self._results, name: result})
        self.steps.append(Step(name, artefact, kept, time.monotonic() - started, result))

    def _note(self, results: dict[str, str]) -> None:
        self._results = results
        # An overwriting run that is interrupted before its gallery leaves the one that was there, of other images.
        record = {"format": "dmsh-deploy", "made_of": self._made_of, "done": results, "gallery_of": self._gallery_of}
        write_json(self._record, record)


def _locked(out: Path) -> int:
    """Return an open descriptor of the folder that holds its lock; the system releases it when the process ends."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"{out} is being written by another process: wait for it, or choose another --out") from None
    return descriptor


def _earlier_results(out: Path, made_of: dict[str, str]) -> dict[str, str]:
    """Return the results of an earlier run of the same deployment in ``out``; none in a new or empty folder."""
    record = out / _RECORD
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder: create it, or write elsewhere")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder: choose another --out")
    if not record.is_file():
        if out.exists() and any(out.iterdir()):
            raise InputError(f"{out} holds other files and no {_RECORD}: choose another --out, or --overwrite")
        return {}
    try:
        found: dict[str, Any] = json.loads(record.read_text())
        earlier, results = dict(found["made_of"]), dict(found["done"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{record} is damaged: --overwrite makes everything anew") from error
    changed = sorted(name for name in {*made_of, *earlier} if made_of.get(name) != earlier.get(name))
    if changed:
        raise InputError(
            f"{out} was made of another {' and another '.join(changed)}: choose another --out, or --overwrite it"
        )
    return {str(name): str(result) for name, result in results.items()}


def _images_of_gallery(record: Path) -> str | None:
    """Return the name of the set of images that the gallery beside ``record`` was made of; None if it does not say."""
    try:
        said = json.loads(record.read_text())
        if "gallery_of" not in said and GALLERY in said["done"]:  # from before this was noted
            return str(said["made_of"]["set of images"])
        found = said["gallery_of"]
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _whole(check: Callable[[], object]) -> bool:
    """Say whether ``check`` finds no damage; an OSError of a disk that is away is none, and is passed on."""
    try:
        check()
    except InputError:
        return False
    return True


def _made_of(checkpoint: Path, images: Path, in_float: bool, settings: EncoderSettings | None) -> dict[str, str]:
    """Return what decides every byte of a deployment, by the name that a message gives it."""
    return {
        "checkpoint": dmsh_model.load(checkpoint).fingerprint,
        "set of images": _listing(images),
        "precision": "fp32" if in_float else "integer",
        "release of the toolkit": __version__,
        **({} if settings is None else {"kind of serving": json.dumps(dataclasses.asdict(settings), sort_keys=True)}),
    }


def _listing(images: Path) -> str:
    """Return a name for the files of ``images``: by path, size and times; to read a million would take minutes."""
    paths = image_paths(images) if images.is_dir() else [images]
    digest = hashlib.sha256(f"{images.resolve()}\n".encode(errors="surrogateescape"))
    for path in paths:
        line = f"{path.relative_to(images.parent)}\0{state_of(path, chr(0), by_change=True)}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _compared(report: ParityReport) -> str:
    target = report.targets[0]
    return f"{target.wrong_bits} wrong of {target.bits_compared:,} bits against PyTorch"
