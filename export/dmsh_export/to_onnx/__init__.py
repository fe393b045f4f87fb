"""Checkpoints to ONNX: float networks with their fusion folded, integer networks in one file per dialect."""
