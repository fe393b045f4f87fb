"""ONNX to TensorRT engine: typed, built, audited, proven, run."""
