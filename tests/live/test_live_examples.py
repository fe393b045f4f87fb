"""The examples that end every command's help do what they say: all are run, in one folder."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import clickhouse_world
import numpy as np
import pytest
from examples import COMMANDS, PROGRAMS, examples
from PIL import Image

from dmsh_export.tune.run import Effort
from dmsh_serving.load.measure import Measuring
from dmsh_serving.triton.server.launcher import free_ports

# What an example needs is made by those before it. The others follow in the order of the help.
FIRST = (
    "dmsh-train fit",
    "dmsh-export quantize",
    "dmsh-export onnx",
    "dmsh-serve gallery build",
    "dmsh-export repository",
)
SERVED = ("dmsh-serve start", "dmsh-serve query", "dmsh-serve load", "dmsh-serve check", "dmsh-serve status")
ELSEWHERE = {
    "dmsh-export demo": "takes minutes: tests/dmsh_export/demo runs its code, make demo all of it",
    "dmsh-serve web": "serves until it is stopped: tests/dmsh_serving/web",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 40 photos in two classes, and two more to append."""
    root = tmp_path_factory.mktemp("examples")
    random = np.random.default_rng(0)
    for channel, colour in enumerate(("red", "green")):
        for kind, count in (("photos", 20), ("more", 1)):
            (root / kind / colour).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 100, (32, 32, 3), np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(root / kind / colour / f"{kind}-{number:02d}.png")
    (root / "build").mkdir()
    return root


@pytest.fixture(scope="module")
def in_clickhouse():
    """The address of a gallery in a ClickHouse that needs no server."""
    return clickhouse_world.address()


def run(line, monkeypatch):
    """Run a command line as its console script would, but in this process, where torch is imported once."""
    arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        PROGRAMS[arguments[0]].main()
    return end.value.code or 0


ORDER = [*FIRST, *(name for name in COMMANDS if name not in (*FIRST, *SERVED, *ELSEWHERE))]


@pytest.mark.parametrize("name", ORDER)
def test_the_example_runs(name, folder, in_clickhouse, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    briefly = Effort((1,), 3, 0.1, 1, (1,), Measuring(0.2, 0.3, 3))
    monkeypatch.setattr("dmsh_export.tune.run.FULL", briefly)  # it would take ten minutes
    if name == "dmsh-serve gallery merge":
        shutil.copytree("build/gallery", "build/other", dirs_exist_ok=True)
    for line in examples(name):
        code = run(line.replace("clickhouse://localhost/images/photos", str(in_clickhouse)), monkeypatch)
        assert code == 0, f"{line}\n{capsys.readouterr().err}"


def test_the_examples_that_need_a_server_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (start,), queries, *others = map(examples, SERVED)
    program, *arguments = shlex.split(start)
    (port,) = free_ports("127.0.0.1", 1)  # the default one may be another server's
    command = [Path(sys.executable).with_name(program), *arguments, "--grpc-port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert "Triton is ready" in server.stdout.readline()
            asked = [f"{query} --url 127.0.0.1:{port}" for query in queries]
            asked += [re.sub(r"\b8001\b", str(port), line) for lines in others for line in lines]
            assert [line for line in asked if run(line, monkeypatch) != 0] == []
        finally:
            server.terminate()
    assert server.returncode == 0
    assert "photos-" in capsys.readouterr().out


def test_what_is_run_elsewhere_is_a_command_of_the_toolkit():
    assert set(ELSEWHERE) <= set(COMMANDS)
