"""What ``dmsh-train fine-tune`` refuses before it reads anything; tests/dmsh_model/finetune has the command itself."""

import sys

import pytest

from dmsh_model import cli


def test_fine_tuning_in_several_processes_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["absent", "photos", "--teacher", "absent", "--out", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", ["dmsh-train", "fine-tune", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert "without torchrun" in error
