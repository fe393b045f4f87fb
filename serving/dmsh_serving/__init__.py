"""What runs beside Triton: codes, exact Hamming search, galleries, decoding, the server and its client.

Imports neither torch, onnx, timm nor tensorrt, so it installs into Triton's own Python environment.
"""

__version__ = "0.2.0"
