"""What a training shows: images per second, the time left, and that other work takes the cores."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from dmsh_model.cli import progress
from dmsh_model.cli.fit import _ask_whether_these_are_classes
from dmsh_model.cli.progress import Show
from dmsh_model.training.loop import Epoch


def epoch(number):
    return Epoch(number, 5, 1.0, *[0.0] * 6, images=640)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that passed, and seconds of the processor that were used: [waited, used]."""
    now = [0.0, 0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.time, "process_time", lambda: now[1])
    return now


def shown(clock, seconds, used, epochs=5):
    """Return what a training says that takes so many seconds per epoch, and so many of the processor."""
    said = io.StringIO()
    display = Progress(console=Console(file=said, width=200), disable=True, get_time=lambda: clock[0])
    show = Show(display, epochs, visible=True, log=None)
    for number in range(1, epochs + 1):
        clock[0] += seconds
        clock[1] += used
        show.epoch(epoch(number))
    return said.getvalue(), display.tasks[0]


def test_a_training_counts_images(clock):
    said, task = shown(clock, seconds=2.0, used=2.0)
    assert (said, task.completed, task.total, task.speed) == ("", 3200, 3200, 320)


def test_a_training_beside_other_work_says_so_once(clock):
    said, _ = shown(clock, seconds=2.0, used=0.5)
    assert said == (
        "warning: other work takes the cores, this training gets 25% of one: it will take about 4.0 times as long as "
        "on an idle machine\n"
    )


def test_a_short_training_is_not_judged(clock):
    assert shown(clock, seconds=0.1, used=0.0)[0] == ""


@pytest.mark.parametrize(("count", "asked"), [(500, True), (499, False)])
def test_few_and_huge_classes_are_asked_about(count, asked, capsys):
    import numpy as np

    from dmsh_model.data.labelled import LabelledImages

    labels = np.repeat(np.arange(2), count)
    names = [str(row) for row in range(2 * count)]
    images = np.zeros((2 * count, 1, 1, 3), np.uint8)
    _ask_whether_these_are_classes(LabelledImages("folder", images, labels, names, ["apple", "google"]))
    assert ("note: only 2 classes: apple (500), google (500)." in capsys.readouterr().out) == asked
