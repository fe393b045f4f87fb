"""A float checkpoint and calibration images -> the integer network, with what it cost measured on held-out images."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmsh_export import float_graph as floats
from dmsh_export.calibration import POLICIES, Calibration
from dmsh_export.float_graph import FloatGraph
from dmsh_export.float_graph_from_model import float_graph
from dmsh_export.integer_from_float import Converted, integer_from_float
from dmsh_export.scales import ScaleOptions, chosen_scales
from dmsh_model import integer_dmsh
from dmsh_model.evaluation import mean_average_precision
from dmsh_model.integer_dmsh import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.codes import pack, unpack
from dmsh_serving.errors import InputError
from dmsh_serving.images import ImageSet

MIN_IMAGES: Final = 40
HELD_OUT_EVERY: Final = 5  # of the images, one is held out
MAX_HELD_OUT_BYTES: Final = 1 << 27
MAX_HELD_OUT: Final = 1000
_TRIAL_PIXELS = 16 * 224 * 224
_BATCH_PIXELS = 2 * 224 * 224  # measured: larger batches leave the caches and are slower
_MEASURED_A_LAYER = 16  # images
_EQUALISATIONS = (0.5, 1.0)

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LayerCost:
    """One layer of the integer network on held-out images.

    Attributes:
        name: its name in the float network.
        kind: what it is.
        scale: what a step of its output is worth in the float network's units (its largest channel).
        clipped_share: of the float network's values, beyond what the layer can hold.
        signal_to_noise_db: of its output, against the float network's; infinite where they are equal.
        accumulator_bits: log2 of the largest magnitude that its accumulator can reach; None without one.
    """

    name: str
    kind: str
    scale: float
    clipped_share: float
    signal_to_noise_db: float
    accumulator_bits: float | None


@dataclass(frozen=True)
class CodeCost:
    """Codes of held-out images, the integer network's against the float network's.

    mAP is None where the images have no labels (a folder of class folders gives them): half of the images are
    queries, the others the database.
    """

    images: int
    bits_compared: int
    equal_bits_share: float
    logits_signal_to_noise_db: float
    float_map: float | None
    integer_map: float | None


@dataclass(frozen=True)
class Trial:
    """One way to choose the integers, and what it gave on some of the calibration images."""

    policy: str
    equalisation: float
    bias_correction: bool
    logits_signal_to_noise_db: float


@dataclass(frozen=True, eq=False)
class Quantised:
    """The integer network, how it was chosen and what it cost."""

    model: IntegerDMSH
    calibration_images: int
    chosen: Trial
    trials: tuple[Trial, ...]
    layers: tuple[LayerCost, ...]
    codes: CodeCost

    def record(self) -> dict[str, Any]:
        """Return plain JSON types, without the network."""
        plain: dict[str, Any] = {
            "calibration_images": self.calibration_images,
            "chosen": dataclasses.asdict(self.chosen),
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
            "layers": [dataclasses.asdict(cost) for cost in self.layers],
            "codes": dataclasses.asdict(self.codes),
        }
        return {name: _finite(value) for name, value in plain.items()}


def batch_size(image_size: int) -> int:
    """Return how many images at a time keep calibration within the caches and little memory."""
    return max(1, min(64, _BATCH_PIXELS // image_size**2))


def quantise(model: DMSH, batches: Iterable[ImageSet], on_stage: Callable[[str], None] = lambda _: None) -> Quantised:
    """Return the integer form of ``model``, its scales calibrated on four of five images of ``batches``.

    The images are seen once, a batch at a time; of the held-out ones a sample is kept. ``on_stage`` is told what
    begins.

    Raises:
        InputError: the network has an operator without integer form, or there are too few images.
    """
    model.eval()
    graph = float_graph(model)
    calibration = Calibration(graph)
    pixels = model.config.image_size**2
    held_out = _Sample(min(MAX_HELD_OUT, MAX_HELD_OUT_BYTES // (3 * pixels)))
    trial = _Sample(max(16, min(256, _TRIAL_PIXELS // pixels)))
    seen = 0
    for batch in batches:
        chosen = (np.arange(seen, seen + len(batch.images)) + 1) % HELD_OUT_EVERY == 0
        seen += len(batch.images)
        names = np.array(batch.names, dtype=object)
        held_out.add(batch.images[chosen], names[chosen])
        trial.add(batch.images[~chosen], names[~chosen])
        if not chosen.all():
            calibration.add(np.ascontiguousarray(batch.images[~chosen]))
    if seen < MIN_IMAGES:
        raise InputError(
            f"{seen} images are too few, give at least {MIN_IMAGES} (some hundreds are better): four of five set the "
            "range of every tensor, and a value that none of them shows would be clipped; the others judge the result"
        )
    on_stage("choosing scales")
    converted, best, trials = _best(model, graph, calibration, trial.images())
    integer = IntegerDMSH(model.config, converted.network)
    on_stage("comparing codes on held-out images")
    return Quantised(
        integer,
        seen - seen // HELD_OUT_EVERY,
        best,
        tuple(trials),
        _layer_costs(graph, integer, converted.scales, held_out.images()[:_MEASURED_A_LAYER]),
        _code_cost(model, integer, held_out),
    )


class _Sample:
    """A uniform sample of at most ``most`` images of a stream, the same one every time (reservoir sampling)."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen = 0
        self._random = np.random.RandomState(0)
        self._images: list[Images] = []
        self.names: list[str] = []

    def add(self, images: Images, names: npt.NDArray[np.object_]) -> None:
        for image, name in zip(images, names, strict=True):
            self._seen += 1
            place = self._random.randint(self._seen)
            if len(self._images) < self._most:
                # Inserted at random too, so that the order of a sorted folder is lost.
                self._images.insert(place, image.copy())
                self.names.insert(place, name)
            elif place < self._most:
                self._images[place], self.names[place] = image.copy(), name

    def images(self) -> Images:
        return np.stack(self._images)


