"""A server's log: what is written, how, and what is noticed."""

import json
import os
import time
from pathlib import Path

import pytest

from dmsh_serving.errors import CheckError, InputError, MissingError
from dmsh_serving.ranker import follower
from dmsh_serving.triton.server import log
from dmsh_serving.triton.server.log import ServerLog, error_from_log, news_of_a_gallery

OF_TRITON = "E1124 07:28:46.900123 9992 model_lifecycle.cc:642] \"failed to load 'x'\""
OF_A_MODEL = "2026-11-29T07:28:46.901Z WARNING dmsh_serving.triton.backend: request 5e1f was slow: rank took 2.000 s"


def written(path, *lines, **options):
    server_log = ServerLog(path, **options)
    with server_log.listening() as descriptor:
        for line in lines:
            os.write(descriptor, f"{line}\n".encode())
    server_log.finish()
    return server_log


def test_a_line_is_written_as_it_came(tmp_path):
    written(tmp_path / "log", OF_TRITON, OF_A_MODEL)
    assert (tmp_path / "log").read_text() == f"{OF_TRITON}\n{OF_A_MODEL}\n"


def test_as_json_a_line_has_its_level_its_source_and_its_request(tmp_path):
    written(tmp_path / "log", "free text", OF_TRITON, OF_A_MODEL, "  of a traceback", as_json=True)
    free, triton, model, more = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (free["level"], free["source"], free["message"]) == ("info", "tritonserver", "free text")
    assert (triton["level"], triton["source"]) == ("error", "model_lifecycle.cc:642")
    assert triton["message"] == "failed to load 'x'"
    assert (model["level"], model["source"]) == ("warning", "dmsh_serving.triton.backend")
    assert (model["message"], model["request"]) == ("request 5e1f was slow: rank took 2.000 s", "5e1f")
    assert (more["level"], more["message"]) == ("warning", "  of a traceback")
    assert all(line["time"].endswith("+00:00") for line in (free, triton, model, more))


def test_a_server_never_waits_for_a_full_disk_and_what_is_missing_is_counted(tmp_path, monkeypatch):
    path, put = tmp_path / "log", log._put

    def full(file, line):
        if "lost" in line:
            raise OSError(28, "No space left on device")
        put(file, line)

    monkeypatch.setattr(log, "_put", full)
    server_log = written(path, "one", "lost", "lost too", "two")
    assert path.read_text() == "one\n2 lines are missing here: they could not be written\ntwo\n"
    assert server_log.said().splitlines() == ["one", "lost", "lost too", "two"]


def test_a_listener_that_fails_does_not_end_the_log(tmp_path):
    def fail(line):
        raise ValueError(line)

    written(tmp_path / "log", "one", "two", on_line=fail)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_each_start_says_its_own(tmp_path):
    server_log = ServerLog(tmp_path / "log")
    for text in ("first", "second"):
        with server_log.listening() as descriptor:
            os.write(descriptor, f"{text}\n".encode())
        server_log.finish()
        assert server_log.said() == text
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


OF_THE_FOLLOWER = f"2026-11-29T07:00:00.100Z ERROR {follower._log.name}"


@pytest.mark.parametrize("there", [True, False])
def test_a_log_follows_no_link_and_is_not_everybodys(tmp_path, there):
    victim = tmp_path / "victim"
    if there:
        victim.write_text("mine")
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(InputError, match="log is a link"):
        ServerLog(tmp_path / "log")
    (tmp_path / "log").unlink()
    before = os.umask(0)
    try:
        server_log = written(tmp_path / "log", "one")
        (tmp_path / "log").rename(tmp_path / "moved")
        (tmp_path / "log").symlink_to(victim)
        with server_log.listening() as descriptor:
            os.write(descriptor, b"two\n")
        server_log.finish()
        (tmp_path / "log").unlink()
        with server_log.listening() as descriptor:
            os.write(descriptor, b"three\n")
        server_log.finish()
    finally:
        os.umask(before)
    assert (victim.read_text() if there else victim.exists()) == ("mine" if there else False)
    assert (tmp_path / "log").read_text() == "1 lines are missing here: they could not be written\nthree\n"
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("moved", "log")] == [0o640, 0o640]


def test_a_log_that_is_a_pipe_without_a_reader_keeps_no_server_waiting(tmp_path):
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match="No such device"):
        ServerLog(tmp_path / "log")


REFUSED = "gallery /g: /g is damaged; version 00000001-9f31c07a goes on serving"


@pytest.mark.parametrize(
    ("line", "news"),
    [
        (f"{OF_THE_FOLLOWER}: {REFUSED}", REFUSED),
        (f"{OF_THE_FOLLOWER}: gallery /g now serves version 2", "gallery /g now serves version 2"),
        (f"{OF_THE_FOLLOWER}: what was counted could not be reported", None),
        ("gallery /g now serves version 00000002-9f31c07a", None),
        (f"{OF_A_MODEL} gallery /g now serves version 00000002-9f31c07a", None),
        ("I1129 07:00:00.1 7 model.cc:1] gallery of models: goes on serving", None),
        ("gallery /g is mine", None),
        ("", None),
    ],
)
def test_what_a_log_says_of_galleries_is_noticed_and_nothing_else(line, news):
    assert news_of_a_gallery(line) == news


