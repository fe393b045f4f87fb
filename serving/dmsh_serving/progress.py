"""Progress of long work on stderr: a moving bar on a terminal, else a line now and then."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.text import Text

__all__ = ["SECONDS_BETWEEN_LINES", "progress"]

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Yield a progress display; stdout stays clean for results."""
    stderr = Console(stderr=True)
    if stderr.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeLeft())
        display = Progress(*columns, console=stderr, transient=True)
    else:
        display = _Lines(console=stderr, disable=True)  # rich would end with an empty line: an error must be one line
    with display:
        yield display


class _Rate(ProgressColumn):
    """How many are done per second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.1f}/s")


class _Lines(Progress):
    """Writes a line when the last one is ten seconds old, so that a log shows that work goes on."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._said_at = time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        now = time.monotonic()
        task = self._tasks[task_id]
        if now < self._said_at + SECONDS_BETWEEN_LINES or not task.visible:
            return
        self._said_at = now
        sys.stderr.write(line_of(task) + "\n")


def line_of(task: Task) -> str:
    """Return one line for a log: what is done, of how much, how fast, how long it will still take."""
    total = "" if task.total is None else f" of {task.total:,.0f}"
    line = f"{task.description}: {task.completed:,.0f}{total}"
    if task.speed:
        line += f", {task.speed:,.1f}/s"
    if task.time_remaining is not None:
        line += f", {_duration(task.time_remaining)} left"
    return line


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
