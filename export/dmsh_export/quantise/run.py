"""A float checkpoint and calibration images -> the integer network, and its cost on held-out images."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_export.quantise import float_graph as floats
from dmsh_export.quantise.batches import Images, Sample, batch_size, first_images
from dmsh_export.quantise.calibration import POLICIES, Calibration
from dmsh_export.quantise.cost import CodeCost, LayerCost, code_cost, layer_costs, signal_to_noise_db
from dmsh_export.quantise.float_graph import FloatGraph
from dmsh_export.quantise.float_graph_from_model import float_graph
from dmsh_export.quantise.integer_from_float import Converted, integer_from_float
from dmsh_export.quantise.refit import Refit, refitted
from dmsh_export.quantise.scales import ScaleOptions, chosen_scales
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.errors import InputError
from dmsh_serving.images.read import ImageSet

__all__ = ["MIN_IMAGES", "PADDING_IMAGES", "Quantised", "Trial", "quantise"]

MIN_IMAGES: Final = 40
PADDING_IMAGES: Final = 16  # images that measure the cost of grey padding
HELD_OUT_EVERY: Final = 5  # every fifth image is held out
MAX_SAMPLE: Final = 1000
MAX_SAMPLE_BYTES: Final = 1 << 26
"""Of the images that are kept: the held-out ones, and as many of the others, which choose the integers."""
_TRIAL_PIXELS = 16 * 224 * 224  # of the images that every trial computes
_MEASURED_PER_LAYER = 16  # images
_EQUALISATIONS = (0.5, 1.0)
_PADDING_MATTERS_BELOW = 30.0  # dB: above, rounding costs more than padding, and a centring layer gains nothing


@dataclass(frozen=True)
class Trial:
    """One way to choose the integers, and its logits' quality on some of the calibration images."""

    policy: str
    equalisation: float
    corrected: bool
    logits_signal_to_noise_db: float


@dataclass(frozen=True, eq=False)
class Quantised:
    """The integer network, how it was chosen, and its cost.

    Attributes:
        model: the integer network.
        calibration_images: number of images that set the scales.
        padding_signal_to_noise_db: quality of the float logits if padding is grey, the value 128, instead of the mean.
        centred: whether a first layer moves the mean to 0, so that padding is with the mean.
        chosen: the best of ``trials``.
        trials: every way that was tried.
        layers: the cost of each layer.
        codes: the cost in the codes.
    """

    model: IntegerDMSH
    calibration_images: int
    padding_signal_to_noise_db: float
    centred: bool
    chosen: Trial
    trials: tuple[Trial, ...]
    refit: Refit
    layers: tuple[LayerCost, ...]
    codes: CodeCost

    def record(self) -> dict[str, Any]:
        """Return plain JSON types, without the network."""
        plain: dict[str, Any] = {
            "calibration_images": self.calibration_images,
            "padding_signal_to_noise_db": self.padding_signal_to_noise_db,
            "centred": self.centred,
            "chosen": dataclasses.asdict(self.chosen),
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
            "refit": dataclasses.asdict(self.refit),
            "layers": [dataclasses.asdict(cost) for cost in self.layers],
            "codes": dataclasses.asdict(self.codes),
        }
        return {name: _finite(value) for name, value in plain.items()}


