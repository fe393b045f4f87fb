"""A training as it goes on: features and epochs on a display, epochs in a log."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dmsh_model.training.distributed import started_by_torchrun
from dmsh_serving import console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from dmsh_model.training.loop import Epoch


class Show:
    """Shows features and epochs as progress, and epochs in a log; in the first process alone."""

    def __init__(self, display: "Progress", epochs: int, visible: bool, log: "Callable[[Epoch], None] | None") -> None:
        self._display, self._epochs, self._visible, self._log = display, epochs, visible, log
        self._tasks: dict[str, TaskID] = {}
        self._began = time.monotonic()

    def features(self, done: int, total: int) -> None:
        """Show how many images have their features, and how many per second."""
        speed = done / max(time.monotonic() - self._began, 1e-9)
        self._update("features", done, total, f"features, {speed:.0f} images/s")

    def epoch(self, epoch: "Epoch") -> None:
        """Show a finished epoch."""
        self._update("training", epoch.number, self._epochs, f"training, loss {epoch.loss:.4f}")
        if self._log:
            self._log(epoch)

    def _update(self, name: str, done: int, total: int, description: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._display.add_task(name, total=total, visible=self._visible)
        self._display.update(self._tasks[name], completed=done, total=total, description=description)


@contextlib.contextmanager
def shown(epochs: int, log: Path | None) -> Iterator[Show]:
    """Yield what shows a training as progress and in the ``log``."""
    from dmsh_model.training import log as training_log

    first = started_by_torchrun().first
    with contextlib.ExitStack() as stack:
        write_log = stack.enter_context(training_log.event_files(log)) if log and first else None
        yield Show(stack.enter_context(console.progress()), epochs, first, write_log)
