import json
import subprocess
import sys

import pytest

from dmsh_serving.triton.server.launcher import free_ports


def serve(*arguments):
    command = [sys.executable, "-m", "dmsh_serving", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def one_line(answer, code):
    assert answer.returncode == code, answer.stderr
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    assert "Traceback" not in answer.stderr
    return answer.stderr


@pytest.mark.parametrize("command", ["start", "query", "gallery", "bench"])
def test_every_command_has_help(command):
    assert serve(command, "--help").returncode == 0


def test_no_repository_is_one_line(tmp_path):
    assert "is not a folder: make a model repository" in one_line(
        serve("start", "--repository", tmp_path / "absent"), 2
    )
    assert "holds no model folders" in one_line(serve("start", "--repository", tmp_path), 2)


def test_no_triton_is_one_line(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.pbtxt").touch()
    assert "no Triton at" in one_line(serve("start", "--repository", tmp_path, "--triton", tmp_path), 3)


def test_no_file_is_one_line(tmp_path):
    assert "absent.png: no such file" in one_line(serve("query", tmp_path / "absent.png"), 2)


def test_no_server_is_one_line(tmp_path):
    (tmp_path / "image.png").write_bytes(b"whatever")
    (port,) = free_ports("127.0.0.1", 1)
    result = tmp_path / "result.json"
    answer = serve("query", tmp_path / "image.png", "--url", f"127.0.0.1:{port}", "--json", result)
    assert f"no Triton at 127.0.0.1:{port}" in one_line(answer, 3)
    assert not result.exists()


def test_usage_is_one_line():
    assert "--repository" in one_line(serve("start"), 2)
    assert "(see --help)" in one_line(serve("query", "a.png", "-k", "many"), 2)


def test_debug_shows_the_traceback(tmp_path):
    answer = serve("start", "--repository", tmp_path, "--debug")
    assert answer.returncode == 2
    assert "Traceback" in answer.stderr
    assert json.dumps(str(tmp_path))[1:-1] in answer.stderr
