import re
from pathlib import Path

import pytest
import tiny_model

from dmsh_serving.cpu import has_vnni
from dmsh_serving.encoder import onnxruntime as encoder

CPU = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPU.exists(), reason="this system lists no CPU features to compare with")
def test_vnni_is_seen_where_the_kernel_lists_it():
    assert has_vnni() == bool(re.search(r"\b(avx512_vnni|avx_vnni)\b", CPU.read_text()))


@pytest.mark.parametrize(("vnni", "option"), [(False, "1"), (True, "0")])
def test_the_slow_exact_kernels_are_asked_for_only_without_vnni(tmp_path, monkeypatch, vnni, option):
    monkeypatch.setattr(encoder, "has_vnni", lambda: vnni)
    with encoder.OnnxEncoder(tiny_model.write(tmp_path / "model.onnx")) as opened:
        options = opened._session.get_session_options()
        assert options.get_session_config_entry("session.x64quantprecision") == option