def quantise(
    model: DMSH,
    batches: Iterable[ImageSet],
    on_stage: Callable[[str], None] = lambda _: None,
    *,
    padding_images: Images | None = None,
) -> Quantised:
    """Return the integer form of ``model``: four of five images of ``batches`` set its scales, the fifth judges it.

    Each image is read once, one batch at a time; a sample of the held-out images is kept.

    Args:
        model: the float network.
        batches: the images with their names.
        on_stage: called with the name of each stage as it begins.
        padding_images: (n, H, W, 3) uint8, images of every class (:data:`PADDING_IMAGES` are enough). They measure the
            cost of grey padding, which decides whether a first layer moves the mean to 0. None takes the first of
            ``batches``, which must then be in random order.

    Raises:
        InputError: the network has an operator without integer form, or there are too few images.
    """
    model.eval()
    if padding_images is None:
        padding_images, batches = first_images(batches, PADDING_IMAGES)
    graph, as_trained = float_graph(model), float_graph(model, centred=True)
    padding = _padding_cost(model, graph, padding_images)
    if padding < _PADDING_MATTERS_BELOW:
        graph = as_trained
    calibration = Calibration(graph)
    pixels = model.config.image_size**2
    held_out, used = (Sample(min(MAX_SAMPLE, MAX_SAMPLE_BYTES // (3 * pixels))) for _ in range(2))
    seen = 0
    for batch in batches:
        chosen = (np.arange(seen, seen + len(batch.images)) + 1) % HELD_OUT_EVERY == 0
        seen += len(batch.images)
        names = np.array(batch.names, dtype=object)
        held_out.add(batch.images[chosen], names[chosen])
        used.add(batch.images[~chosen], names[~chosen])
        if not chosen.all():
            calibration.add(np.ascontiguousarray(batch.images[~chosen]))
    if seen < MIN_IMAGES:
        raise InputError(
            f"{seen} images are too few, give at least {MIN_IMAGES} (some hundreds are better): four of five set the "
            "range of every tensor, and a value beyond it would be clipped; the others judge the result"
        )
    on_stage("choosing scales")
    images = used.images()
    trial = images[: max(16, min(256, _TRIAL_PIXELS // pixels))]  # the sample is in random order
    converted, best, trials = _best(model, graph, calibration, trial)
    on_stage("fitting the head to the integer trunk")
    converted, refit = refitted(graph, converted, calibration, as_trained, images)
    del used, images, trial  # as large as the sample of held-out images
    integer = IntegerDMSH(model.config, converted.network)
    on_stage("comparing codes on held-out images")
    return Quantised(
        integer,
        seen - seen // HELD_OUT_EVERY,
        padding,
        graph is as_trained,
        best,
        tuple(trials),
        refit,
        layer_costs(graph, integer, converted.scales, held_out.images()[:_MEASURED_PER_LAYER]),
        code_cost(model, integer, held_out),
    )


def _padding_cost(model: DMSH, graph: FloatGraph, images: Images) -> float:
    if not len(images):
        return math.inf
    expected = model.logits(images, batch_size(model.config.image_size)).astype(np.float64)
    return signal_to_noise_db(expected, _float_logits(graph, images))


def _best(
    model: DMSH, graph: FloatGraph, calibration: Calibration, images: Images
) -> tuple[Converted, Trial, list[Trial]]:
    """Try the policies, then equalisation, then plain rounding; keep what gives the best logits."""
    # Not against the model itself: grey padding would cost more there than scales and biases can change.
    expected = _float_logits(graph, images)
    found: dict[Trial, Converted] = {}

    def tried(options: ScaleOptions, *, corrected: bool = True) -> Trial:
        scales = chosen_scales(calibration, options)
        converted = integer_from_float(graph, scales, calibration if corrected else None)
        ratio = signal_to_noise_db(expected, IntegerDMSH(model.config, converted.network).logits(images))
        trial = Trial(options.policy, options.equalisation, corrected, ratio)
        found[trial] = converted
        return trial

    def better(first: Trial, *others: Trial) -> Trial:
        return max((first, *others), key=lambda trial: trial.logits_signal_to_noise_db)

    best = better(*(tried(ScaleOptions(policy, 0)) for policy in POLICIES))
    policy = next(policy for policy in POLICIES if policy == best.policy)
    best = better(best, *(tried(ScaleOptions(policy, share)) for share in _EQUALISATIONS))
    best = better(best, tried(ScaleOptions(policy, best.equalisation), corrected=False))
    return found[best], best, list(found)


def _float_logits(graph: FloatGraph, images: Images) -> npt.NDArray[np.float64]:
    last = len(graph.layers) - 1
    at_once = batch_size(images.shape[1])
    parts = [
        value.double().numpy()
        for start in range(0, len(images), at_once)
        for index, value in floats.outputs(graph, images[start : start + at_once])
        if index == last
    ]
    return np.concatenate(parts)


def _finite(value: Any) -> Any:
    """Replace infinities, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
