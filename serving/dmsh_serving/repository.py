"""Generate the Triton model repository: five folders, whole or not at all, the same bytes for the same spec.

    dmsh_decode       file -> image                     dmsh_search       image [, k] -> code, ids, ...
    dmsh_encoder      image -> code, logits             dmsh_search_file  file [, k] -> code, ids, ...
    dmsh_ranker       code [, k] -> ids, distances, keys, gallery_version

``k`` is an optional INT64 input, one value a row like every input of a batching model; a Triton ensemble hands an
optional input on, or leaves it out (seen on 24.10).
Configuration: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dmsh_serving.codes import bytes_per_code, checked_bits
from dmsh_serving.contract import (
    CODE,
    DECODE_MODEL,
    DEFAULT_MAX_BATCH,
    DISTANCES,
    ENCODER_MODEL,
    FILE,
    GALLERY_VERSION,
    IDS,
    IMAGE,
    KEYS,
    LOGITS,
    RANKER_MODEL,
    SEARCH_FILE_MODEL,
    SEARCH_MODEL,
    K,
)
from dmsh_serving.errors import InputError

MODELS = (DECODE_MODEL, ENCODER_MODEL, RANKER_MODEL, SEARCH_MODEL, SEARCH_FILE_MODEL)
MODEL_FILE = "model.onnx"


@dataclass(frozen=True)
class RepositorySpec:
    """What a repository is generated from.

    Attributes:
        gallery: the gallery's folder; it need not exist yet.
        bits: K of the codes.
        image_size: H = W of the images.
        fingerprint: the code space's name, 64 hexadecimal digits.
        model: the ONNX file to put in; None leaves its place empty.
        max_batch: most rows of one call.
        max_queue: most requests that wait for one model; one more is refused at once (UNAVAILABLE).
        encoder_threads, decode_threads, ranker_threads: threads of one call.
    """

    gallery: Path
    bits: int
    image_size: int
    fingerprint: str
    model: Path | None = None
    max_batch: int = DEFAULT_MAX_BATCH
    max_queue: int = 1024
    encoder_threads: int = 2
    decode_threads: int = 2
    ranker_threads: int = 1

    def __post_init__(self) -> None:
        """Refuse what no server could load."""
        checked_bits(self.bits)
        if len(self.fingerprint) != 64 or set(self.fingerprint) - set("0123456789abcdef"):
            raise InputError(f"a fingerprint is 64 hexadecimal digits, got {self.fingerprint!r}")
        for name in ("image_size", "max_batch", "max_queue", "encoder_threads", "decode_threads", "ranker_threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.model is not None and not self.model.is_file():
            raise InputError(f"{self.model} is not a file: name an ONNX model made by dmsh-export onnx")


def write_repository(out: Path, spec: RepositorySpec) -> None:
    """Write the repository to ``out``, replacing a generated one that is there.

    Raises:
        InputError: ``out`` holds something else, or its parent is not a folder.
    """
    out = out.absolute()
    _check_replaceable(out)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        for name, text in repository_texts(out, spec).items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if spec.model is not None:
            _copy_model(spec.model, new / ENCODER_MODEL / "1")
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise


def repository_texts(out: Path, spec: RepositorySpec) -> dict[str, str]:
    """Return every text file of the repository at ``out``, by its path inside."""
    ranker_folder = out.resolve() / RANKER_MODEL
    gallery = os.path.relpath(spec.gallery.resolve(), ranker_folder)
    texts = {
        DECODE_MODEL: _decode_config(spec),
        ENCODER_MODEL: _encoder_config(spec),
        RANKER_MODEL: _ranker_config(spec, gallery),
        SEARCH_MODEL: _ensemble_config(spec, SEARCH_MODEL, _image_input(spec), []),
        SEARCH_FILE_MODEL: _ensemble_config(
            spec, SEARCH_FILE_MODEL, _tensor(FILE, "STRING", [1]), [_step(DECODE_MODEL, [FILE], [IMAGE])]
        ),
    }
    files = {f"{model}/config.pbtxt": text for model, text in texts.items()}
    for model, service in (
        (DECODE_MODEL, "DecodeService"), (ENCODER_MODEL, "EncoderService"), (RANKER_MODEL, "RankerService"),
    ):  # fmt: skip
        counter = ", failed_swap_counter()" if model == RANKER_MODEL else ""
        imported = "failed_swap_counter, respond, settings_from" if counter else "respond, settings_from"
        files[f"{model}/1/model.py"] = _MODEL_PY.format(
            model=model, service=service, counter=counter, imported=imported
        )
    for ensemble in (SEARCH_MODEL, SEARCH_FILE_MODEL):  # a model needs a version's folder; git keeps no empty one
        files[f"{ensemble}/1/.keep"] = ""
    return files


_MODEL_PY = '''"""{model} for Triton's Python backend: a thin adapter, the work is in dmsh_serving."""

