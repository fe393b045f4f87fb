"""The seal of an exported ONNX file: the SHA-256 of what it computes, in its metadata."""

import onnx

from dmsh_export.graph import metadata_of
from dmsh_serving.contract import Metadata
from dmsh_serving.encoder.props import graph_sha256

__all__ = ["sealed"]


def sealed(model: onnx.ModelProto) -> bytes:
    """Return ``model`` as the bytes of a file that names its graph's SHA-256, so that a later change of it shows."""
    found = graph_sha256(model.SerializeToString(deterministic=True), "the model")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.metadata_props[:]
    onnx.helper.set_model_props(copy, {**metadata_of(model), Metadata.GRAPH_SHA256: found})
    return bytes(copy.SerializeToString(deterministic=True))
