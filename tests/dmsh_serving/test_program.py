import os
import subprocess
import sys
import time

import pytest

from dmsh_serving.commands import make_app
from dmsh_serving.program import run


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_the_tool_is_one_line_and_no_failed_check(debug, capsys, monkeypatch):
    app = make_app("A tool with a fault.")

    @app.command()
    def fail() -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(sys, "argv", ["tool", *(["--debug"] if debug else [])])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert ended.value.code == 70
    said = capsys.readouterr().err
    assert said.endswith("error: internal: ValueError: two lines; run with --debug to see where\n")
    assert ("Traceback" in said) == debug


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (SystemExit(130), 130, "error: interrupted\n"),
        (MemoryError("5 PiB"), 3, "error: not enough memory: 5 PiB\n"),
    ],
)
def test_what_ends_a_command_from_outside_is_one_line(raised, code, said, capsys, monkeypatch):
    app = make_app("A tool that works for hours.")

    @app.command()
    def work() -> None:
        raise raised

    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert ended.value.code == code
    assert capsys.readouterr().err.endswith(said)


def test_a_command_that_is_told_to_end_closes_what_it_opened(tmp_path):
    program = (
        "import tempfile, time\n"
        "from dmsh_serving.commands import make_app\n"
        "from dmsh_serving.program import run\n"
        "app = make_app('A tool that works for hours.')\n"
        "@app.command()\n"
        "def work() -> None:\n"
        f"    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):\n"
        "        print('working', flush=True)\n"
        "        time.sleep(60)\n"
        "run(app)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "working\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.terminate()
        assert process.wait(20) == 143
        assert process.stderr.read() == "error: terminated\n"
    assert not list(tmp_path.iterdir())


def test_a_group_of_commands_without_one_shows_its_help_as_it_is(capsys, monkeypatch):
    app = make_app("Two tools.")
    for name in ("one", "two"):
        app.command(name)(lambda: None)
    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert ended.value.code == 2
    said = "".join(capsys.readouterr())
    assert "error:" not in said
    assert "\n  Two tools.\n" in said


LONG_CALL = """
import hashlib, sys
from dmsh_serving.commands import make_app
from dmsh_serving.program import run
app = make_app("A tool in the middle of one long call of a library.")

@app.command()
def work() -> None:
    print("began", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 500_000_000)

sys.argv = ["tool"]
run(app, end_within=0.3)
"""


def test_a_signal_ends_even_a_long_call_of_a_library_within_a_second():
    with subprocess.Popen([sys.executable, "-c", LONG_CALL], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "began\n"
        told = time.monotonic()
        process.terminate()
        _, error = process.communicate(timeout=30)
        took = time.monotonic() - told
    assert (process.returncode, error) == (143, "error: terminated\n")
    assert took < 5  # 0.3 s and a busy machine; the call alone takes minutes


def test_a_missing_onnxruntime_is_named_with_the_small_package_first(capsys, monkeypatch):
    app = make_app("A tool that runs a model.")

    @app.command()
    def infer() -> None:
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert ended.value.code == 3
    assert "pip install onnxruntime (with an NVIDIA GPU: onnxruntime-gpu)" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["dmsh_model", "dmsh_export"])
@pytest.mark.parametrize(("set_before", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_pytorch_sleep_while_they_wait_unless_the_environment_says_otherwise(package, set_before, found):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if set_before is not None:
        environment["OMP_WAIT_POLICY"] = set_before
    program = (
        f"import os, sys, {package}.cli as cli; assert 'torch' not in sys.modules; sys.argv[1:] = ['--version']\n"
        "try: cli.main()\nfinally: print(os.environ['OMP_WAIT_POLICY'])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == found
