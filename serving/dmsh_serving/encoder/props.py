"""What an ONNX file says of itself and where its weights lie, without ONNX: read before a runtime sees the file.

A file is one protobuf message, ModelProto, whose field 14 repeats StringStringEntryProto (key = 1, value = 2).
https://protobuf.dev/programming-guides/encoding/ and https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

from dmsh_serving.errors import InputError

__all__ = ["graph_sha256", "has_external_data", "props_of_onnx"]

_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_COMPUTES: Final = (7, 8, 25)  # graph, opset_import, functions: what decides which numbers come out
_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}  # by wire type
_LONGEST_VARINT = 10  # bytes
_TENSOR, _EXTERNAL_DATA = "TensorProto", 13
# The fields of each message through which a tensor is reached: {message: {field: message}}.
_WAYS: Final[Mapping[str, Mapping[int, str]]] = {
    "ModelProto": {7: "GraphProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR, 6: "GraphProto", 10: _TENSOR, 11: "GraphProto", 22: "SparseTensorProto", 23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
}  # fmt: skip


def props_of_onnx(data: bytes, name: str) -> dict[str, str]:
    """Return the properties in the bytes of an ONNX file; ``name`` is what an error calls the file.

    Raises:
        InputError: the bytes are no protobuf message.
    """
    try:
        entries = [dict(_fields(entry)) for field, entry in _fields(memoryview(data)) if field == _METADATA_PROPS]
        return {bytes(entry[_KEY]).decode(): bytes(entry.get(_VALUE, b"")).decode() for entry in entries}
    except (IndexError, KeyError, ValueError) as error:
        raise InputError(f"{name} is not an ONNX model: name a file made by dmsh-export onnx") from error


def graph_sha256(data: bytes, name: str) -> str:
    """Return the SHA-256 of what an ONNX file computes, from its bytes; ``name`` is what an error calls the file.

    Raises:
        InputError: the bytes are no protobuf message.
    """
    digest = hashlib.sha256()
    try:
        for field, content in _fields(memoryview(data)):
            if field in _COMPUTES:
                digest.update(f"{field} {len(content)}\n".encode())
                digest.update(content)
    except (IndexError, ValueError) as error:
        raise InputError(f"{name} is not an ONNX model: name a file made by dmsh-export onnx") from error
    return digest.hexdigest()


def has_external_data(data: bytes, name: str) -> bool:
    """Return whether a tensor of an ONNX file lies outside it; ``name`` is what an error calls the file.

    Raises:
        InputError: the bytes are no protobuf message.
    """
    try:
        return _has_external_data(memoryview(data), "ModelProto")
    except (IndexError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is not an ONNX model: name a file made by dmsh-export onnx") from error


def _has_external_data(message: memoryview, kind: str) -> bool:
    if kind == _TENSOR:
        return any(field == _EXTERNAL_DATA for field, _ in _fields(message))
    ways = _WAYS[kind]
    return any(_has_external_data(content, ways[field]) for field, content in _fields(message) if field in ways)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield (number, content) of the length-delimited fields of a message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag >> 32 or not tag >> 3:  # 0 is none; a reader that keeps 32 bits of a tag would see another field
            raise ValueError(f"tag {tag}")
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(message, position)
            continue
        if kind == _LENGTH_DELIMITED:
            size, position = _varint(message, position)
        elif kind in _FIXED_BYTES:
            size = _FIXED_BYTES[kind]
        else:
            raise ValueError(f"wire type {kind}")
        end = position + size
        if end > len(message):
            raise ValueError("cut short")
        if kind == _LENGTH_DELIMITED:
            yield tag >> 3, message[position:end]
        position = end


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the number at ``position`` and the position behind it."""
    value = 0
    for index in range(_LONGEST_VARINT):
        byte = message[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("a number without an end")
