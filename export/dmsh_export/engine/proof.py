"""The proof that a plan gives the codes of its checkpoint, on a GPU that can run it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_export.engine.manifest import read_plan_manifest
from dmsh_export.engine.runner import TensorRTRunner
from dmsh_export.engine.tensorrt_api import Gpu
from dmsh_export.manifest import add_results
from dmsh_serving.codes import Encoded
from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import CheckError, InputError, MissingError

__all__ = ["Proof", "proof_of", "record_parity"]

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Proof:
    """``proven`` is None for a plan with a code space of its own, which has nothing to prove; ``why`` is for people."""

    proven: bool | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest records."""
        return {"proven": self.proven, "proof": self.why}


def proof_of(plan: Path, parent_fingerprint: str | None, answer: str | None, min_batch: int, gpu: Gpu | None) -> Proof:
    """Run the known answer ``answer`` on ``gpu``, if there is one that can run ``plan``.

    Raises:
        CheckError: one bit differs.
    """
    if parent_fingerprint is not None:
        return Proof(None, "a code space of its own")
    if answer is None:
        return Proof(False, "the model carries no known answer")
    if gpu is None:
        return Proof(False, "it was built where no GPU could run it")
    try:
        with TensorRTRunner(plan, built_here=True) as runner:
            known_answer.check(_padded(lambda images: runner.infer(images).checked(), min_batch), answer)
    except MissingError as error:
        return Proof(False, f"it could not be run where it was built: {error}")
    except CheckError as error:
        raise CheckError(f"the plan is not written, on {gpu.name} it gives other codes: {error}") from error
    return Proof(True, f"the known answer came out bit for bit on {gpu.name}")


def record_parity(plan: Path, sha256: str, bits_compared: int) -> None:
    """Record in the manifest that parity found no wrong bit, if ``plan`` keeps its checkpoint's code space.

    Raises:
        InputError: the plan is not that with ``sha256`` any more, which was compared.
    """
    manifest = read_plan_manifest(plan)
    if manifest.sha256 != sha256:
        raise InputError(f"{plan} was replaced while it was compared, so nothing is recorded: run parity again")
    if manifest.what_is_unproven is not None:
        why = f"parity compared {bits_compared:,} bits with PyTorch's, and found no other"
        add_results(plan, Proof(True, why).to_dict())


def _padded(encode: Callable[[Bytes], Encoded], min_batch: int) -> Callable[[Bytes], Encoded]:
    """Repeat images up to a multiple of the smallest batch, which every profile can divide."""

    def padded(images: Bytes) -> Encoded:
        rows = np.arange(-(-len(images) // min_batch) * min_batch) % len(images)
        found = encode(images[rows])
        return Encoded(found.code[: len(images)], found.logits[: len(images)])

    return padded
