"""Checks of what :mod:`dmsh_serving.contract` states, for everyone who takes images or a k."""

import os
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dmsh_serving.contract import MAX_K
from dmsh_serving.errors import InputError, OtherModelError

__all__ = ["TRUST_PLAN_CODE", "check_images", "check_model", "check_plan_code_is_trusted", "checked_k"]

TRUST_PLAN_CODE = "DMSH_TRUST_PLAN_CODE"


def check_images(images: npt.NDArray[Any], image_size: int, name: str | None = None) -> None:
    """Raise :class:`InputError`, beginning with ``name``, unless ``images`` is uint8 (N, image_size, image_size, 3)."""
    shape = (image_size, image_size, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(
            f"{f'{name}: ' if name else ''}images must be uint8 [N, {image_size}, {image_size}, 3], "
            f"got {images.dtype} {list(images.shape)}"
        )


class _HasCodes(Protocol):
    @property
    def bits(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...


def check_model(place: object, found: _HasCodes, *, bits: int | None, fingerprint: str | None, advice: str) -> None:
    """Raise :class:`OtherModelError` if the codes ``found`` at ``place`` are of another model than asked for.

    None asks for nothing; ``advice`` says what to do.
    """
    wrong = []
    if bits is not None and bits != found.bits:
        wrong.append(f"its codes have {found.bits} bits, not {bits}")
    if fingerprint is not None and fingerprint != found.fingerprint:
        wrong.append(f"its fingerprint is {found.fingerprint}, not {fingerprint}")
    if wrong:
        raise OtherModelError(f"{place} belongs to another model: {' and '.join(wrong)}; {advice}")


def checked_k(k: int) -> int:
    """Return ``k`` if a search may ask for that many, else raise :class:`InputError`."""
    if not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
        raise InputError(f"k = {k} is out of range: ask for 1 to {MAX_K} nearest images")
    return int(k)


def check_plan_code_is_trusted(name: str) -> None:
    """Raise :class:`InputError` unless the caller's environment lets the code in version-compatible plans run.

    Such a plan carries its own runtime, which becomes part of the process that loads it. The file that says so is not
    signed, so it cannot be what decides.
    """
    if os.environ.get(TRUST_PLAN_CODE) != "1":
        raise InputError(
            f"{name} is version-compatible: it carries code, which runs as you when it is loaded; "
            f"if you built it, set {TRUST_PLAN_CODE}=1"
        )
