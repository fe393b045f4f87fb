"""The README's commands do what it says: they are run, in order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT

pytestmark = pytest.mark.live

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
(SNIPPET,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
START = next(number for number, line in enumerate(COMMANDS) if line.startswith("dmsh-serve start"))


@pytest.fixture(scope="module")
def folder(mnist, tmp_path_factory):
    """An empty folder with what ``make demo`` leaves in it: some of the images, and the checkpoint."""
    from dmsh_export.demo.run import write_images
    from dmsh_model.data.labelled import Split
    from dmsh_model.data.split import SplitOptions, split_images

    folder = tmp_path_factory.mktemp("readme")
    (folder / "demo").symlink_to(ROOT / "demo")
    split = split_images(mnist, SplitOptions())
    write_images(folder / "build" / "demo", mnist, Split(split.query, split.database[:300], split.train))
    return folder


@pytest.fixture(scope="module")
def environment():
    tools = Path(sys.executable).parent
    triton = os.environ.get("DMSH_TRITON_HOME", str(ROOT / ".venv-triton"))
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "DMSH_TRITON_HOME": triton}


def test_every_command_of_the_readme_runs_and_so_does_its_python(folder, environment):
    for command in COMMANDS[:START]:
        done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    command = COMMANDS[START].split()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert "Triton is ready: gRPC 127.0.0.1:8001" in server.stdout.readline()
            for command in COMMANDS[START + 1 :]:
                done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            done = subprocess.run(
                [sys.executable, "-c", SNIPPET], cwd=folder, env=environment, capture_output=True, text=True, check=True
            )
        finally:
            server.terminate()
    assert server.returncode == 0
    answers = [line.split() for line in done.stdout.splitlines()]
    assert len(answers) == 10
    assert sorted(answers, key=lambda answer: int(answer[0])) == answers
    assert all((folder / "build" / "demo" / "database" / key).is_file() for _, key in answers)


def test_the_snippet_is_at_most_ten_lines_and_uses_the_plain_client():
    lines = [line for line in SNIPPET.splitlines() if line.strip()]
    assert len(lines) <= 10
    assert "dmsh" not in SNIPPET.replace("dmsh_search_file", "")


def test_every_file_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
