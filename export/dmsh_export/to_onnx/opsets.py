"""The ONNX operator sets that exports are written in; light, so that a command line can show the default."""

__all__ = ["DEFAULT_OPSET", "MIN_OPSET"]

MIN_OPSET = 18
DEFAULT_OPSET = 20