def test_what_goes_on_with_a_long_line_is_written_and_never_understood(tmp_path):
    heard, forged = [], f"{OF_THE_FOLLOWER}: {REFUSED}"
    long = OF_A_MODEL.ljust(log._LONGEST_LINE)
    said = written(tmp_path / "log", long + forged, "after", as_json=True, on_line=heard.append).said()
    first, rest, after = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (first["request"], after["message"]) == ("5e1f", "after")
    assert rest == {"time": rest["time"], "level": "warning", "source": "dmsh_serving.triton.backend"} | {
        "message": forged
    }
    assert heard == [long, "after"]
    assert len(said) <= log._CHARACTERS_REMEMBERED + len("\nafter")


READERS = {
    "news": news_of_a_gallery,
    "kind": lambda line: log._kind_of(line, {}),
    "json": lambda line: log._object(line, {}, True),
    "error": lambda line: error_from_log(line, Path("log")),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "repeated", ["gallery ", "failed to load '", "failed to load model '", "request ", "a.1:", '"] "', "a ]"]
)
@pytest.mark.parametrize("start", ["", f"{OF_THE_FOLLOWER}: ", "E1124 07:28:46.9 99 "])
def test_a_line_four_times_as_long_takes_no_more_than_its_share_longer(reader, repeated, start):
    def seconds(length):
        line, spent = start + repeated * (length // len(repeated)), []
        for _ in range(3):
            began = time.thread_time()
            READERS[reader](line)
            spent.append(time.thread_time() - began)
        return min(spent)

    # What is quadratic takes 16 times as long: 0.1 s and more for the shorter of these lines.
    assert seconds(64 << 10) < 8 * seconds(16 << 10) + 0.02


LOG = Path("triton.log")
FAILED = (
    'I1124 07:28:46.90 9992 a.cc:1] "fine"\n'
    "E1124 07:28:46.90 9992 model_lifecycle.cc:642] \"failed to load '{model}' version 1: Internal: {reason}"
    '\\n\\nAt:\\n  /somewhere/gallery.py(61): current_version\\n"\n'
    "I1124 07:28:46.90 9992 model_lifecycle.cc:777] \"failed to load '{model}'\"\n"
)


@pytest.mark.parametrize(("line", "said"), [
    ("E1129 10:31:33.77 26506 manager.cc:724] \"failed to load model 'dmsh_decode': at least one version must be "
     "available under the version policy of model 'dmsh_decode'\"",
     "dmsh_decode does not load: at least one version must be available"),
    ("[libprotobuf ERROR text.cc:337] Error parsing text-format inference.ModelConfig: 1:30: no field named \"a\".\n"
     "E1129 10:31:39.79 26743 manager.cc:1460] \"Poll failed for model directory 'dmsh_decode': failed to read text "
     "proto from /r/config.pbtxt\"",
     'dmsh_decode does not load: failed to read text proto from /r/config.pbtxt; 1:30: no field named "a".'),
    ('E1129 10:32:00.58 27695 manager.cc:703] "Invalid argument: in ensemble dmsh_search, ensemble tensor k: '
     'inconsistent data type"',
     "in ensemble dmsh_search, ensemble tensor k: inconsistent data type"),
])  # fmt: skip
def test_a_configuration_that_triton_refuses_is_told_with_its_reason(line, said):
    text = f"{line}\nerror: creating server: Internal - failed to load all models\n"
    error = error_from_log(text, LOG)
    assert type(error) is InputError
    assert str(error).startswith(said)
    assert str(error).endswith(": dmsh-export lint finds the place (log: triton.log)")


@pytest.mark.parametrize("kind", [InputError, CheckError, MissingError])
def test_a_models_own_error_keeps_its_kind_and_its_one_line(kind):
    error = error_from_log(
        FAILED.format(model="dmsh_ranker", reason=f"{kind.__name__}: no gallery there: build one"), LOG
    )
    assert type(error) is kind
    assert str(error) == "dmsh_ranker does not load: no gallery there: build one (log: triton.log)"


def test_every_model_that_fails_is_named():
    text = FAILED.format(model="one", reason="InputError: this") + FAILED.format(model="two", reason="KeyError: 'that'")
    error = error_from_log(text, LOG)
    assert str(error) == "one does not load: this; two does not load: 'that' (log: triton.log)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("E1124 07:28:46.9 99 main.cc:1] no GPU\nI1124 07:28:46.9 99 main.cc:1] bye\n", "no GPU"),
        ("error: creating server: Internal - failed\n", "creating server: Internal - failed"),
        (
            "tritonserver: error while loading shared libraries: libx.so\n\n",
            "error while loading shared libraries: libx.so",
        ),
        ("", "its log is empty"),
    ],
)
def test_any_other_failure_is_told_by_the_logs_last_error(text, said):
    error = error_from_log(text, LOG)
    assert type(error) is MissingError
    assert said in str(error)
