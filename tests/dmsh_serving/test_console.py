import os
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, console, print_table, reporting, speaking, write_json
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.program import run

NAMES = ["cat[old].png", "a[/b].png", "[bold]loud[/bold].png", ":smile:.png", "C:\\[red]"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_it_is_whatever_its_brackets_mean_to_rich(name, capsys):
    print_table(f"a title {name}", [f"a column {name}"], [[name]])
    console().print(f"wrote {name}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"a title {name}"
    assert f"a column {name} " in lines[2]
    assert f" {name} " in lines[4]
    assert lines[-1] == f"wrote {name}"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2Jé.png", r"\x1b[2Jé.png"),
        ("\x07\x08.png", r"\x07\x08.png"),
        ("\x9b31m\u202egnp.exe", r"\x9b31m\u202egnp.exe"),
        ("\udcff.png", r"\udcff.png"),
    ],
)
def test_what_steers_a_terminal_is_shown_and_not_obeyed(name, shown, capsys, monkeypatch):
    print_table(f"a title {name}", ["a column"], [[name]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"a title {shown}"
    assert shown in lines[4]
    app = make_app("A tool that asks a server.")

    @app.command()
    def ask() -> None:
        raise MissingError(f"the server said {name}")

    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit):
        run(app)
    assert capsys.readouterr().err == f"error: the server said {shown}\n"


@pytest.mark.parametrize("place", ["absent/result.json", "."])
def test_a_result_that_could_not_be_written_is_refused_before_the_work(place, tmp_path, capsys, monkeypatch):
    app = make_app("A tool that works for hours.")
    ran = []

    @app.command()
    def work(json: JsonOption = None) -> None:
        ran.append(json)

    monkeypatch.setattr(sys, "argv", ["tool", "--json", str(tmp_path / place)])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert (ended.value.code, ran) == (2, [])
    assert "name a file in a folder that exists" in capsys.readouterr().err


def test_lines_are_said_in_order_and_the_end_waits_for_the_last(capfd, monkeypatch):
    monkeypatch.setattr("dmsh_serving.console._SAY_SECONDS", 60)
    with speaking() as say:
        for number in range(100):
            say(f"line {number} \udce9")
    assert capfd.readouterr().err.splitlines() == [f"line {number} ?" for number in range(100)]
    for thread in [each for each in threading.enumerate() if each.name == "says"]:
        thread.join(30)
        assert not thread.is_alive()


def test_who_speaks_waits_for_no_reader_of_a_full_pipe(monkeypatch):
    monkeypatch.setattr("dmsh_serving.console._SAY_SECONDS", 0.1)
    read, write = os.pipe()
    with os.fdopen(write, "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        with speaking() as say:
            for _ in range(5000):
                say("x" * 1000)  # 5 MB; a pipe takes 64 KiB
        os.close(read)  # the thread's write ends, and so does the thread
        for thread in threading.enumerate():
            if thread.name == "says":
                thread.join(60)


def test_a_program_without_stderr_says_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with speaking() as say:
        say("lost")


def test_what_cannot_be_said_ends_nothing(monkeypatch):
    monkeypatch.setattr("dmsh_serving.console._SAY_SECONDS", 60)
    began = time.monotonic()
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        with speaking() as say:
            say("lost")
            say("lost too")
    assert time.monotonic() < began + 30


@pytest.mark.parametrize(
    "error", [OSError("no space"), UnicodeEncodeError("ascii", "x", 0, 1, "no"), InputError("no folder")]
)
def test_a_report_that_fails_is_said_and_ends_nothing(capsys, monkeypatch, error):
    monkeypatch.setattr(sys, "stdout", None)
    with reporting("00000001-aaaaaaaa"):
        raise error
    assert capsys.readouterr().err.startswith("version 00000001-aaaaaaaa is written, but the report is not: ")


def test_json_is_written_into_a_pipe_and_does_not_replace_it(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        write_json(path, {"a": 1})
        assert os.read(reader, 100) == b'{\n  "a": 1\n}\n'
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_json(tmp_path / "file", {"a": 1})
    assert (tmp_path / "file").read_bytes() == b'{\n  "a": 1\n}\n'
