"""Parity: the bits of a target against PyTorch's, for every image, in every slot of a batch."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_export.compare.runners import Images, Runner
from dmsh_serving.codes import Encoded, unpack
from dmsh_serving.errors import InputError

__all__ = ["BatchInvariance", "ParityReport", "TargetParity", "batches_of_every_size", "compare", "upper_bound_95"]

PIXELS_AT_ONCE = 16 * 128 * 128  # per batch: larger ones leave the caches, and PyTorch takes twice as long per image
LARGE_BATCHES: Final = (16, 32)  # a server and a gallery take up to 32 images at once
_LARGEST_PIXELS: Final = 16 * 224 * 224  # of a large batch: twice as many take 4.7 GB in VGG-19


@dataclass(frozen=True)
class BatchInvariance:
    """A target's codes of the same images alone, in batches of 2 to ``max_batch``, in large ones, and among all images.

    One image is seen in every slot of every size up to ``max_batch``, the first ``max_batch`` images mixed in every
    size and in ``large`` batches; a target that takes fewer at once splits these. ``wrong_codes`` are those that are
    not the target's own of the image alone, right or wrong: it is what the batch changes.
    """

    max_batch: int
    large: tuple[int, ...]
    codes_compared: int
    wrong_codes: int

    @property
    def sizes(self) -> str:
        """The sizes of the batches, for people."""
        return ", ".join([f"1 to {self.max_batch}", *map(str, self.large)])


@dataclass(frozen=True)
class TargetParity:
    """One target against the reference. Margins and errors are in units of the logits.

    ``fingerprint`` is the target's code space; another than the reference's is a low-precision encoder made from it,
    whose codes are measured, not expected to be equal. ``exact_logits`` says that the logits must be the reference's
    too, as those of an integer network are.
    """

    target: str
    fingerprint: str
    images: int
    bits_compared: int
    wrong_bits: int
    images_touched: int
    worst_logit_error: float
    smallest_margin: float
    bits_at_risk: int
    wrong_bit_rate_upper_95: float
    invariance: BatchInvariance
    exact_logits: bool = False

    @property
    def passed(self) -> bool:
        """Whether not one bit differed, nor a logit of an integer network."""
        wrong_logits = self.exact_logits and self.worst_logit_error > 0
        return self.wrong_bits == 0 and self.invariance.wrong_codes == 0 and not wrong_logits


@dataclass(frozen=True)
class ParityReport:
    """All targets against ``reference``, whose code space is ``fingerprint``."""

    reference: str
    fingerprint: str
    targets: tuple[TargetParity, ...]

    @property
    def passed(self) -> bool:
        """Whether every target passed."""
        return all(target.passed for target in self.targets)

    def summary(self) -> str:
        """Return one line: who differs, by how much."""
        failed = [
            f"{target.target}: {target.wrong_bits} of {target.bits_compared} bits differ from {self.reference}'s "
            f"({target.images_touched} of {target.images} images), {target.invariance.wrong_codes} codes change with "
            f"the batch (worst logit error {target.worst_logit_error:.1e}"
            f"{', in an integer network there is none' if target.exact_logits else ''}, smallest margin "
            f"{target.smallest_margin:.1e})"
            for target in self.targets
            if not target.passed
        ]
        return "; ".join(failed) or f"0 wrong bits of {sum(target.bits_compared for target in self.targets)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"passed": self.passed, **dataclasses.asdict(self)}


class _Tally:
    """Running counts of one target over the batches of a comparison, and its codes of the first images."""

    def __init__(self) -> None:
        self.first_codes: list[npt.NDArray[np.uint8]] = []
        self.wrong_bits = 0
        self.images_touched = 0
        self.worst_error = 0.0

    def add(self, expected: Encoded, found: Encoded, bits: int, kept: int) -> None:
        if kept > 0:
            self.first_codes.append(found.code[:kept])
        wrong = (unpack(found.code, bits) != unpack(expected.code, bits)).sum(axis=1)
        self.wrong_bits += int(wrong.sum())
        self.images_touched += int((wrong > 0).sum())
        error = np.abs(found.logits.astype(np.float64) - expected.logits)
        self.worst_error = max(self.worst_error, float(error.max(initial=0.0)))


def compare(
    reference: Runner,
    targets: Sequence[Runner],
    images: Images,
    *,
    max_batch: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> ParityReport:
    """Compare the codes of ``targets`` with those of ``reference`` on ``images`` (N, H, W, 3) uint8, every bit.

    Then the :class:`BatchInvariance` of each target. ``on_progress(done, total)`` counts images of the comparison.

    Raises:
        InputError: no images, or a target of another code space, bit count or image size.
    """
    if not len(images):
        raise InputError("no images to compare codes on: give at least one")
    with contextlib.ExitStack() as stack:
        for runner in (reference, *targets):
            stack.enter_context(runner)
        for target in targets:
            _check_same_space(reference, target)
        tallies = [_Tally() for _ in targets]
        batch_size = max(1, min(512, PIXELS_AT_ONCE // reference.image_size**2))
        smallest_margin = float("inf")
        margins = []
        for start in range(0, len(images), batch_size):
            batch = np.ascontiguousarray(images[start : start + batch_size])
            expected = reference.infer(batch).checked()
            margins.append(np.abs(expected.logits))
            smallest_margin = min(smallest_margin, float(margins[-1].min()))
            for tally, target in zip(tallies, targets, strict=True):
                tally.add(expected, target.infer(batch).checked(), reference.bits, max_batch - start)
            if on_progress:
                on_progress(min(start + batch_size, len(images)), len(images))
        probe = np.ascontiguousarray(images[:max_batch])
        return ParityReport(
            reference.name,
            reference.fingerprint,
            tuple(
                TargetParity(
                    target=target.name,
                    fingerprint=target.fingerprint,
                    images=len(images),
                    bits_compared=len(images) * reference.bits,
                    wrong_bits=tally.wrong_bits,
                    images_touched=tally.images_touched,
                    worst_logit_error=tally.worst_error,
                    smallest_margin=smallest_margin,
                    # Without any error no bit is at risk, not even one whose logit is exactly 0.
                    bits_at_risk=sum(int((margin <= tally.worst_error).sum()) for margin in margins)
                    if tally.worst_error
                    else 0,
                    wrong_bit_rate_upper_95=upper_bound_95(tally.wrong_bits, len(images) * reference.bits),
                    invariance=_batch_invariance(target, probe, np.concatenate(tally.first_codes), max_batch),
                    exact_logits=reference.is_exact and target.fingerprint == reference.fingerprint,
                )
                for tally, target in zip(tallies, targets, strict=True)
            ),
        )


def _check_same_space(reference: Runner, target: Runner) -> None:
    for what in ("fingerprint", "bits", "image_size"):
        ours, theirs = getattr(reference, what), getattr(target, what)
        measured = what == "fingerprint" and target.parent_fingerprint == ours
        if ours != theirs and not measured:
            raise InputError(
                f"{target.name} is of another code space than {reference.name}: {what} {theirs} is not {ours}; "
                "export it from this checkpoint"
            )
    if None not in (reference.framing, target.framing) and reference.framing != target.framing:
        raise InputError(
            f"{target.name} has pictures framed as {target.framing}, {reference.name} as {reference.framing}: "
            "export it from this checkpoint"
        )


def _batch_invariance(
    target: Runner, probe: Images, among_all: npt.NDArray[np.uint8], max_batch: int
) -> BatchInvariance:
    alone = np.concatenate([target.infer(probe[row : row + 1]).code for row in range(len(probe))])
    compared, wrong = len(probe), int((among_all != alone).any(axis=1).sum())
    large = tuple(
        size for size in LARGE_BATCHES if size > max_batch and size * probe[0, ..., 0].size <= _LARGEST_PIXELS
    )
    # Rotated, so that images stand in other slots in each; a multiple of their number would leave them where they are.
    mixed = ((np.arange(size) + size.bit_length()) % len(probe) for size in large)
    for rows in chain(batches_of_every_size(len(probe), max_batch), mixed):
        found = target.infer(probe[rows]).code
        compared += len(rows)
        wrong += int((found != alone[rows]).any(axis=1).sum())
    return BatchInvariance(max_batch, large, compared, wrong)


def batches_of_every_size(count: int, max_batch: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield row indices of batches of every size 1 to ``max_batch`` made of ``count`` images.

    For each size two batches: the first image in every slot, and all images mixed, rotated so that each size puts
    others in other slots.
    """
    for size in range(1, max_batch + 1):
        yield np.zeros(size, np.int64)
        yield (np.arange(size) + size) % count


def upper_bound_95(wrong: int, compared: int) -> float:
    """Return the Clopper-Pearson one-sided 95% upper bound on a rate, from ``wrong`` events of ``compared``.

    Bits of one image are not independent, so read it as the bound for bits drawn like these. With 0 wrong it is
    close to 3 / compared ("rule of three").
    """
    from scipy.special import betaincinv

    return 1.0 if wrong >= compared else float(betaincinv(wrong + 1, compared - wrong, 0.95))
