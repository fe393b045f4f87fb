"""Generate the Triton model repository: five folders, written whole or not at all.

    dmsh_decode       file -> image                     dmsh_search       image [, ...] -> code, ids, ...
    dmsh_encoder      image -> code, logits             dmsh_search_file  file [, ...] -> code, ids, ...
    dmsh_ranker       code [, k] [, radius] [, filter] [, rerank, logits] -> ids, distances, keys, gallery_version

``k``, ``radius``, ``filter`` and ``rerank`` are optional inputs, with a row for each query like every input of a
batching model; a Triton ensemble hands an optional input on, or leaves it out (seen on 24.10).
Configuration: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

import os
import shutil
import tempfile
from pathlib import Path

from dmsh_serving.clickhouse.address import Address
from dmsh_serving.contract import (
    DECODE_MODEL,
    ENCODER_MODEL,
    MODEL_FILE,
    RANKER_MODEL,
    SEARCH_FILE_MODEL,
    SEARCH_MODEL,
)
from dmsh_serving.errors import InputError
from dmsh_serving.files import replace_folder
from dmsh_serving.triton.model_configs import config_texts
from dmsh_serving.triton.spec import PythonBackend, RepositorySpec, TensorRTBackend

__all__ = ["MODELS", "repository_texts", "write_repository"]

MODELS = (DECODE_MODEL, ENCODER_MODEL, RANKER_MODEL, SEARCH_MODEL, SEARCH_FILE_MODEL)


def write_repository(out: Path, spec: RepositorySpec) -> None:
    """Write the repository to ``out``, replacing a generated one that is there.

    Raises:
        InputError: ``out`` holds something else, or its parent is not a folder.
    """
    out = out.absolute()
    _check_replaceable(out)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        new = Path(temporary) / "new"
        for name, text in repository_texts(out, spec).items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        version = new / ENCODER_MODEL / "1"
        if spec.model is not None:
            _copy_model(spec.model, version / MODEL_FILE)
        if isinstance(spec.encoder, TensorRTBackend):
            for plan in spec.encoder.plans:
                _copy_model(plan.path, version / spec.encoder.file_of(plan))
        replace_folder(new, out)


def repository_texts(out: Path, spec: RepositorySpec) -> dict[str, str]:
    """Return every text file of the repository at ``out``, by its path inside."""
    ranker_folder = out.resolve() / RANKER_MODEL
    if isinstance(spec.gallery, Address):
        gallery = str(spec.gallery)
    else:
        gallery = os.path.relpath(_beside(out, spec.gallery), ranker_folder)
    files = {f"{model}/config.pbtxt": text for model, text in config_texts(spec, gallery).items()}
    opens = {DECODE_MODEL: "open_decoder", RANKER_MODEL: "open_ranker"}
    if isinstance(spec.encoder, PythonBackend):
        opens[ENCODER_MODEL] = "open_encoder"
    else:
        files[f"{ENCODER_MODEL}/1/.keep"] = ""
    for model, opener in opens.items():
        files[f"{model}/1/model.py"] = _MODEL_PY.format(model=model, opener=opener)
    for ensemble in (SEARCH_MODEL, SEARCH_FILE_MODEL):  # a model needs a version's folder; git keeps no empty one
        files[f"{ensemble}/1/.keep"] = ""
    return files


def _beside(out: Path, gallery: Path) -> Path:
    """Return the absolute path of ``gallery``, in which a link stays one unless ``out`` lies behind it, too.

    Whoever lets a link lead to another gallery wants that one served, but for a link to a folder that holds both.
    """
    named, repository = (Path(os.path.normpath(path.absolute())) for path in (gallery, out))
    shared = Path(os.path.commonpath([named, repository]))
    place = shared.resolve() / named.relative_to(shared)
    return place if place.resolve() == gallery.resolve() else gallery.resolve()  # a ".." behind a link


_MODEL_PY = '''"""{model} for Triton's Python backend: a thin adapter, the work is in dmsh_serving."""

from typing import Any

from dmsh_serving.triton.backend import {opener}


class TritonPythonModel:
    """What the backend looks for in this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load, check, and be ready to answer; an error here keeps the model from being served."""
        self.model = {opener}(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests together, each with its tensors or its own error."""
        return self.model.respond(requests)

    def finalize(self) -> None:
        """Let go of threads and memory."""
        self.model.close()
'''


def _copy_model(model: Path, to: Path) -> None:
    shutil.copyfile(model, to)
    manifest = model.with_name(model.name + ".json")
    if manifest.is_file():
        shutil.copyfile(manifest, to.with_name(to.name + ".json"))


def _check_replaceable(out: Path) -> None:
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder: create it, or write elsewhere")
    if not out.exists():
        return
    if not out.is_dir() or out.is_symlink():
        raise InputError(f"{out} is not a folder: write elsewhere")
    foreign = sorted({path.name for path in out.iterdir()} - set(MODELS))
    if foreign:
        raise InputError(
            f"{out} holds {', '.join(foreign[:5])}, which no generated repository does: write elsewhere, or empty it"
        )
