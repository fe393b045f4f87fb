"""One run: a machine computes a network's codes and logits, and each bit and integer is held against PyTorch's."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.cpus.machines import Machine
from benchmarks.cpus.networks import Bytes, Network, NetworkName
from dmsh_export.graph import Dialect
from dmsh_serving.codes import Encoded
from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import CheckError

__all__ = ["IMAGES", "Row", "Session", "Setting", "row", "run", "settings"]

Session = Literal["served", "exact", "fast", "openvino"]
# Real images of a run: what an emulated CPU computes in about half a minute (a float convolution takes it longer).
IMAGES: Final[dict[tuple[NetworkName, Dialect], int]] = {
    ("demo", "onnxruntime"): 192,
    ("demo", "tensorrt"): 64,
    ("vgg11_bn", "onnxruntime"): 32,
    ("vgg11_bn", "tensorrt"): 5,
    ("demo", "openvino"): 192,
    ("vgg11_bn", "openvino"): 32,
}

_OF_ONNX_RUNTIME: Final[tuple[Dialect, ...]] = ("onnxruntime", "tensorrt")
# Kept to these, oneDNN has VNNI or not, on every CPU with AVX-512: https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
_ISAS: Final = ("AVX512_CORE_VNNI", "AVX512_CORE", "AVX2")


@dataclass(frozen=True)
class Setting:
    """How a runtime is asked to compute: see ``guest.py``. A control must come out wrong, and be refused.

    ``isa`` keeps OpenVINO's kernels (oneDNN's) to an instruction set; empty for the best that the CPU has.
    """

    dialect: Dialect
    session: Session
    optimise: bool
    control: bool = False
    isa: str = ""


@dataclass(frozen=True)
class Row:
    """What one run gave. ``refused`` is whether the known answer, computed in the same run, refuses to serve."""

    machine: str
    title: str
    emulator: str
    onnxruntime: str
    network: NetworkName
    fingerprint: str
    setting: Setting
    images: int
    bits: int
    wrong_bits: int
    different_logits: int
    refused: bool
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing differs, or, of a control, whether something does and the known answer refuses it."""
        differs = self.wrong_bits > 0 or self.different_logits > 0
        return differs and self.refused if self.setting.control else not (differs or self.refused)

    def failure(self) -> str:
        """Return one line: what was expected and what was found."""
        what = f"{self.title}, {self.network}, {self.setting.dialect} dialect"
        found = (
            f"{self.wrong_bits} of {self.bits} bits and {self.different_logits} logits differ from PyTorch's, the "
            f"known answer {'refuses' if self.refused else 'agrees'}"
        )
        return f"{what}: {'a control that should be wrong and refused: ' if self.setting.control else ''}{found}"


def settings(machine: Machine, network: NetworkName) -> list[Setting]:
    """Return the settings to run ``network`` with on ``machine``: two dialects in ONNX Runtime, the graph optimised and
    as written, and the third in OpenVINO.

    The precision option is a pass of the optimiser: where kernels saturate, the onnxruntime dialect is exact only with
    both, so each is left out in a control. Emulated, a large network runs optimised alone, for it is slow there.
    """
    session: Session = "served" if machine.has_toolkit else "exact"
    graphs = (True, False) if network == "demo" or not machine.is_emulated else (True,)
    found = [
        Setting(dialect, session, optimise)
        for dialect in _OF_ONNX_RUNTIME
        for optimise in graphs
        if optimise or dialect == "tensorrt" or not machine.saturates
    ]
    if machine.saturates:
        found.append(Setting("onnxruntime", "fast", optimise=True, control=True))
        found += [Setting("onnxruntime", "exact", optimise, control=True) for optimise in graphs if not optimise]
    return found + _of_openvino(machine)


def _of_openvino(machine: Machine) -> list[Setting]:
    """Return OpenVINO's settings: exact with VNNI, a control if the CPU has none or oneDNN may not use it."""
    if not machine.has_openvino:
        return []
    if machine.saturates:
        return [Setting("openvino", "openvino", optimise=True, control=True)]
    return [
        Setting("openvino", "openvino", optimise=True),
        *(Setting("openvino", "openvino", True, control="VNNI" not in isa, isa=isa) for isa in _ISAS),
    ]


def run(machine: Machine, network: Network, setting: Setting, folder: Path, most: int | None = None) -> Row:
    """Run ``network`` on ``machine`` over the known answer's images and up to ``most`` real ones.

    ``folder`` takes the files of this run.

    Raises:
        CheckError: the machine gives no result.
    """
    count = network.known + min(most or len(network.images), IMAGES[network.name, setting.dialect])
    images = network.images[:count]
    stem = f"{machine.name}-{network.name}-{setting.dialect}-{setting.session}-{setting.optimise}-{setting.isa}"
    given, out, task = (folder / f"{stem}{end}" for end in ("-images.npy", ".npz", ".json"))
    np.save(given, images)
    task.write_text(
        json.dumps(
            {
                "model": str(network.files[setting.dialect]),
                "images": str(given),
                "out": str(out),
                "session": setting.session,
                "optimise": setting.optimise,
            }
        )
    )
    result = machine.run(task, {"ONEDNN_MAX_CPU_ISA": setting.isa} if setting.isa else {})
    with np.load(out) as found:
        return row(machine, network, setting, found["code"], found["logits"], result["seconds"])


def row(
    machine: Machine,
    network: Network,
    setting: Setting,
    code: Bytes,
    logits: npt.NDArray[np.float32],
    seconds: float,
) -> Row:
    """Compare ``code`` (n, B) uint8 and ``logits`` (n, K) float32 of the first n images with PyTorch's, every bit.

    Raises:
        CheckError: another shape or type.
    """
    expected_code, expected_logits = network.code[: len(code)], network.logits[: len(code)]
    for name, found, expected in (("code", code, expected_code), ("logits", logits, expected_logits)):
        if (found.dtype, found.shape) != (expected.dtype, expected.shape):
            raise CheckError(
                f"{machine.title}: {name} should be {expected.dtype} {list(expected.shape)}, "
                f"not {found.dtype} {list(found.shape)}"
            )
    refused = False
    try:
        known_answer.check(lambda images: Encoded(code[: len(images)], logits[: len(images)]), network.known_answer)
    except CheckError:
        refused = True
    return Row(
        machine.name,
        machine.title,
        machine.emulator,
        machine.onnxruntime,
        network.name,
        network.fingerprint,
        setting,
        len(code),
        len(code) * network.bits,
        int(np.unpackbits(code ^ expected_code).sum()),
        int((logits != expected_logits).sum()),
        refused,
        seconds,
    )
