"""Open an ONNX file in the runtime that it is written for, or in another that is asked for."""

from collections.abc import Mapping
from pathlib import Path

from dmsh_serving.contract import Metadata
from dmsh_serving.encoder.base import Encoder, Runtime, proven_bytes
from dmsh_serving.encoder.metadata import EncoderMetadata
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.encoder.openvino import OpenVinoEncoder
from dmsh_serving.encoder.props import props_of_onnx

__all__ = ["open_encoder", "runtime_of"]


def open_encoder(
    path: Path,
    runtime: Runtime | None = None,
    *,
    threads: int | None = None,
    streams: int = 1,
    check_known_answer: bool = True,
) -> Encoder:
    """Return the open encoder of ``path``; without ``runtime`` in that of its dialect.

    Raises:
        InputError, MissingError, CheckError: as :class:`OnnxEncoder`, :class:`OpenVinoEncoder` and
            :meth:`EncoderMetadata.check_encodes`.
    """
    props = props_of_onnx(proven_bytes(path), str(path))
    EncoderMetadata.from_props(props, str(path)).check_encodes(str(path))
    if (runtime or _runtime(props)) == "openvino":
        return OpenVinoEncoder(path, threads=threads, streams=streams, check_known_answer=check_known_answer)
    return OnnxEncoder(path, threads=threads, check_known_answer=check_known_answer)


def runtime_of(path: Path) -> Runtime:
    """Return the runtime of the dialect that ``path`` is written in; of a float model, ONNX Runtime."""
    return _runtime(props_of_onnx(proven_bytes(path), str(path)))


def _runtime(props: Mapping[str, str]) -> Runtime:
    return "openvino" if props.get(Metadata.DIALECT) == "openvino" else "onnxruntime"
