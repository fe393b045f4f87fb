"""Help is there at once, however busy the machine is, and says what a command can do and how it ends."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from examples import COMMANDS, PROGRAMS, examples

import dmsh_serving

# Of the child, in seconds: 0.15 to 0.2 on a slow core, where importing numpy alone adds 0.15 and torch 2.
MOST_PROCESSOR_TIME = 0.4

HELPS = {
    "dmsh-train": ("fit", "fine-tune", "evaluate"),
    "dmsh-export": ("onnx", "trt", "parity", "latency", "repository", "lint", "inspect", "tune", "demo"),
    "dmsh-serve": ("start", "check", "status", "query", "load", "gallery", "bench", "web"),
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


@pytest.mark.parametrize("command", ["dmsh-train", "dmsh-serve", "dmsh-serve gallery"])
def test_no_line_of_a_list_of_commands_is_cut_short(command):
    tool, *rest = command.split()
    tool = Path(sys.executable).with_name(tool)
    done = subprocess.run([tool, *rest, "--help"], capture_output=True, text=True, check=True)
    listed = done.stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert listed
    assert [line for line in listed if line.endswith("...")] == []


def test_fit_shows_its_usual_options_first_and_few_of_them():
    tool = Path(sys.executable).with_name("dmsh-train")
    done = subprocess.run([tool, "fit", "--help"], capture_output=True, text=True, check=True)
    usual, *_ = done.stdout.partition("Options:\n")[2].split("\n\n")
    names = re.findall(r"^  (--[a-z-]+)", usual, re.MULTILINE)
    assert {"--out", "--bits", "--backbone", "--epochs"} <= set(names)
    assert len(names) <= 13


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_of_itself(name):
    assert examples(name)
    assert [line for line in examples(name) if not line.startswith(f"{name} ")] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_says_its_version(program):
    tool = Path(sys.executable).with_name(program)
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{program} {dmsh_serving.__version__}\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_shell_completes_commands_and_options(program):
    tool = Path(sys.executable).with_name(program)
    shell = ["bash", "-c", f"{tool} --show-completion; exit $?"]  # which it recognises as its parent
    script = subprocess.run(shell, capture_output=True, text=True, check=True).stdout
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    assert f"{variable}=complete_bash" in script
    name = next(iter(COMMANDS[each].name for each in COMMANDS if each.startswith(f"{program} ")))

    def completed(words, position):
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(position), variable: "complete_bash"}
        done = subprocess.run([tool], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert name in completed(f"{program} {name[:2]}", 1)
    assert "--json" in completed(f"{program} {name} --", 2)
