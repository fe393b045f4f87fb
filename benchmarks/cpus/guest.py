"""What runs inside an emulated machine: one ONNX file over some images, or the decoder over some files.

    python guest.py                      print what machine this is, as JSON
    python guest.py      SETTINGS.json   also run {model, images, out, session, optimise}: .npy in, .npz out;
                                         or {decode, image_size, rules}: a folder of files, whose images' SHA-256
                                         are printed

``session`` is "served" (the toolkit's own encoder, which must then be installed here), "exact" or "fast" (a plain
session with ``session.x64quantprecision`` on or off), or "openvino" (a model compiled as the toolkit does).
"""

import hashlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

__all__ = ["Settings"]

Settings = dict[str, Any]
_AT_ONCE = 15  # images of a call: the last batch is a smaller one


def _features() -> list[str]:
    """Return the instruction sets that NumPy sees, which asks the CPU and not the host's /proc/cpuinfo."""
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as found  # type: ignore[import-not-found]
    except ImportError:  # NumPy 1
        from numpy.core._multiarray_umath import __cpu_features__ as found  # type: ignore[no-redef]
    return sorted(name for name, is_there in found.items() if is_there)


def _machine() -> Settings:
    return {
        "architecture": platform.machine(),
        "features": _features(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def _plain_session(settings: Settings) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1" if settings["session"] == "exact" else "0")
    if not settings["optimise"]:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(settings["model"], options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["code", "logits"], {"image": images})


def _served_encoder(settings: Settings) -> Any:
    from dmsh_serving.encoder.onnxruntime import OnnxEncoder

    # The known answer is among the images: the caller counts what differs instead of hearing of a refusal.
    encoder = OnnxEncoder(Path(settings["model"]), threads=1, optimise=settings["optimise"], check_known_answer=False)

    def encode(images: Any) -> Any:
        encoded = encoder.infer(images)
        return encoded.code, encoded.logits

    return encode


def _openvino(settings: Settings) -> Any:
    from dmsh_serving.encoder.openvino import compiled

    model = compiled(Path(settings["model"]).read_bytes(), settings["model"], threads=1)

    def encode(images: Any) -> Any:
        found = model({"image": images})
        return found["code"].copy(), found["logits"].copy()

    return encode


_SESSIONS = {"served": _served_encoder, "openvino": _openvino, "exact": _plain_session, "fast": _plain_session}


def _decode(settings: Settings) -> Settings:
    import PIL

    from dmsh_serving.images.decode import image_from_bytes
    from dmsh_serving.images.framing import Framing

    images = {
        f"{path.name}, rule {version}": hashlib.sha256(
            image_from_bytes(path.read_bytes(), settings["image_size"], Framing(decode_rule=version)).tobytes()
        ).hexdigest()
        for version in settings["rules"]
        for path in sorted(Path(settings["decode"]).iterdir())
    }
    return {"pillow": PIL.__version__, "images": images}


def _run(settings: Settings) -> float:
    parent = os.getppid()
    encode = _SESSIONS[settings["session"]](settings)
    images = np.load(settings["images"])
    begun = time.perf_counter()
    batches = []
    for start in range(0, len(images), _AT_ONCE):
        if os.getppid() != parent:
            sys.exit("the program that started this one is gone")
        batches.append(encode(images[start : start + _AT_ONCE]))
    seconds = time.perf_counter() - begun
    code, logits = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    np.savez(settings["out"], code=code, logits=logits)
    return seconds


if __name__ == "__main__":
    result = _machine()
    if len(sys.argv) > 1:
        task = json.loads(Path(sys.argv[1]).read_text())
        result |= _decode(task) if "decode" in task else {"seconds": _run(task)}
    sys.stdout.write(json.dumps(result) + "\n")
