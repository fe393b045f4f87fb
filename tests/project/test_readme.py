"""The README's commands do what it says: they are run, in order, in an empty folder."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from project import ROOT

pytestmark = pytest.mark.live

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
(SNIPPET,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
READY = "Triton is ready: gRPC 127.0.0.1:8001"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder with what ``make demo`` leaves in it, for six classes of drawings; they are the photos too."""
    from dmsh_export.demo.drawings import unpack_drawings
    from dmsh_export.demo.train import IMAGE_SIZE, train_heads

    folder = tmp_path_factory.mktemp("readme")
    few = folder / "few.zip"
    with zipfile.ZipFile(ROOT / "demo" / "drawings.zip") as whole, zipfile.ZipFile(few, "w") as part:
        names = [name for name in whole.namelist() if re.match(r"drawings/(animals|food)-\w+/0[0-3]", name)]
        for name in names:
            part.writestr(name, whole.read(name))
    demo = folder / "build" / "demo"
    demo.mkdir(parents=True)
    data = unpack_drawings(few, demo, IMAGE_SIZE)
    train_heads(data, demo / "checkpoint", demo / "last-stage", lambda *_: None)
    (folder / "photos").symlink_to(demo / "database")
    return folder


@pytest.fixture(scope="module")
def environment():
    tools = Path(sys.executable).parent
    triton = os.environ.get("DMSH_TRITON_HOME", str(ROOT / ".venv-triton"))
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "DMSH_TRITON_HOME": triton}


def test_every_command_of_the_readme_runs_and_so_does_its_python(folder, environment):
    server = None

    def stop():
        if server is not None:
            server.terminate()
            server.communicate()
            assert server.returncode == 0

    try:
        for command in COMMANDS:
            if command.startswith("dmsh-serve start"):
                stop()
                server = subprocess.Popen(
                    command.split(), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
                )
                assert READY in server.stdout.readline()
                continue
            # The demo knows more drawings than this test: any of them will do for a query.
            command = command.replace("animals-birds/010.webp", a_query(folder))
            done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            if "parity" in command and "triton://" in command:  # the server that the snippet asks
                snippet = SNIPPET.replace("animals-birds/010.webp", a_query(folder))
                python = [sys.executable, "-c", snippet]
                answer = subprocess.run(python, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    finally:
        stop()
    answers = [line.split() for line in answer.stdout.splitlines()]
    assert len(answers) == 10
    assert sorted(answers, key=lambda answer: int(answer[0])) == answers
    assert all((folder / "build" / "demo" / "database" / key).is_file() for _, key in answers)


def a_query(folder):
    queries = folder / "build" / "demo" / "queries"
    return next(queries.glob("animals-birds/*.webp")).relative_to(queries).as_posix()


def test_the_snippet_is_at_most_ten_lines_and_uses_the_plain_client():
    lines = [line for line in SNIPPET.splitlines() if line.strip()]
    assert len(lines) <= 10
    assert "dmsh" not in SNIPPET.replace("dmsh_search_file", "")


def test_every_file_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
