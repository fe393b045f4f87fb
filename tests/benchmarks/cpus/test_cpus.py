"""Other machines: every difference is caught, every missing tool is named, and AVX2 without VNNI really runs."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.cpus import __main__ as cpus
from benchmarks.cpus import compare as cpus_compare
from benchmarks.cpus import fetch as cpus_fetch
from benchmarks.cpus import machines as cpus_machines
from benchmarks.cpus import networks as cpus_networks
from benchmarks.cpus.compare import Setting
from benchmarks.cpus.machines import Machine

from dmsh_export.compare.parity import BatchInvariance, ParityReport, TargetParity
from dmsh_export.demo.machines import machines_compared
from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import CheckError, MissingError

EXACT = Setting("onnxruntime", "served", optimise=True)
CONTROL = Setting("onnxruntime", "fast", optimise=True, control=True)


def machine(name="avx2", **fields):
    defaults = {"title": "Haswell", "emulator": "QEMU", "onnxruntime": "1", "command": ()}
    return Machine(name, **{**defaults, "has_toolkit": True, "saturates": True, **fields})


def network(bits=11, count=6, known=2):
    """Six images, of which two are the known answer, and logits of whole numbers."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    logits = random.integers(-9, 10, (count, bits)).astype(np.float32)
    code = np.packbits(logits > 0, axis=1)
    text = known_answer.dump(images[:known], code[:known])
    return cpus_networks.Network("demo", "f" * 64, bits, {}, text, images, known, code, logits)


def row(setting=EXACT, of=machine(), code=None, logits=None):
    net = network()
    found = (net.code if code is None else code, net.logits if logits is None else logits)
    return cpus_compare.row(of, net, setting, *found, 1.5)


def changed(array, place, value):
    array = array.copy()
    array[place] ^= value
    return array


def test_equal_codes_and_logits_pass():
    found = row()
    assert (found.images, found.bits, found.wrong_bits, found.different_logits, found.refused) == (6, 66, 0, 0, False)
    assert found.passed


def test_one_changed_bit_of_one_image_fails():
    found = row(code=changed(network().code, (5, 1), 0b00100000))
    assert (found.wrong_bits, found.different_logits, found.refused, found.passed) == (1, 0, False, False)
    assert "1 of 66 bits and 0 logits differ from PyTorch's, the known answer agrees" in found.failure()


def test_one_logit_that_differs_fails_though_every_bit_is_right():
    logits = network().logits.copy()
    logits[3, 4] *= 2
    assert logits[3, 4] != network().logits[3, 4]
    found = row(logits=logits)
    assert (found.wrong_bits, found.different_logits, found.passed) == (0, 1, False)


def test_a_changed_bit_of_a_known_image_is_also_refused_by_the_known_answer():
    assert row(code=changed(network().code, (0, 0), 0b10000000)).refused


def test_a_nan_is_a_difference():
    assert row(logits=np.where(np.arange(11) == 3, np.nan, network().logits).astype(np.float32)).different_logits == 6


def test_a_filler_bit_that_is_set_is_wrong_too():
    assert row(code=changed(network().code, (5, 1), 0b00000001)).wrong_bits == 1


@pytest.mark.parametrize("which", ["code", "logits"])
def test_results_of_another_shape_or_type_are_refused(which):
    value = getattr(network(), which)
    for wrong in (value[:, :1], value.astype(np.float64)):
        with pytest.raises(CheckError, match=f"Haswell: {which} should be "):
            row(**{which: wrong})


def test_a_control_that_comes_out_right_fails():
    found = row(CONTROL)
    assert not found.passed
    assert "a control that should be wrong and refused: 0 of 66 bits" in found.failure()


def test_a_control_must_also_be_refused_by_the_known_answer():
    unseen = changed(network().code, (5, 0), 0b10000000)
    assert not row(CONTROL, code=unseen).passed
    assert row(CONTROL, code=changed(unseen, (0, 0), 0b10000000)).passed


