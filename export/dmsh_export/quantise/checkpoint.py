"""A float checkpoint and a folder of images -> an integer checkpoint: the files around a quantisation."""

from collections.abc import Callable
from pathlib import Path

from dmsh_export.quantise.batches import batch_size, spread_batches, spread_images
from dmsh_export.quantise.run import PADDING_IMAGES, Quantised, quantise
from dmsh_model import checkpoint as float_checkpoint
from dmsh_model.integer import checkpoint as integer_checkpoint
from dmsh_serving.images.read import Progress, iter_image_batches

__all__ = ["quantise_checkpoint"]


def quantise_checkpoint(
    checkpoint: Path,
    images: Path,
    out: Path,
    *,
    most: int | None = None,
    overwrite: bool = False,
    skip_bad: bool = False,
    on_progress: Progress | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Quantised:
    """Write the integer form of the float ``checkpoint`` to the folder ``out``, calibrated on ``images``.

    Args:
        checkpoint: a float checkpoint.
        images: a folder of images or an .npy file, as :func:`dmsh_serving.images.read.iter_image_batches` takes them.
        out: the integer checkpoint to write, whole or not at all.
        most: calibrate on at most this many of the images, spread evenly; None takes all.
        overwrite: replace a checkpoint at ``out``.
        skip_bad: leave out images that cannot be read.
        on_progress: called with (images done, images in all).
        on_stage: is told what begins.

    Raises:
        InputError: no float checkpoint, too few images, unreadable ones, or ``out`` is taken.
    """
    float_checkpoint.check_target(out, overwrite=overwrite, kind=float_checkpoint.INTEGER)
    model = float_checkpoint.load(checkpoint)
    size, framing = model.config.image_size, model.config.framing
    if most is None:
        batches = iter_image_batches(
            images, size, batch_size(size), framing, skip_bad=skip_bad, on_progress=on_progress
        )
    else:
        batches = spread_batches(
            images, size, batch_size(size), most, framing, skip_bad=skip_bad, on_progress=on_progress
        )
    quantised = quantise(
        model,
        batches,
        on_stage=on_stage,
        padding_images=spread_images(images, size, PADDING_IMAGES, framing),
    )
    integer_checkpoint.save(
        quantised.model,
        out,
        parent=model.fingerprint,
        training=float_checkpoint.read_header(checkpoint).get("training", {}),
        quantisation=quantised.record(),
        overwrite=overwrite,
    )
    return quantised
