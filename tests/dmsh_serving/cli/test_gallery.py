import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmsh_serving import program
from dmsh_serving.cli import gallery_contents  # noqa: F401  # its commands join gallery_app
from dmsh_serving.cli.bench import bench
from dmsh_serving.cli.gallery import gallery_app
from dmsh_serving.commands import make_app
from dmsh_serving.encoder import codes_of_images as encoding
from dmsh_serving.gallery.changes import append, remove
from dmsh_serving.gallery.folder import open_current
from dmsh_serving.images.framing import Framing

F = "f" * 64


@dataclass
class FakeEncoded:
    code: np.ndarray
    logits: np.ndarray


class FakeEncoder:
    """Gives each image the code of its first pixel's red and green."""

    bits, image_size, fingerprint, framing = 16, 8, F, Framing()

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def infer(self, images):
        assert len(images) <= 3
        return FakeEncoded(images[:, 0, 0, :2].copy(), np.zeros((len(images), 16), np.float32))


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command line as a person would; return exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gallery", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            program.run(gallery_app)
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "open_encoder", FakeEncoder)
    folder = tmp_path / "images"
    folder.mkdir()
    for value in range(7):
        Image.new("RGB", (8, 8), (value, 2 * value, 0)).save(folder / f"{value}.png")
    return folder


@pytest.fixture
def codes(tmp_path):
    path = tmp_path / "codes.npy"
    np.save(path, np.arange(20, dtype=np.uint8).reshape(10, 2))
    return path


def of_codes(codes, out):
    return ("build", "--codes", codes, "--bits", 16, "--fingerprint", F, "--out", out)


def test_images_become_a_gallery_with_their_names_as_keys(command, images, tmp_path):
    out, result = tmp_path / "g", tmp_path / "result.json"
    code, stdout, _ = command(
        "build", "--model", "m.onnx", "--images", images, "--out", out, "--batch", 3, "--json", result
    )
    assert code == 0
    snapshot = open_current(out, fingerprint=F, bits=16)
    assert snapshot.codes.tolist() == [[value, 2 * value] for value in range(7)]
    assert snapshot.ids.tolist() == list(range(7))
    assert snapshot.keys_of(np.arange(7)) == [f"{value}.png" for value in range(7)]
    said = json.loads(result.read_text())
    assert (said["count"], said["distinct"], said["version"], said["skipped"]) == (7, 7, snapshot.version, [])
    assert snapshot.version in stdout


def test_a_corrupt_image_stops_the_build_unless_skipped(command, images, tmp_path):
    (images / "3.png").write_bytes(b"broken")
    line = ("build", "--model", "m.onnx", "--images", images, "--out", tmp_path / "g", "--batch", 3)
    code, _, stderr = command(*line)
    assert code == 2
    assert "1 of 7 files cannot be read" in stderr.splitlines()[-1]
    assert "3.png" in stderr
    assert not (tmp_path / "g").exists()
    code, stdout, stderr = command(*line, "--skip-bad")
    assert code == 0
    assert "skipped 3.png" in stderr
    assert "skipped images" in stdout
    assert open_current(tmp_path / "g").ids.tolist() == list(range(6))


@pytest.mark.parametrize("ending", ["", "\n"])
def test_the_last_key_counts_with_and_without_a_newline_at_its_end(command, codes, tmp_path, ending):
    mark = "\ufeff" if ending else ""  # as some editors begin a file
    (tmp_path / "keys.txt").write_text(mark + "\n".join(f"key {i}" for i in range(10)) + ending)
    code, _, error = command(*of_codes(codes, tmp_path / "g"), "--keys", tmp_path / "keys.txt")
    assert code == 0, error
    assert open_current(tmp_path / "g").keys_of(np.array([0, 9])) == ["key 0", "key 9"]


def test_ready_codes_ids_and_keys_become_a_gallery(command, codes, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(10, dtype=np.int32)[::-1] * 5)
    (tmp_path / "keys.txt").write_text("".join(f"key {i}\n" for i in range(10)))
    code, _, _ = command(
        *of_codes(codes, tmp_path / "g"), "--ids", tmp_path / "ids.npy", "--keys", tmp_path / "keys.txt"
    )
    assert code == 0
    snapshot = open_current(tmp_path / "g")
    assert snapshot.ids.tolist() == list(range(0, 50, 5))
    assert snapshot.keys_of(np.array([0, 9])) == ["key 9", "key 0"]


