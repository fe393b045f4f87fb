"""Fine-tuning the integer network: codes that follow the float network's, learnt in the integer network's arithmetic.

The teacher is the float network that the integers were made from. Its logits are the target, beside what labels say.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmsh_model import checkpoint
from dmsh_model.config import LossWeights
from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.data.split import SplitOptions, split_images, split_record
from dmsh_model.evaluation.mean_average_precision import mean_average_precision
from dmsh_model.finetune.network import TrainableIntegerNetwork
from dmsh_model.finetune.split import fine_tunings, seen_queries
from dmsh_model.integer import checkpoint as integer_checkpoint
from dmsh_model.integer.layers import HIGHEST, LOWEST
from dmsh_model.integer.network import IntegerNetwork
from dmsh_model.integer.reference import IntegerDMSH, features, head_logits
from dmsh_model.network import DMSH
from dmsh_model.training import loop as training_loop
from dmsh_model.training.loop import Epoch, Examples, Trainee
from dmsh_model.training.losses import Losses, distillation_loss, total_loss
from dmsh_model.training.options import FINE_TUNING, UNCHANGED, TrainingOptions
from dmsh_model.training.state import state_path
from dmsh_serving.codes import Codes, pack, unpack
from dmsh_serving.errors import InputError

__all__ = ["NOISE", "FineTuned", "HeldOut", "Start", "fine_tune", "read_start"]

NOISE: Final = 0.3  # as a head on a frozen trunk has it: without, few images are learnt by heart
_FOR_FLOAT_TRAINING = ("trunk_rate", "validation_share", "patience", "device", "mixed_precision")


@dataclass(frozen=True, eq=False)
class Start:
    """An integer network, the float network that it was made from, and the records that their checkpoints keep."""

    model: IntegerDMSH
    teacher: DMSH
    training: dict[str, Any]
    quantisation: dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """How one network does on held-out queries: mAP@all, and the share of their bits that are the teacher's."""

    map_all: float
    equal_bits_share: float


@dataclass(frozen=True, eq=False)
class FineTuned:
    """The fine-tuned network, the record its checkpoint keeps, and held-out queries before, after, and in float.

    ``record["queries_trained_on"]`` is how many queries this chain of checkpoints was trained on before: 0 if all
    are held out, None if that cannot be known.
    """

    model: IntegerDMSH
    record: dict[str, Any]
    teacher: HeldOut
    before: HeldOut
    after: HeldOut


def read_start(integer: Path, teacher: Path) -> Start:
    """Read an integer checkpoint and the float one that it was made from.

    Raises:
        InputError: one is missing, damaged or of the other kind, or they do not belong together.
    """
    header = checkpoint.read_header(integer)
    if header.get("kind", checkpoint.FLOAT) != checkpoint.INTEGER:
        raise InputError(f"{integer} is a float checkpoint: name the integer one that dmsh-export quantize makes of it")
    model, teaching = integer_checkpoint.load(integer), checkpoint.load(teacher)
    parent, given = header.get("parent_fingerprint"), teaching.fingerprint
    if parent != given:
        raise InputError(
            f"{integer} was made from the float checkpoint of fingerprint {str(parent)[:12]}, {teacher} is "
            f"{given[:12]}: give the one it was made from"
        )
    records = (checkpoint.read_header(teacher).get("training"), header.get("quantisation"))
    return Start(model, teaching, *(record if isinstance(record, dict) else {} for record in records))


