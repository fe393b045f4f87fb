"""Scalars of a training in TensorBoard's event files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dmsh_serving.errors import MissingError

if TYPE_CHECKING:
    from dmsh_model.training.loop import Epoch

__all__ = ["event_files", "require_tensorboard"]


def require_tensorboard() -> None:
    """Raise :class:`MissingError` if event files cannot be written: before a training, not after it."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise MissingError(
            "--log needs the package tensorboard: pip install tensorboard, or leave --log out"
        ) from error


@contextmanager
def event_files(folder: Path) -> Iterator[Callable[["Epoch"], None]]:
    """Yield a function that writes an epoch's losses and validation mAP into ``folder``, with the epoch as the step."""
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def write(epoch: "Epoch") -> None:
            for name, value in epoch.scalars().items():
                writer.add_scalar(name, value, epoch.number)
            writer.flush()

        yield write