def test_where_kernels_saturate_each_condition_is_left_out_in_a_control():
    found = cpus_compare.settings(machine(), "demo")
    controls = {(s.dialect, s.session, s.optimise) for s in found if s.control}
    assert controls == {("onnxruntime", "fast", True), ("onnxruntime", "exact", False)}
    checks = {(s.dialect, s.optimise) for s in found if not s.control}
    assert checks == {("onnxruntime", True), ("tensorrt", True), ("tensorrt", False)}
    elsewhere = cpus_compare.settings(machine("arm64", saturates=False, has_toolkit=False), "demo")
    assert [s for s in elsewhere if s.control] == []
    assert {s.session for s in elsewhere} == {"exact"}
    assert len(elsewhere) == 4


def test_openvino_is_compared_where_it_has_vnni_and_a_control_where_it_has_not():
    of_openvino = {
        name: [(s.isa, s.control) for s in cpus_compare.settings(where, "demo") if s.session == "openvino"]
        for name, where in {
            "vnni": machine("native", saturates=False, has_openvino=True),
            "avx2": machine(has_openvino=True),
            "absent": machine("native", saturates=False),
        }.items()
    }
    assert of_openvino["vnni"] == [("", False), ("AVX512_CORE_VNNI", False), ("AVX512_CORE", True), ("AVX2", True)]
    assert of_openvino["avx2"] == [("", True)]
    assert of_openvino["absent"] == []


def test_the_demos_page_reads_the_emulated_machines_without_controls_and_this_one(tmp_path):
    wrong = changed(network().code, (5, 0), 0b10000000)
    rows = [row(), row(code=wrong), row(CONTROL, code=wrong), row(of=machine("native", title="here"))]
    report = tmp_path / "report.json"
    report.write_text(json.dumps(cpus.summary(rows)))
    target = TargetParity("m", "f" * 64, 1, 1, 0, 0, 0.0, 1.0, 0, 0.1, BatchInvariance(1, (), 1, 0))
    (_, found) = machines_compared([ParityReport("PyTorch", "f" * 64, (target,))], report)
    assert (found.machine, found.bits, found.wrong_bits) == ("Haswell (emulated)", 132, 1)


def test_a_cpu_that_is_not_the_one_it_should_be_is_refused():
    haswell, features = cpus_machines.CPUS["avx2"], ["AVX2", "FMA3", "SSE42"]
    cpus_machines.check_cpu(haswell, {"architecture": "x86_64", "features": features})
    with pytest.raises(CheckError, match="shows an x86_64, without AVX2, with AVX512VNNI: nothing run there"):
        cpus_machines.check_cpu(haswell, {"architecture": "x86_64", "features": ["FMA3", "AVX512VNNI"]})
    with pytest.raises(CheckError, match="shows an aarch64"):
        cpus_machines.check_cpu(haswell, {"architecture": "aarch64", "features": features})


def test_a_run_that_fails_is_named_by_its_last_line_and_not_by_the_emulators_warnings(tmp_path):
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\necho 'ValueError: no such model' >&2\necho 'qemu: warning: TCG lacks x' >&2\nexit 1\n"
    )
    script.chmod(0o755)
    with pytest.raises(CheckError, match="Haswell: Python there ended with 1: ValueError: no such model"):
        cpus_machines.guest_result("Haswell", (str(script),), {})


@pytest.fixture
def no_emulator_installed(monkeypatch):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name.startswith("qemu-") else which(name))


