"""The packages that mutants are made of, each with the tests that must find them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Subject:
    """A package, its tests, those of them that are too slow to run for each fault, and the least share to be found.

    ``elsewhere`` are modules that run in a process of their own, into which no fault is put.
    """

    package: str
    tests: tuple[str, ...]
    least: float
    slow: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    def files(self) -> list[Path]:
        """Return its modules. Compiled kernels are left out: numba's cache would give the code without the fault."""
        left_out = ("__init__.py", *self.elsewhere)
        return sorted(path for path in (ROOT / self.package).glob("*.py") if path.name not in left_out)


SUBJECTS: Final = {
    "prove": Subject("export/dmsh_export/prove", ("tests/dmsh_export/prove",), 0.9),
    "quantise": Subject(
        "export/dmsh_export/quantise",
        ("tests/dmsh_export/quantise",),
        0.9,
        slow=("vgg", "resnet50", "resnetv2", "run_memory", "chosen", "120", "same_images_give"),
    ),
    "to_onnx": Subject(
        "export/dmsh_export/to_onnx",
        ("tests/dmsh_export/to_onnx", "tests/dmsh_export/prove"),
        0.8,
        slow=("backbones", "demo_model", "whatever_is_changed"),
    ),
    "hamming": Subject(
        "serving/dmsh_serving/hamming", ("tests/dmsh_serving/hamming",), 0.8, slow=("outside_the_codes",)
    ),
    "gallery": Subject(
        "serving/dmsh_serving/gallery",
        ("tests/dmsh_serving/gallery", "tests/faults/test_files.py", "tests/faults/test_gallery.py"),
        0.8,
        slow=("race", "ten_million", "killed", "parquet"),
    ),
    "images": Subject(
        "serving/dmsh_serving/images",
        ("tests/dmsh_serving/images", "tests/faults/test_decode.py"),
        0.8,
        slow=("malformed", "huge_tile", "flood"),
        elsewhere=("decoding_process.py",),
    ),
    "lint": Subject("export/dmsh_export/lint", ("tests/dmsh_export/lint",), 0.8),
}
