"""Plans for tests that load none: any bytes, with the manifest that dmsh-export trt writes beside them."""

import json

import tiny_model

from dmsh_export.manifest import manifest_path, write_manifest

GPU = {"name": "NVIDIA RTX A4000", "compute_capability": "8.6"}


def write_plan(path, *, profile=(1, 4, 8), gpu=GPU, flavour="tensorrt", version="10.16.1.11", options=(), **fields):
    """Write the plan ``path`` of the tiny model, with ``fields`` of its manifest replaced; return the path."""
    path.write_bytes(path.name.encode())
    targets = f"compute capability {gpu['compute_capability']}" if gpu else "compute capability 8.0 and later"
    given = {"fingerprint": tiny_model.FINGERPRINT, **fields}
    write_manifest(
        path,
        kind=given.pop("kind", "plan"),
        fingerprint=given.pop("fingerprint"),
        made_from={"model.onnx": "00" * 32},
        options={"version_compatible": False, "hardware_compatibility": "none", **dict(options)},
        packages=(),
        results={
            "parent_fingerprint": None,
            "bits": tiny_model.BITS,
            "image_size": tiny_model.SIZE,
            "profile": dict(zip(("min", "opt", "max"), profile, strict=True)),
            "tensorrt": {"flavour": flavour, "version": version, "gpu": gpu, "targets": targets},
            **given,
        },
    )
    manifest = json.loads(manifest_path(path).read_text())
    manifest["command"] = ["dmsh-export", "trt", "model.onnx", "--fp32", "--out", path.name]
    manifest_path(path).write_text(json.dumps(manifest))
    return path