def fine_tune(
    start: Start,
    data: LabelledImages,
    split_options: SplitOptions,
    options: TrainingOptions,
    out: Path,
    *,
    weights: LossWeights = LossWeights(),
    whole: bool = False,
    noise: float = NOISE,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> FineTuned:
    """Fine-tune ``start.model`` towards its teacher's logits and write the integer checkpoint ``out``.

    The head alone learns, from the trunk's pooled features and the teacher's logits of each image, which are computed
    once; with ``whole`` the trunk learns too, at the price of computing every image in every epoch. Topology, shifts
    and clips are kept: only weights and biases learn. Resuming, reproducing and the state of an unfinished training are
    as in :func:`dmsh_model.training.run.fit`.

    Args:
        start: the networks to start from.
        data: images of the networks' size; their labels count in ``weights`` and in what is measured.
        split_options: how they are split, best as the teacher's were; only the training part is learnt from.
        options: how to train; a weight is learnt in units of 128, so that all lie between -1 and 1.
        out: the checkpoint folder.
        weights: weights of the training's losses, beside distillation, whose weight is 1; with all of them 0 the codes
            follow the float network's alone.
        whole: train the trunk too; only then may ``options`` change images at random.
        noise: deviation of the Gaussian noise on the features that a head learns from, as a share of their own.
        resume: continue after the last finished epoch.
        overwrite: replace the checkpoint or the unfinished training at ``out``.
        on_epoch: called after every epoch.

    Raises:
        InputError: the networks do not fit ``data``, ``out`` is taken, or the state is of another training.
        CheckError: a loss or a weight became NaN or infinite; the state of the epoch before is kept.
    """
    unknown = [name for name in _FOR_FLOAT_TRAINING if getattr(options, name) != getattr(FINE_TUNING, name)]
    if unknown:
        raise InputError(f"{', '.join(unknown)}: options of float training; fine-tuning in integers does without them")
    if not whole and options.augmentation != UNCHANGED:
        raise InputError("augmentation: a trunk that does not learn sees each image once; train the whole network")
    if not (noise >= 0 and math.isfinite(noise)):
        raise InputError(f"noise = {noise} must be 0 or more")
    if whole and noise != NOISE:
        raise InputError("noise: it is added to the features of a trunk that does not learn; leave it out")
    config = start.model.config
    if data.images.shape[1] != config.image_size:
        raise InputError(f"{data.source} has images of {data.images.shape[1]} pixels, the network {config.image_size}")
    if weights.classification and config.num_classes not in (0, len(data.class_names)):
        raise InputError(
            f"the float network knows {config.num_classes} classes, {data.source} {len(data.class_names)}: give the "
            "classification loss the weight 0"
        )
    checkpoint.check_target(out, overwrite=overwrite, kind=checkpoint.INTEGER)
    split = split_images(data, split_options)
    if len(split.train) < 2:
        raise InputError(f"{data.source}: {len(split.train)} training images, the losses compare pairs")
    parent = start.teacher.fingerprint
    record: dict[str, Any] = {
        "made_from": start.model.fingerprint,
        "teacher": parent,
        "options": dataclasses.asdict(options),
        "loss": dataclasses.asdict(weights),
        "whole": whole,
        "noise": 0.0 if whole else noise,
        "split": split_record(split_options, split),
        "data_sha256": data.sha256,
    }
    tunings = fine_tunings(start.quantisation)
    seen = seen_queries([start.training, *tunings], data, record["data_sha256"], split)
    state = training_loop.unfinished(out, record, resume=resume, overwrite=overwrite)

    with training_loop.own_random_numbers_and_threads(options):
        torch.manual_seed(options.seed)
        network = start.model.network
        trainable = TrainableIntegerNetwork(network, head_only=not whole)
        labels, rows = torch.from_numpy(data.labels), torch.from_numpy(split.train)
        target = start.teacher.logits(data.images)
        seen_by = _Images(start, data) if whole else _PooledFeatures(network, data, target, rows, noise)
        trainee = Trainee(
            trainable, _losses(trainable, start.teacher, weights, seen_by.inputs_and_targets), trainable.constrain
        )
        examples = Examples(seen_by.examples, labels, rows)
        training_loop.run(trainee, examples, options, state_path(out), record, state, on_epoch)
        tuned = IntegerDMSH(config, trainable.network())
        teacher, before, after = (
            _held_out(codes, pack(target), config.bits, data, split)
            for codes in (pack(target), seen_by.codes(network), seen_by.codes(tuned.network))
        )
    measured = {"float": teacher, "before": before, "after": after}
    record |= {"source": data.source, "queries_trained_on": seen}
    record |= {name: dataclasses.asdict(result) for name, result in measured.items()}
    if tunings:
        record["earlier"] = tunings[0]
    integer_checkpoint.save(
        tuned,
        out,
        parent=parent,
        training=start.training,
        quantisation={**start.quantisation, "fine_tuning": record},
        overwrite=overwrite,
    )
    state_path(out).unlink()
    return FineTuned(tuned, record, teacher, before, after)


class _Images:
    """The whole network learns: each image is computed anew, by the teacher too."""

    def __init__(self, start: Start, data: LabelledImages) -> None:
        self._start, self._images = start, data.images
        self.examples = torch.from_numpy(data.images)

    def inputs_and_targets(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network takes in, and the teacher's logits, for a batch of ``examples`` as augmented."""
        pixels = pixels.round()  # augmentation gives fractions, an image has none
        with torch.no_grad():
            return pixels, self._start.teacher(pixels)

    def codes(self, network: IntegerNetwork) -> Codes:
        """Return the codes of all images."""
        return IntegerDMSH(self._start.model.config, network).codes(self._images)


class _PooledFeatures:
    """The head alone learns: features and the teacher's logits are computed once, and an example is its row."""

    def __init__(
        self,
        network: IntegerNetwork,
        data: LabelledImages,
        target: npt.NDArray[np.float32],
        learnt: Tensor,
        noise: float,
    ) -> None:
        self._features, self._target = features(network, data.images), target
        deviation = self._features[learnt.numpy()].std(0, dtype=np.float64)
        self._noise = torch.from_numpy(noise * deviation).to(torch.float32)
        self.examples = torch.arange(len(data.images))

    def inputs_and_targets(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the head takes in, with new noise, and the teacher's logits, for a batch of ``examples``."""
        chosen = rows.to(torch.int64).numpy()  # the loop hands on float32, which is exact for 2^24 rows
        pooled = torch.from_numpy(self._features[chosen]).to(torch.float32)
        moved = (pooled + self._noise * torch.randn_like(pooled)).round_().clamp_(LOWEST, HIGHEST)
        return moved, torch.from_numpy(self._target[chosen])

    def codes(self, network: IntegerNetwork) -> Codes:
        """Return the codes of all images."""
        return pack(head_logits(network, self._features))


def _losses(
    trainable: TrainableIntegerNetwork,
    teacher: DMSH,
    weights: LossWeights,
    inputs_and_targets: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Callable[[Tensor, Tensor], Losses]:
    def losses(examples: Tensor, labels: Tensor) -> Losses:
        inputs, target = inputs_and_targets(examples)
        logits = trainable(inputs)
        # The teacher's classifier is not trained: it holds what its codes meant.
        scores = teacher.classifier(torch.tanh(logits)) if teacher.classifier and weights.classification else None
        labelled = total_loss(logits, labels, scores, weights)
        distillation = distillation_loss(logits, target)
        return dataclasses.replace(labelled, total=labelled.total + distillation, distillation=distillation)

    teacher.eval()
    return losses


def _held_out(codes: Codes, teacher: Codes, bits: int, data: LabelledImages, split: Split) -> HeldOut:
    queries, database = split.query, split.database
    precision = mean_average_precision(codes[queries], codes[database], data.labels[queries], data.labels[database])
    equal = unpack(codes[queries], bits) == unpack(teacher[queries], bits)
    return HeldOut(precision, float(equal.mean()))