def test_append_remove_and_info_follow_each_other(command, codes, images, tmp_path):
    out = tmp_path / "g"
    command("build", "--model", "m.onnx", "--images", images, "--out", out, "--batch", 3)
    code, _, _ = command("append", out, "--model", "m.onnx", "--images", images, "--batch", 2, "--again")
    assert code == 0
    assert open_current(out).ids.tolist() == list(range(14))
    assert command("remove", out, "--id", 0, "--id", 13)[0] == 0
    np.save(tmp_path / "ids.npy", np.array([1, 2]))
    assert command("remove", out, "--ids", tmp_path / "ids.npy")[0] == 0
    assert open_current(out).ids.tolist() == list(range(3, 13))
    code, stdout, _ = command("info", out, "--json", tmp_path / "info.json")
    assert code == 0
    assert open_current(out).version in stdout
    assert F in stdout
    said = json.loads((tmp_path / "info.json").read_text())
    assert (said["count"], said["distinct"], said["layout"]) == (10, 7, said["layout"])
    assert said["layout_reason"] in " ".join(stdout.split())
    assert sum(said["parts"]) - said["removed"] == 10
    assert command("compact", out, "--json", tmp_path / "info.json")[0] == 0
    said = json.loads((tmp_path / "info.json").read_text())
    assert (said["count"], said["distinct"], said["parts"], said["removed"]) == (10, 7, [10], 0)


def test_galleries_go_out_to_parquet_and_npy_and_come_back(command, codes, images, tmp_path):
    out, table = tmp_path / "g", tmp_path / "t.parquet"
    command("build", "--model", "m.onnx", "--images", images, "--out", out, "--batch", 3)
    assert command("export", out, "--out", table)[0] == 0
    code, _, error = command("build", "--codes", table, "--out", tmp_path / "h")
    assert code == 0, error
    first, second = open_current(out).contents(), open_current(tmp_path / "h", fingerprint=F, bits=16).contents()
    np.testing.assert_array_equal(first.codes, second.codes)
    assert list(first.keys) == list(second.keys)
    np.save(tmp_path / "more.npy", np.arange(7) + 50)
    for line, message in (
        (("append", out, "--codes", table, "--ids", tmp_path / "more.npy"), "leave --ids out"),
        (("append", out, "--codes", table), "already has keys"),
        (("build", "--codes", table, "--bits", 15, "--out", tmp_path / "i"), "has bits 16, --bits says 15"),
        (("export", out, "--out", table), "exists already"),
        (("export", out, "--out", tmp_path / "t.csv"), r"ends with .parquet or .npy"),
        (("export", out, "--out", tmp_path / "u.parquet", "--ids", tmp_path / "i.npy"), "Parquet holds the ids itself"),
    ):  # fmt: skip
        code, _, error = command(*line)
        assert (code, message in error) == (2, True), error
    assert command("export", out, "--out", tmp_path / "c.npy", "--ids", tmp_path / "i.npy")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), first.codes)
    np.testing.assert_array_equal(np.load(tmp_path / "i.npy"), first.ids)


