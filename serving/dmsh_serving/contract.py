"""Names, dtypes and orders that every part agrees on. Stated once, imported by everyone.

Image: ``image``, UINT8 ``[N, H, W, 3]``, RGB, H = W = the checkpoint's ``image_size``.
Logits: ``logits``, FP32 ``[N, K]``.
Code: ``code``, UINT8 ``[N, ceil(K/8)]``; see :mod:`dmsh_serving.codes`.
Search result: ordered by (distance, id) ascending; ``ids`` INT64 ``[N, k]``, ``distances`` INT32 ``[N, k]``. If fewer
codes can be found, the rest is :data:`PAD_ID` and :data:`PAD_DISTANCE`.
Filter: ``filter`` INT64 ``[N, F]``, the ids that each query may find; :data:`PAD_ID` fills shorter lists.
"""

from typing import Final

__all__ = [
    "CODE",
    "DECODE_MODEL",
    "DEFAULT_GRPC_PORT",
    "DEFAULT_K",
    "DEFAULT_MAX_BATCH",
    "DISTANCES",
    "ENCODER_MODEL",
    "FILE",
    "FILTER",
    "GALLERY_VERSION",
    "IDS",
    "IMAGE",
    "KEYS",
    "LOGITS",
    "MAX_BITS",
    "MAX_FILTER_IDS",
    "MAX_K",
    "MAX_RESULTS",
    "MIN_BITS",
    "MODEL_FILE",
    "PAD_DISTANCE",
    "PAD_ID",
    "PAD_KEY",
    "PLAN_FILE",
    "RADIUS",
    "RANKER_MODEL",
    "RERANK",
    "SEARCH_FILE_MODEL",
    "SEARCH_MODEL",
    "VERSION_COMPATIBLE",
    "K",
    "Metadata",
]

MIN_BITS: Final = 1
MAX_BITS: Final = 1024

IMAGE: Final = "image"
LOGITS: Final = "logits"
CODE: Final = "code"
FILE: Final = "file"
K: Final = "k"
RADIUS: Final = "radius"
FILTER: Final = "filter"
RERANK: Final = "rerank"
IDS: Final = "ids"
DISTANCES: Final = "distances"
KEYS: Final = "keys"
GALLERY_VERSION: Final = "gallery_version"

PAD_ID: Final = -1
PAD_DISTANCE: Final = 2**31 - 1
PAD_KEY: Final = ""

DEFAULT_K: Final = 10
MAX_K: Final = 16_384
MAX_RESULTS: Final = 65_536  # of one request: its rows times its k
MAX_FILTER_IDS: Final = 1_000_000

DECODE_MODEL: Final = "dmsh_decode"
ENCODER_MODEL: Final = "dmsh_encoder"
RANKER_MODEL: Final = "dmsh_ranker"
SEARCH_MODEL: Final = "dmsh_search"
SEARCH_FILE_MODEL: Final = "dmsh_search_file"

MODEL_FILE: Final = "model.onnx"  # in the encoder's folder of a model repository
PLAN_FILE: Final = "model.plan"
VERSION_COMPATIBLE: Final = "version_compatible"  # parameter of an encoder whose engine brings its own runtime

DEFAULT_GRPC_PORT: Final = 8001
DEFAULT_MAX_BATCH: Final = 32


class Metadata:
    """Keys of the ``metadata_props`` of an ONNX file."""

    FINGERPRINT: Final = "dmsh.fingerprint"
    PARENT_FINGERPRINT: Final = "dmsh.parent_fingerprint"  # of the encoder that a low-precision one was made from
    PRECISION: Final = "dmsh.precision"  # of a low-precision encoder's trunk: fp16, bf16, int8, fp8
    DIALECT: Final = "dmsh.dialect"  # of an integer encoder: onnxruntime, tensorrt, openvino
    BITS: Final = "dmsh.bits"
    IMAGE_SIZE: Final = "dmsh.image_size"
    FRAMING: Final = "dmsh.framing"  # how pictures become its images, see dmsh_serving.images.framing
    CONFIG: Final = "dmsh.config"
    TOOL_VERSION: Final = "dmsh.tool_version"
    KNOWN_ANSWER: Final = "dmsh.known_answer"
    GRAPH_SHA256: Final = "dmsh.graph_sha256"  # of what it computes: whoever changes that keeps no code space