from typing import Any

from dmsh_serving.services import {service}
from dmsh_serving.triton_backend import {imported}


class TritonPythonModel:
    """What the backend looks for in this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load, check, and be ready to answer; an error here keeps the model from being served."""
        self.service = {service}.open(settings_from(args){counter})

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests together, each with its tensors or its own error."""
        return respond(requests, self.service.answer)

    def finalize(self) -> None:
        """Let go of threads and memory."""
        self.service.close()
'''


def _decode_config(spec: RepositorySpec) -> str:
    return _python_config(
        spec,
        DECODE_MODEL,
        inputs=[_tensor(FILE, "STRING", [1])],
        outputs=[_image_input(spec)],
        parameters={"image_size": str(spec.image_size), "threads": str(spec.decode_threads)},
    )


def _encoder_config(spec: RepositorySpec) -> str:
    return _python_config(
        spec,
        ENCODER_MODEL,
        inputs=[_image_input(spec)],
        outputs=[_code(spec), _tensor(LOGITS, "FP32", [spec.bits])],
        parameters={"threads": str(spec.encoder_threads)},
    )


def _ranker_config(spec: RepositorySpec, gallery: str) -> str:
    return _python_config(
        spec,
        RANKER_MODEL,
        inputs=[_code(spec), _K_INPUT],
        outputs=_results(),
        parameters={"gallery": gallery, "threads": str(spec.ranker_threads)},
    )


def _ensemble_config(spec: RepositorySpec, name: str, source: str, first_steps: list[str]) -> str:
    steps = [
        *first_steps,
        _step(ENCODER_MODEL, [IMAGE], [CODE]),
        _step(RANKER_MODEL, [CODE, K], [IDS, DISTANCES, KEYS, GALLERY_VERSION]),
    ]
    return _lines(
        f'name: "{name}"',
        'platform: "ensemble"',
        f"max_batch_size: {spec.max_batch}",
        _list("input", [source, _K_INPUT]),
        _list("output", [_code(spec), *_results()]),
        "ensemble_scheduling {\n" + _indent(_list("step", steps)) + "\n}",
        _parameters(spec, {}),
    )


def _python_config(
    spec: RepositorySpec, name: str, *, inputs: list[str], outputs: list[str], parameters: dict[str, str]
) -> str:
    return _lines(
        f'name: "{name}"',
        'backend: "python"',
        f"max_batch_size: {spec.max_batch}",
        _list("input", inputs),
        _list("output", outputs),
        _list("instance_group", ["{ count: 1, kind: KIND_CPU }"]),
        # No delay: whatever waits while a call runs is the next call's batch.
        f"dynamic_batching {{\n  default_queue_policy {{ max_queue_size: {spec.max_queue} }}\n}}",
        _parameters(spec, parameters),
    )


def _image_input(spec: RepositorySpec) -> str:
    return _tensor(IMAGE, "UINT8", [spec.image_size, spec.image_size, 3])


def _code(spec: RepositorySpec) -> str:
    return _tensor(CODE, "UINT8", [bytes_per_code(spec.bits)])


def _results() -> list[str]:
    return [
        _tensor(IDS, "INT64", [-1]),
        _tensor(DISTANCES, "INT32", [-1]),
        _tensor(KEYS, "STRING", [-1]),
        _tensor(GALLERY_VERSION, "STRING", [1]),
    ]


def _tensor(name: str, dtype: str, dims: list[int], *, optional: bool = False) -> str:
    return f'{{ name: "{name}", data_type: TYPE_{dtype}, dims: {dims}{", optional: true" if optional else ""} }}'


_K_INPUT = _tensor(K, "INT64", [1], optional=True)


def _step(model: str, inputs: list[str], outputs: list[str]) -> str:
    maps = [f'input_map {{ key: "{name}", value: "{name}" }}' for name in inputs]
    maps += [f'output_map {{ key: "{name}", value: "{name}" }}' for name in outputs]
    return "{\n" + _indent("\n".join([f'model_name: "{model}"', "model_version: -1", *maps])) + "\n}"


def _parameters(spec: RepositorySpec, own: dict[str, str]) -> str:
    every = {"bits": str(spec.bits), "fingerprint": spec.fingerprint, **own}
    return "\n".join(
        f'parameters {{ key: "{name}", value {{ string_value: "{_escaped(every[name])}" }} }}' for name in sorted(every)
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _list(field: str, items: list[str]) -> str:
    return f"{field} [\n" + ",\n".join(_indent(item) for item in items) + "\n]"


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def _lines(*parts: str) -> str:
    return "\n".join(parts) + "\n"


def _copy_model(model: Path, folder: Path) -> None:
    shutil.copyfile(model, folder / MODEL_FILE)
    manifest = model.with_name(model.name + ".json")
    if manifest.is_file():
        shutil.copyfile(manifest, folder / f"{MODEL_FILE}.json")


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