def test_galleries_are_merged(command, codes, tmp_path):
    for name in "ab":
        command(*of_codes(codes, tmp_path / name))
    code, _, error = command("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert (code, "--renumber gives new ones" in error) == (2, True)
    assert command("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c", "--renumber")[0] == 0
    assert open_current(tmp_path / "c").ids.tolist() == list(range(20))


def test_verify_names_each_damaged_file_and_exits_1(command, codes, tmp_path):
    out, result = tmp_path / "g", tmp_path / "result.json"
    command(*of_codes(codes, out))
    command("append", out, "--codes", codes)
    command("compact", out)
    (out / ".gallery-00000009-00000000.tmp").write_bytes(b"half")
    (out / ".CURRENT.x1y2z3").write_bytes(b"half")
    assert command("verify", out, "--json", result)[0] == 0
    assert json.loads(result.read_text())["leftovers"] == [".CURRENT.x1y2z3", ".gallery-00000009-00000000.tmp"]
    old, serving = sorted(out.glob("gallery-*"))[0], open_current(out).path
    for damaged in (old, serving):
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.unlink()
        damaged.write_bytes(content)
        code, _, error = command("verify", out, "--json", result)
        assert (code, "checksum does not match" in error) == (1, True)
        said = json.loads(result.read_text())
        assert damaged.name in said["problems"]
        assert (said["current"] is not None) == (damaged == serving)


def test_a_pipe_with_a_parts_name_is_no_file_to_wait_for(command, codes, tmp_path):
    command(*of_codes(codes, tmp_path / "g"))
    os.mkfifo(tmp_path / "g" / "gallery-00000009-abcdef01.safetensors")
    code, _, error = command("verify", tmp_path / "g")
    assert (code, "not a regular file" in error) == (1, True)
    assert command("compact", tmp_path / "g")[0] == 2


def test_verify_of_what_is_no_gallery_is_bad_input(command, codes, tmp_path):
    code, _, error = command("verify", tmp_path)
    assert (code, error.count("\n")) == (2, 1)
    assert "is not a gallery (no CURRENT in it)" in error
    command(*of_codes(codes, tmp_path / "g"))
    (tmp_path / "g" / "CURRENT").unlink()  # one that has lost its pointer is damaged, and has files to check
    assert command("verify", tmp_path / "g")[0] == 1
    code, _, error = command(*of_codes(codes, tmp_path / "g"))
    assert (code, "already holds a gallery, though CURRENT is missing" in error) == (2, True)


@pytest.mark.parametrize("change", [("append", "--codes"), ("compact",)])
def test_a_folder_that_is_no_gallery_is_left_as_it_is(change, command, codes, tmp_path):
    (tmp_path / "no").mkdir()
    name, *options = change
    code, _, error = command(name, tmp_path / "no", *options, *([codes] if options else []))
    assert (code, "is not a gallery" in error) == (2, True)
    assert not list((tmp_path / "no").iterdir())


def test_a_gallery_is_replaced_only_with_overwrite(command, codes, tmp_path):
    assert command(*of_codes(codes, tmp_path / "g"))[0] == 0
    code, _, stderr = command(*of_codes(codes, tmp_path / "g"))
    assert (code, "--overwrite" in stderr) == (2, True)
    assert command(*of_codes(codes, tmp_path / "g"), "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("build --out {t}/g", "give either --model and --images, or --codes"),
        ("build --out {t}/g --model m.onnx", "give either"),
        ("build --out {t}/g --codes {t}/codes.npy --model m.onnx --images {t}", "give either"),
        ("build --out {t}/g --codes {t}/codes.npy", "needs --bits and --fingerprint"),
        ("build --out {t}/g --codes {t}/codes.npy --bits 16 --fingerprint short", "64 hex digits"),
        ("build --out {t}/g --codes {t}/codes.npy --bits 99999 --fingerprint {f}", "out of range"),
        ("build --out {t}/g --codes {t}/codes.npy --bits 0 --fingerprint {f}", "bits = 0 is out of range"),
        ("build --out {t}/g --codes {t}/codes.npy --bits 64 --fingerprint {f}", "codes of 64 bits must be"),
        ("build --out {t}/g --codes {t}/none.npy --bits 16 --fingerprint {f}", "none.npy does not exist"),
        ("build --out {t}/g --codes {t}/bad.npy --bits 16 --fingerprint {f}", "bad.npy is not an .npy file"),
        ("build --out {t}/no/g --codes {t}/codes.npy --bits 16 --fingerprint {f}", "parent folder is missing"),
        ("build --out {t}/g --codes {t}/codes.npy --bits 16 --fingerprint {f} --keys {t}/bad.npy", "not a text file"),
        ("build --out {t}/g --codes {t}/codes.npy --bits 16 --fingerprint {f} --ids {t}/codes.npy", "expected ids"),
        ("build --out {t}/g --codes {t}/codes.npy --bits 16 --fingerprint {f} --keys {t}/none", "does not exist"),
        ("append {t}/g --codes {t}/codes.npy", "is not a gallery"),
        ("remove {t}/g --id 1", "is not a gallery"),
        ("remove {t}/g", "say what to remove"),
        ("info {t}", "is not a gallery"),
        ("info {t}/codes.npy", "is not a gallery"),
        ("info", "Missing argument"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(command, codes, tmp_path, line, message):
    (tmp_path / "bad.npy").write_bytes(b"\xff\xfe not numpy")
    code, stdout, stderr = command(*line.format(t=tmp_path, f=F).split())
    assert code == 2
    assert message in stderr
    assert stderr.count("\n") == 1
    assert stdout == ""
    assert not (tmp_path / "g").exists()


def test_the_benchmark_measures_exact_engines_side_by_side(monkeypatch, capsys, tmp_path):
    app = make_app("Measure.")
    app.command()(bench)
    result = tmp_path / "bench.json"
    monkeypatch.setattr(
        sys,
        "argv",
        ["bench", "--codes", "5000", "--bits", "13", "--queries", "2", "--rounds", "2", "--json", str(result)],
    )
    with pytest.raises(SystemExit) as stopped:
        program.run(app)
    assert not stopped.value.code
    cases = json.loads(result.read_text())["cases"]
    assert [(case["bits"], case["queries"], case["k"]) for case in cases] == [(13, 2, 10), (13, 2, 100)]
    for case in cases:
        engines = {timing["engine"]: timing for timing in case["timings"]}
        assert {"dmsh", "bare pass"} <= set(engines)
        assert all(timing["milliseconds"] > 0 for timing in engines.values())
        assert engines["dmsh"]["ratio"] == 1
    assert "bare pass" in capsys.readouterr().out


def test_images_that_are_there_already_are_not_appended_again_by_mistake(command, images, tmp_path):
    out = tmp_path / "g"
    of_images = ("--model", "m.onnx", "--images", images, "--batch", 3)
    assert command("build", *of_images, "--out", out)[0] == 0
    version = open_current(out).version
    code, _, error = command("append", out, *of_images)
    assert (code, error.count("\n")) == (2, 1)
    assert "already has keys 0.png, 1.png, 2.png and 4 more" in error
    assert open_current(out).version == version
    assert command("append", out, *of_images, "--again")[0] == 0
    assert open_current(out).count == 14


def test_an_image_that_another_writer_appends_meanwhile_is_not_appended_twice(command, images, tmp_path, monkeypatch):
    out, infer = tmp_path / "g", FakeEncoder.infer
    of_images = ("--model", "m.onnx", "--images", images, "--batch", 3)
    assert command("build", *of_images, "--out", out)[0] == 0
    remove(out, np.array([0, 1]))
    (tmp_path / "more").mkdir()
    for name in ("0.png", "1.png"):
        (images / name).rename(tmp_path / "more" / name)

    def interrupted(encoder, given):
        append(out, np.zeros((1, 2), np.uint8), None, ["1.png"])
        return infer(encoder, given)

    monkeypatch.setattr(FakeEncoder, "infer", interrupted)
    code, _, error = command("append", out, "--model", "m.onnx", "--images", tmp_path / "more")
    assert (code, "already has key 1.png: " in error) == (2, True)
    assert open_current(out).count == 6


def test_codes_are_removed_by_key_and_listed_with_it(command, images, tmp_path):
    out = tmp_path / "g"
    assert command("build", "--model", "m.onnx", "--images", images, "--out", out, "--batch", 3)[0] == 0
    assert command("remove", out, "--key", "0.png", "--key", "4.png")[0] == 0
    code, listed, _ = command("list", out, "--json", tmp_path / "list.json")
    assert (code, listed.splitlines()) == (0, ["1\t1.png", "2\t2.png", "3\t3.png", "5\t5.png", "6\t6.png"])
    assert json.loads((tmp_path / "list.json").read_text())["ids"] == [1, 2, 3, 5, 6]
    code, _, error = command("remove", out, "--key", "0.png")
    assert (code, "has no key 0.png: see gallery list" in error) == (2, True)
    assert command("remove", out, "--key", "1.png", "--id", 2)[0] == 2


def test_files_that_are_no_images_are_counted_in_the_report(command, images, tmp_path):
    (images / "Thumbs.db").write_bytes(b"no image")
    code, said, _ = command("build", "--model", "m.onnx", "--images", images, "--out", tmp_path / "g", "--batch", 3)
    assert (code, "1 file is no image by name and left out: Thumbs.db" in said) == (0, True)
    assert open_current(tmp_path / "g").count == 7


def test_names_that_steer_a_terminal_are_shown_with_escapes(command, images, tmp_path):
    (images / "0.png").rename(images / "0\x1b[2J\n7.png")
    (images / b"notes \xe9.txt".decode(errors="surrogateescape")).write_bytes(b"no image")
    out = tmp_path / "g"
    code, said, _ = command("build", "--model", "m.onnx", "--images", images, "--out", out, "--batch", 3)
    assert (code, r"left out: notes \udce9.txt" in said) == (0, True)
    assert command("list", out)[1].splitlines()[0] == r"0	0\x1b[2J\n7.png"


@pytest.mark.parametrize("lost", ["a full disk", "a reader that is gone", "a file that cannot be made"])
def test_a_change_that_is_written_succeeds_though_its_report_cannot_be(command, codes, tmp_path, lost):
    folder = tmp_path / "g"
    assert command(*of_codes(codes, folder))[0] == 0
    main = [sys.executable, "-c", "from dmsh_serving.cli import main; main()", "gallery"]
    line = [*main, "append", folder, "--codes", codes, "--bits", "16", "--fingerprint", F]
    if lost == "a file that cannot be made":
        line += ["--json", "/proc/result.json"]
    with Path("/dev/full").open("w") as full:
        run = subprocess.Popen(
            line, stdout=full if lost == "a full disk" else subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if lost == "a reader that is gone":
            run.stdout.close()
            run.stdout = None
        said = run.communicate()[1]
    assert (run.returncode, len(said.splitlines())) == (0, 1), said
    assert f"version {open_current(folder).version} is written, but the report is not: " in said
    assert open_current(folder).count == 20
