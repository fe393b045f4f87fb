"""The demo shows where integer codes were compared, and of which network."""

import json

import pytest
from project import ROOT

from dmsh_export.compare.machine import machine_name
from dmsh_export.compare.parity import BatchInvariance, ParityReport, TargetParity
from dmsh_export.demo import machines as demo_machines
from dmsh_export.demo.machines import MachineResult, machines_compared
from dmsh_serving.errors import InputError


def report(bits, wrong_bits):
    invariance = BatchInvariance(1, (), 1, 0)
    target = TargetParity("m", "f" * 64, 1, bits, wrong_bits, wrong_bits, 0.0, 1.0, 0, 0.1, invariance)
    return ParityReport("PyTorch", "f" * 64, (target,))


def test_this_machine_is_the_sum_of_its_reports(tmp_path):
    found = machines_compared([report(100, 1), report(10, 2)], tmp_path / "absent.json")
    assert found == (MachineResult(machine_name(), "f" * 64, 110, 3),)


def test_emulated_machines_follow_each_with_its_network(tmp_path):
    runs = [
        {"machine": "ARM64", "fingerprint": "f" * 64, "bits": 7, "wrong_bits": 0, "seconds": 1},
        {"machine": "AVX2", "fingerprint": "e" * 64, "bits": 9, "wrong_bits": 0, "seconds": 1},
    ]
    (tmp_path / "report.json").write_text(json.dumps({"machines": runs}))
    assert machines_compared([report(1, 0)], tmp_path / "report.json")[1:] == (
        MachineResult("ARM64", "f" * 64, 7, 0),
        MachineResult("AVX2", "e" * 64, 9, 0),
    )


def test_the_report_is_looked_for_where_the_comparison_writes_it_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from benchmarks.cpus import __main__ as cpus

    monkeypatch.chdir(tmp_path)
    assert demo_machines.EMULATED.absolute() == cpus.CACHE / cpus.REPORT == ROOT / "build" / "cpus" / "report.json"


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"machines": [{}]}', '{"machines": 3}'])
def test_a_damaged_report_is_named(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match="is damaged: delete it"):
        machines_compared([report(1, 0)], tmp_path / "report.json")
