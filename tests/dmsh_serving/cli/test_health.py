"""What ``check`` says of a server; tests/live has the servers."""

import pytest
from typer.testing import CliRunner

from dmsh_serving.cli import app, health
from dmsh_serving.client import CodeSpace
from dmsh_serving.contract import DECODE_MODEL, RANKER_MODEL
from dmsh_serving.errors import CheckError, InputError


def test_what_steers_a_terminal_in_a_servers_answer_is_shown_and_not_done(monkeypatch):
    found = {"gallery_version": "1\x1b[2J", "fingerprint": "ab" * 32, "known_code": True, "seconds": 0.01}
    monkeypatch.setattr(health, "_checked", lambda *_: found)
    done = CliRunner().invoke(app, ["check", "127.0.0.1:1"])
    assert done.exit_code == 0, done.output
    assert r"gallery 1\x1b[2J, code space" in done.output
    assert "\x1b" not in done.output


def test_an_empty_fingerprint_is_refused_with_which_any_model_would_be_right(monkeypatch):
    monkeypatch.setattr(health, "_checked", lambda *_: 1 / 0)
    done = CliRunner().invoke(app, ["check", "127.0.0.1:1", "--fingerprint", ""])
    assert isinstance(done.exception, InputError)
    assert "--fingerprint is empty" in str(done.exception)


@pytest.mark.parametrize(("model", "name"), [(DECODE_MODEL, "decoder"), (RANKER_MODEL, "ranker")])
def test_a_model_of_another_code_space_is_named(model, name):
    class Client:
        def code_space(self):
            return CodeSpace("ab" * 32, 64, 16)

        def parameters(self, asked):
            return {"fingerprint": ("cd" if asked == model else "ab") * 32}

    with pytest.raises(CheckError, match=f"its encoder is of code space abababababab, its {name} of cdcdcdcdcdcd"):
        health._checked(Client(), None, None, None, 5.0)
