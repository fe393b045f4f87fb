"""Help is there at once, however busy the machine is, and says what a command can do and how it ends."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

# Of the child, in seconds: 0.15 to 0.2 on a slow core, where importing numpy alone adds 0.15 and torch 2.
MOST_PROCESSOR_TIME = 0.4

HELPS = {
    "dmsh-train": ("fit", "fine-tune", "evaluate"),
    "dmsh-export": ("onnx", "trt", "parity", "latency", "repository", "lint", "inspect", "demo"),
    "dmsh-serve": ("start", "query", "gallery", "bench", "web"),
    "dmsh-train fit": ("Split:", "Schedule:", "Weights of the losses:", "Augmentation:", "Machine:"),
    "dmsh-export trt": ("--fp16", "--typed-onnx"),
}


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("command", HELPS)
def test_help_names_everything_at_once_and_the_exit_codes(command):
    tool, *rest = command.split()
    took = []
    for _ in range(5):
        before = processor_seconds()
        done = subprocess.run(
            [Path(sys.executable).with_name(tool), *rest, "--help"], capture_output=True, text=True, check=True
        )
        took.append(processor_seconds() - before)
    assert [word for word in HELPS[command] if word not in done.stdout] == []
    if not rest:
        assert "Exit codes: 0 done, 1 a check failed" in " ".join(done.stdout.split())
    assert min(took) < MOST_PROCESSOR_TIME


def test_fit_shows_its_usual_options_first_and_few_of_them():
    tool = Path(sys.executable).with_name("dmsh-train")
    done = subprocess.run([tool, "fit", "--help"], capture_output=True, text=True, check=True)
    usual, *_ = done.stdout.partition("Options:\n")[2].split("\n\n")
    names = re.findall(r"^  (--[a-z-]+)", usual, re.MULTILINE)
    assert {"--out", "--bits", "--backbone", "--epochs"} <= set(names)
    assert len(names) <= 13
