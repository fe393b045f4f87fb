"""The launcher without a server; tests/live has the rest."""

from pathlib import Path

import pytest

from dmsh_serving.errors import CheckError, InputError, MissingError
from dmsh_serving.launcher import TritonServer, free_ports
from dmsh_serving.server_log import error_from_log

LOG = Path("triton.log")
FAILED = (
    'I1124 07:28:46.90 9992 a.cc:1] "fine"\n'
    "E1124 07:28:46.90 9992 model_lifecycle.cc:642] \"failed to load '{model}' version 1: Internal: {reason}"
    '\\n\\nAt:\\n  /somewhere/gallery.py(61): current_version\\n"\n'
    "I1124 07:28:46.90 9992 model_lifecycle.cc:777] \"failed to load '{model}'\"\n"
)


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


def test_free_ports_are_different():
    assert len(set(free_ports("127.0.0.1", 20))) == 20


def test_a_server_that_cannot_run_is_an_error_before_anything_starts(tmp_path):
    server = TritonServer(tmp_path, triton=tmp_path / "absent")
    with pytest.raises(MissingError, match="no Triton at"):
        server.start()
    with pytest.raises(MissingError, match="was not started"):
        _ = server.pid
    assert server.stop() is None
