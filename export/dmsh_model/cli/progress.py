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

_JUDGED_AFTER_SECONDS = 3.0
_LEAST_SHARE_OF_A_CORE = 0.7


class Show:
    """Shows features and epochs as progress, and epochs in a log; in the first process alone."""

    def __init__(self, display: "Progress", epochs: int, visible: bool, log: "Callable[[Epoch], None] | None") -> None:
        self._display, self._epochs, self._visible, self._log = display, epochs, visible, log
        self._tasks: dict[str, TaskID] = {}
        self._began = time.monotonic()
        self._used = time.process_time()
        self._cores_told = not visible

    def features(self, done: int, total: int) -> None:
        """Show how many images have their features, and how many per second."""
        speed = done / max(time.monotonic() - self._began, 1e-9)
        self._update("features", done, total, f"features, {speed:.0f} images/s")

    def epoch(self, epoch: "Epoch") -> None:
        """Show a finished epoch; what is counted is images."""
        done, total = epoch.number * epoch.images, self._epochs * epoch.images
        self._update("training", done, total, f"training, epoch {epoch.number}, loss {epoch.loss:.4f}, images")
        self._tell_of_taken_cores()
        if self._log:
            self._log(epoch)

    def _tell_of_taken_cores(self) -> None:
        """Say once if this process gets much less than one core, as beside other busy processes."""
        waited = time.monotonic() - self._began
        if self._cores_told or waited < _JUDGED_AFTER_SECONDS:
            return
        self._cores_told = True
        share = (time.process_time() - self._used) / waited
        if share < _LEAST_SHARE_OF_A_CORE:
            self._display.console.print(
                f"warning: other work takes the cores, this training gets {share:.0%} of one: it will take about "
                f"{1 / max(share, 0.01):.1f} times as long as on an idle machine",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )

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
