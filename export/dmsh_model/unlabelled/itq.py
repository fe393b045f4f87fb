"""PCA and iterative quantisation: features to bits without labels.

Gong, Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes", CVPR 2011. Features are
projected on their principal components, which are then rotated so that they lie near the corners of a cube. Here each
feature is first divided by its deviation, so that a scale of small values counts like one of large values.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dmsh_serving.errors import InputError

__all__ = ["Floats", "Moments", "Projection", "principal_components", "rotation"]

Floats = npt.NDArray[np.float64]

_ITERATIONS = 50
_LEAST_DEVIATION = 1e-5  # as a share of the mean: less is float32's rounding of a constant


@dataclass
class Moments:
    """Count, sum and sum of outer products of feature vectors, added block by block: memory depends on F alone.

    Sums are taken of the distances from the first block's mean, so that large means do not cancel.
    """

    features: int
    count: int = 0
    _origin: Floats | None = None
    _sum: Floats = field(init=False)
    _outer: Floats = field(init=False)

    def __post_init__(self) -> None:
        """Begin at nothing."""
        self._sum, self._outer = np.zeros(self.features), np.zeros((self.features, self.features))

    def add(self, taps: npt.NDArray[np.float32]) -> None:
        """Add feature vectors (N, F)."""
        values = taps.astype(np.float64)
        if self._origin is None:
            self._origin = values.mean(0)
        values -= self._origin
        self.count += len(values)
        self._sum += values.sum(0)
        self._outer += values.T @ values

    def mean(self) -> Floats:
        """Return the mean, (F,)."""
        return (self._origin if self._origin is not None else 0.0) + self._sum / max(self.count, 1)

    def covariance(self) -> Floats:
        """Return the covariance, (F, F)."""
        mean = self._sum / max(self.count, 1)
        return np.asarray(self._outer / max(self.count, 1) - np.outer(mean, mean))


@dataclass(frozen=True, eq=False)
class Projection:
    """Feature vectors (N, F) -> principal components (N, K): ``(x - mean) / deviation @ components``.

    Attributes:
        mean: (F,).
        deviation: (F,), above 0.
        components: (F, K), orthonormal columns.
        explained: share of the variance of the features that the components hold.
    """

    mean: Floats
    deviation: Floats
    components: Floats
    explained: float

    def of(self, taps: npt.NDArray[np.float32]) -> Floats:
        """Project feature vectors."""
        return np.asarray((taps - self.mean) / self.deviation @ self.components)


def principal_components(moments: Moments, bits: int) -> Projection:
    """Return the projection on the first ``bits`` principal components of standardised features.

    Raises:
        InputError: fewer features that differ than bits, or fewer images.
    """
    covariance, mean = moments.covariance(), moments.mean()
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    varying = deviation > _LEAST_DEVIATION * np.abs(mean)
    if not varying.any():
        raise InputError("the trunk gives the same features for all images: are they all alike, or of one colour?")
    most = min(int(varying.sum()), moments.count - 1)
    if bits > most:
        raise InputError(
            f"{bits} bits are more than the {most} directions in which {moments.count} images with "
            f"{int(varying.sum())} features differ: fewer --bits, or more images"
        )
    deviation = np.where(varying, deviation, 1.0)
    correlation = np.where(np.outer(varying, varying), covariance / np.outer(deviation, deviation), 0.0)
    values, vectors = np.linalg.eigh(correlation)
    components = vectors[:, ::-1][:, :bits]
    # An eigenvector's sign is arbitrary: the largest entry positive makes it the same on every machine.
    components = components * np.sign(components[np.abs(components).argmax(0), np.arange(bits)])
    return Projection(mean, deviation, components, float(values[::-1][:bits].sum() / values.sum()))


def rotation(projected: Floats, seed: int) -> Floats:
    """Return the (K, K) rotation that brings ``projected`` (N, K) near to its own signs: ITQ, from a random one."""
    bits = projected.shape[1]
    found, _ = np.linalg.qr(np.random.RandomState(seed).standard_normal((bits, bits)))
    for _ in range(_ITERATIONS):
        signs = np.where(projected @ found > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(signs.T @ projected)
        found = (left @ right).T
    return np.asarray(found)