def fake_tool(folder, monkeypatch, name, script):
    """Put an executable ``name`` first on PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates on x86-64 only")
class TestWhatIsMissing:
    def test_a_machine_without_apt_is_told_so(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(MissingError, match="apt-get is missing: qemu-user-static can be fetched on Debian"):
            cpus_fetch.emulator("qemu-x86_64-static", tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.usefixtures("no_emulator_installed")
    def test_what_apt_says_is_passed_on(self, tmp_path, monkeypatch):
        tools, cache = tmp_path / "tools", tmp_path / "cache"
        tools.mkdir()
        fake_tool(tools, monkeypatch, "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
        with pytest.raises(
            MissingError, match="apt has no qemu-user-static for amd64 here: E: Unable to locate package"
        ):
            cpus_fetch.emulator("qemu-x86_64-static", cache)
        assert list(cache.iterdir()) == []

    def test_what_pip_says_is_passed_on(self, tmp_path, monkeypatch):
        script = tmp_path / "python"
        script.write_text("#!/bin/sh\necho 'ERROR: No matching distribution' >&2\nexit 1\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        with pytest.raises(MissingError, match=r"pip has no onnxruntime==.* for ARM64: ERROR: No matching distrib"):
            cpus_fetch._wheels(tmp_path / "wheels", "3.11")

    def test_an_emulator_that_the_system_has_is_used(self, tmp_path, monkeypatch):
        fake_tool(tmp_path, monkeypatch, "qemu-x86_64-static", "exit 0")
        assert cpus_fetch.emulator("qemu-x86_64-static", tmp_path / "cache") == tmp_path / "qemu-x86_64-static"

    @pytest.mark.usefixtures("no_emulator_installed")
    def test_the_cache_is_filled_once_again_when_damaged_and_never_in_part(self, tmp_path, monkeypatch):
        fetched = []

        def fetch(new, temporary):
            (new / "qemu-x86_64-static").write_bytes(b"emulator")
            if len(fetched) == 2:
                raise MissingError("the network is gone")
            fetched.append(new)
            return {}

        monkeypatch.setattr(cpus_fetch, "_fetch_emulators", fetch)
        for _ in range(2):
            assert cpus_fetch.emulator("qemu-x86_64-static", tmp_path).read_bytes() == b"emulator"
        assert len(fetched) == 1
        (tmp_path / "qemu" / "qemu-x86_64-static").write_bytes(b"emulated")
        assert cpus_fetch.emulator("qemu-x86_64-static", tmp_path).read_bytes() == b"emulator"
        assert len(fetched) == 2
        shutil.rmtree(tmp_path / "qemu")
        with pytest.raises(MissingError, match="the network is gone"):
            cpus_fetch.emulator("qemu-x86_64-static", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_machine_that_cannot_be_had_is_named_and_ends_with_3(self, tmp_path, monkeypatch, capsys):
        def nothing(name, cache):
            raise MissingError("apt-get is missing")

        monkeypatch.setattr(cpus_machines, "ready", nothing)
        for options, code in (([], 3), (["--skip-missing"], 0)):
            monkeypatch.setattr(sys, "argv", ["cpus", "--cpu", "arm64", "--cache", str(tmp_path), *options])
            with pytest.raises(SystemExit) as ended:
                cpus.main()
            assert ended.value.code in ((code,) if code else (0, None))
            assert "skipped: arm64: apt-get is missing" in capsys.readouterr().out
        assert not (tmp_path / cpus.REPORT).exists()


def test_another_system_is_named(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(MissingError, match="emulated on Linux x86-64 only, this is linux riscv64"):
        cpus_fetch.check_host()


def test_an_unknown_machine_or_network_is_named_with_the_choices():
    for option, choices in (("--cpu", "native, avx2"), ("--network", "demo, vgg11_bn")):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.cpus", option, "vax"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert f"error: {option} vax: choose from {choices}" in done.stderr


@pytest.fixture(scope="module")
def haswell():
    try:
        return cpus_machines.ready("avx2", cpus.CACHE)
    except MissingError as error:
        pytest.skip(str(error))


def test_avx2_without_vnni_gives_pytorchs_bits_and_its_controls_do_not(haswell):
    rows = cpus.compared([haswell], ["demo"], 4)
    assert [found.failure() for found in rows if not found.passed] == []
    of_openvino = [True] if haswell.has_openvino else []
    assert [found.setting.control for found in rows] == [False, False, False, True, True, *of_openvino]
    assert min(found.images for found in rows) >= 4 + 5  # the known answer's too
    assert min(found.wrong_bits for found in rows if found.setting.control) > 0


def test_a_model_that_is_not_there_fails_inside_the_emulated_machine(haswell, tmp_path):
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"model": "absent.onnx", "session": "served", "optimise": True}))
    with pytest.raises(CheckError, match=r"Intel Haswell.*absent\.onnx is not a file"):
        haswell.run(task)


def test_the_guest_program_imports_little(monkeypatch):
    text = Path(cpus_machines.GUEST).read_text()
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= {*sys.stdlib_module_names, "numpy", "onnxruntime"}