def _best(
    model: DMSH, graph: FloatGraph, calibration: Calibration, images: Images
) -> tuple[Converted, Trial, list[Trial]]:
    """Try the policies, then equalisation, then bias correction; keep each only where the logits gain."""
    # Not against the model itself: that the image's padding is grey would drown what scales and biases do.
    expected = np.concatenate([_float_logits(graph, images[i : i + 16]) for i in range(0, len(images), 16)])
    means = tuple(tensor.mean for tensor in calibration.tensors)
    trials: list[Trial] = []

    def tried(policy: ScaleOptions, bias_correction: bool) -> Trial:
        converted = converted_with(policy, bias_correction)
        found = IntegerDMSH(model.config, converted.network).logits(images)
        ratio = _decibels(float((expected**2).sum()), float(((found - expected) ** 2).sum()))
        trials.append(Trial(policy.policy, policy.equalisation, bias_correction, ratio))
        return trials[-1]

    def converted_with(options: ScaleOptions, bias_correction: bool) -> Converted:
        return integer_from_float(graph, chosen_scales(calibration, options), means if bias_correction else None)

    def better(first: Trial, *others: Trial) -> Trial:
        return max((first, *others), key=lambda trial: trial.logits_signal_to_noise_db)

    best = better(*(tried(ScaleOptions(policy, 0), False) for policy in POLICIES))
    policy = next(policy for policy in POLICIES if policy == best.policy)
    best = better(best, *(tried(ScaleOptions(policy, share), False) for share in _EQUALISATIONS))
    best = better(best, tried(ScaleOptions(policy, best.equalisation), True))
    return converted_with(ScaleOptions(policy, best.equalisation), best.bias_correction), best, trials


def _float_logits(graph: FloatGraph, images: Images) -> npt.NDArray[np.float64]:
    (logits,) = [value for index, value in floats.outputs(graph, images) if index == len(graph.layers) - 1]
    return logits.double().numpy()


def _layer_costs(
    graph: FloatGraph, found: IntegerDMSH, scales: tuple[Tensor, ...], images: Images
) -> tuple[LayerCost, ...]:
    network = found.network
    count = len(network.layers)
    signal, noise, clipped, values = [0.0] * count, [0.0] * count, [0] * count, [0] * count
    at_once = batch_size(network.image_size)
    for batch in (images[start : start + at_once] for start in range(0, len(images), at_once)):
        pairs = zip(floats.outputs(graph, batch), integer_dmsh.outputs(network, batch), strict=True)
        for (index, wanted), (_, steps) in pairs:
            scale = scales[index].view(-1, *[1] * (wanted.ndim - 2))
            if index == count - 1:
                steps = torch.from_numpy(found.logits(batch))
            else:  # logits are never clipped
                low, high = network.ranges[index]
                clipped[index] += int(((wanted < (low - 0.5) * scale) | (wanted > (high + 0.5) * scale)).sum())
            signal[index] += _power(wanted)
            noise[index] += _power(steps * scale - wanted)
            values[index] += wanted.numel()
    costs = []
    for index, layer in enumerate(network.layers):
        bounds = network.accumulator(index)
        costs.append(
            LayerCost(
                layer.name,
                type(layer).__name__,
                float(scales[index].max()),
                clipped[index] / values[index],
                _decibels(signal[index], noise[index]),
                math.log2(bounds.peak) if bounds and bounds.peak else None,
            )
        )
    return tuple(costs)


def _power(values: Tensor) -> float:
    return float(values.double().square().sum())


def _code_cost(model: DMSH, integer: IntegerDMSH, sample: _Sample) -> CodeCost:
    images = sample.images()
    expected, found = model.logits(images, batch_size(model.config.image_size)), integer.logits(images)
    bits = model.config.bits
    codes = (pack(expected), pack(found))
    equal = float((unpack(codes[0], bits) == unpack(codes[1], bits)).mean())
    classes = [name.split("/", 1)[0] for name in sample.names]
    precision: list[float | None] = [None, None]
    if all("/" in name for name in sample.names) and len(set(classes)) > 1:
        labels = np.unique(np.array(classes), return_inverse=True)[1].astype(np.int64)
        half = len(images) // 2
        precision = [mean_average_precision(c[:half], c[half:], labels[:half], labels[half:]) for c in codes]
    error = found - expected.astype(np.float64)
    ratio = _decibels(float((expected.astype(np.float64) ** 2).sum()), float((error**2).sum()))
    return CodeCost(len(images), len(images) * bits, equal, ratio, precision[0], precision[1])


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _finite(value: Any) -> Any:
    """Replace infinities, which JSON has not, by None."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
