import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from hostile_images import SLOW, tiff_of_bad_rows
from PIL import Image

from dmsh_serving.errors import InputError, MissingError, UnavailableError
from dmsh_serving.images import decoding_process, isolated
from dmsh_serving.images.decode import FORMATS, MAX_FILE_BYTES, image_from_bytes, rgb_from_bytes
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.isolated import Decoders
from dmsh_serving.images.limits import MAX_DECODE_BYTES, MAX_PIXELS

SHORT = 0.2  # seconds of processor time
GENEROUS = 20.0  # of a slow and busy machine
BUSY = "^the server is busy decoding other images: try again$"


def file_of(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width=190, height=70):
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


DEEP = Image.fromarray(np.arange(4000, dtype=np.uint16).reshape(50, 80) * 16)
GOOD = file_of(photo(), "PNG")
FILES = {
    **{kind.lower(): file_of(photo(), kind) for kind in FORMATS},
    "large jpeg": file_of(photo(900, 700), "JPEG"),
    "turned jpeg": file_of(photo(), "JPEG", exif=turned()),
    "transparent png": file_of(photo().quantize(), "PNG", transparency=3),
    "deep png": file_of(DEEP, "PNG"),
    "deep tiff": file_of(DEEP, "TIFF"),
    "cmyk tiff": file_of(photo().convert("CMYK"), "TIFF"),
    "alpha tiff": file_of(photo().convert("RGBA"), "TIFF"),
    "bilevel tiff": file_of(photo().convert("1"), "TIFF", compression="group4"),
    **{
        f"{compression} tiff": file_of(photo(), "TIFF", compression=compression)
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    },
}


@pytest.fixture(scope="module")
def decoders():
    shared = Decoders(2)
    yield shared
    shared.close()


def next_of(decoders):
    """Return the process that decodes the next file, as it is held here."""
    decoders.image(GOOD, 16, Framing(), name="x")
    return decoders._places.queue[-1]


def child_of(decoders):
    """Return the process that decodes the next file, as the system knows it."""
    return psutil.Process(next_of(decoders)._child.pid)


def wait_for(condition):
    deadline = time.monotonic() + GENEROUS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def children():
    return set(psutil.Process().children())


@pytest.mark.parametrize("kind", FILES)
def test_the_pixels_are_those_of_this_process(decoders, kind):
    for framing in (Framing(), Framing(decode_rule=1), Framing("pad", "lanczos")):
        expected = image_from_bytes(FILES[kind], 48, framing)
        assert np.array_equal(decoders.image(FILES[kind], 48, framing, name="x"), expected)
    assert decoders.rgb(FILES[kind]).tobytes() == rgb_from_bytes(FILES[kind]).tobytes()


@pytest.mark.parametrize("data", [b"", b"nothing", GOOD[:-40], bytes(MAX_FILE_BYTES + 1), GOOD[:200] + b"\r\n\0" * 9])
def test_a_file_that_is_refused_is_refused_in_the_same_words(decoders, data):
    with pytest.raises(InputError) as here:
        image_from_bytes(data, 16, name="upload")
    with pytest.raises(InputError) as there:
        decoders.image(data, 16, Framing(), name="upload")
    assert str(there.value) == str(here.value)


@pytest.mark.parametrize("kind", SLOW)
def test_fault_29_a_file_that_takes_too_long_is_refused_alone_and_the_next_is_answered(kind):
    if kind not in FORMATS:
        pytest.skip(f"no support for {kind} here")
    decoders = Decoders(2, seconds=SHORT)
    decoders.start()
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(decoders.image, SLOW[kind], 16, Framing(), name="upload")
        assert np.array_equal(decoders.image(GOOD, 16, Framing(), name="x"), image_from_bytes(GOOD, 16))
        with pytest.raises(InputError, match=r"^upload: the image takes too long to decode$"):
            refused.result(GENEROUS)
    assert decoders.rgb(GOOD).tobytes() == rgb_from_bytes(GOOD).tobytes()
    decoders.close()


def test_the_time_ends_though_the_parent_ignores_and_blocks_its_signal():
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
    decoders = Decoders(1, seconds=SHORT)
    try:
        with pytest.raises(InputError, match="takes too long"):
            decoders.image(SLOW["TIFF"], 16, Framing(), name="upload")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
        signal.signal(signal.SIGPROF, before)
        decoders.close()


def test_time_is_given_in_proportion_to_the_pixels():
    large = file_of(Image.new("RGB", (5000, 5000)), "PNG", compress_level=1)  # opened in 1 ms, decoded in 150
    decoders = Decoders(1, seconds=0.02)
    assert decoders.image(large, 16, Framing(), name="x").shape == (16, 16, 3)
    decoders.close()


def test_the_time_until_the_size_is_known_is_not_given_again(monkeypatch):
    left = []

    def slow_to_open(data, *, name, on_size):
        start = time.process_time()
        while time.process_time() - start < 0.3:
            pass
        on_size(5_000_000)
        left.append(signal.getitimer(signal.ITIMER_PROF)[0])
        raise InputError("no more is needed")

    monkeypatch.setattr(decoding_process, "rgb_from_bytes", slow_to_open)
    decoding_process._answer(io.BytesIO(GOOD), "x", len(GOOD), GENEROUS)
    assert GENEROUS < left[0] < GENEROUS + 1 - 0.2  # 0.2 s more per million pixels
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0


@pytest.mark.parametrize("ending", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_fault_06_a_decoder_that_crashes_is_the_error_of_its_file_alone(decoders, ending):
    process = next_of(decoders)
    child = psutil.Process(process._child.pid)
    child.suspend()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(decoders.image, GOOD, 16, Framing(), name="upload")
        wait_for(lambda: os.fstat(process._memory.fileno()).st_size)  # until it is asked
        child.send_signal(ending)
        with contextlib.suppress(psutil.NoSuchProcess):
            child.resume()
        with pytest.raises(InputError, match=f"upload: the image is damaged: its decoder ended by {ending.name}"):
            answer.result(GENEROUS)
    assert decoders.rgb(GOOD).tobytes() == rgb_from_bytes(GOOD).tobytes()


def test_a_process_that_hangs_is_ended(monkeypatch):
    decoders = Decoders(1)
    child = child_of(decoders)
    monkeypatch.setattr(isolated, "_WALL_SECONDS", 1.0)
    child.suspend()
    with pytest.raises(InputError, match="takes too long"):
        decoders.image(GOOD, 16, Framing(), name="x")
    assert not child.is_running()
    decoders.close()


def test_nothing_is_decoded_that_nobody_waits_for(decoders):
    child = child_of(decoders)
    with pytest.raises(UnavailableError, match=BUSY):
        decoders.image(GOOD, 16, Framing(), name="x", until=time.monotonic())
    assert child_of(decoders) == child
    child.suspend()
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=BUSY):
        decoders.image(GOOD, 16, Framing(), name="x", until=start + 1.0)
    assert time.monotonic() - start < GENEROUS
    assert not child.is_running()


@contextlib.contextmanager
def at_work(decoders):
    """Hold the only process over a file for as long as the block runs; then its answer must be right."""
    busy = child_of(decoders)
    busy.suspend()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(decoders.rgb, GOOD)
        wait_for(decoders._places.empty)
        try:
            yield busy
        finally:
            busy.resume()
        assert answer.result(GENEROUS).size == (190, 70)


def test_a_file_waits_for_a_process_that_is_busy_no_longer_than_anybody_waits_for_the_file():
    decoders = Decoders(1)
    with at_work(decoders):
        start = time.monotonic()
        with pytest.raises(UnavailableError, match=BUSY):
            decoders.image(GOOD, 16, Framing(), name="x", until=start + 0.1)
        assert time.monotonic() - start < GENEROUS
    decoders.close()


def test_a_file_waits_for_a_process_that_starts_no_longer_than_anybody_waits_for_the_file(monkeypatch):
    before = children()
    monkeypatch.setattr(isolated, "_START", "import time; time.sleep(100)")
    decoders, start = Decoders(1), time.monotonic()
    with pytest.raises(UnavailableError, match="the process that decodes images does not start in time: try again"):
        decoders.image(GOOD, 16, Framing(), name="x", until=start + 0.2)
    assert time.monotonic() - start < GENEROUS
    assert children() == before


def test_an_answer_that_nobody_took_is_not_the_next_files(decoders, monkeypatch):
    def interrupted(most):
        raise KeyboardInterrupt

    process = next_of(decoders)
    channel = process._channel
    given = {"write": channel.write, "flush": channel.flush, "close": channel.close, "readline": interrupted}
    with monkeypatch.context() as patch:
        patch.setattr(process, "_channel", types.SimpleNamespace(**given))
        with pytest.raises(KeyboardInterrupt):
            decoders.image(GOOD, 16, Framing(), name="x")
    assert decoders.rgb(GOOD).tobytes() == rgb_from_bytes(GOOD).tobytes()


def test_a_process_that_ended_while_nobody_asked_is_replaced(decoders):
    child = child_of(decoders)
    child.kill()
    child.wait(GENEROUS)
    assert decoders.rgb(GOOD).tobytes() == rgb_from_bytes(GOOD).tobytes()


def test_a_process_may_take_what_the_largest_image_needs_and_no_more():
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    decoders = Decoders(1)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        child = child_of(decoders)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    most = decoding_process.MEMORY_BYTES
    assert child.rlimit(psutil.RLIMIT_DATA)[0] == most
    assert child.rlimit(psutil.RLIMIT_CORE)[0] == 0
    assert Path(f"/proc/{child.pid}/oom_score_adj").read_text() == "1000\n"
    assert most >= MAX_DECODE_BYTES + MAX_FILE_BYTES + 3 * MAX_PIXELS
    decoders.close()


def test_a_limit_that_is_lower_already_is_kept():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        decoding_process._limit(resource.RLIMIT_NOFILE, soft - 1)
        decoding_process._limit(resource.RLIMIT_NOFILE, soft)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft - 1, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("data", [SLOW["TIFF"], file_of(Image.new("RGB", (3000, 3000)), "PNG")], ids=["TIFF", "PNG"])
def test_fault_30_a_file_that_needs_more_memory_is_refused_alone(data):
    decoders = Decoders(1, seconds=GENEROUS)
    child = child_of(decoders)
    held = 1024 * int(Path(f"/proc/{child.pid}/status").read_text().split("VmData:")[1].split()[0])
    child.rlimit(psutil.RLIMIT_DATA, (held + (12 << 20), decoding_process.MEMORY_BYTES))
    with pytest.raises(InputError, match=r"^upload: the image needs too much memory to decode"):
        decoders.image(data, 16, Framing(), name="upload")
    assert decoders.rgb(GOOD).tobytes() == rgb_from_bytes(GOOD).tobytes()
    decoders.close()


def test_fault_30_pixels_that_the_system_has_no_room_for_are_the_error_of_their_file(decoders):
    child = child_of(decoders)
    child.rlimit(psutil.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    with pytest.raises(InputError, match=r"^upload: the image needs too much memory to decode$"):
        decoders.rgb(GOOD, name="upload")
    child.kill()
    child.wait(GENEROUS)


def test_fault_30_a_file_that_the_system_has_no_room_for_is_refused_as_that(decoders, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(isolated, "put", lambda memory, data: decoding_process.put(memory, data[:-1]))
        with pytest.raises(InputError, match=r"^upload: the image needs too much memory to decode$"):
            decoders.rgb(GOOD, name="upload")
    assert decoders.rgb(GOOD).tobytes() == rgb_from_bytes(GOOD).tobytes()


def test_no_room_for_pixels_raises_nothing_where_they_are_put():
    class Full:
        def seek(self, place):
            return place

        def write(self, data):
            raise OSError(28, "No space left on device")

    decoding_process.put(Full(), b"pixels")


def test_files_at_once_share_the_processes_that_there_are(decoders):
    before = children()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: decoders.image(GOOD, 16, Framing(), name="x"), range(60)))
    assert all(np.array_equal(image, image_from_bytes(GOOD, 16)) for image in found)
    assert decoders._places.qsize() == 2
    assert len(children() - before) <= 2


def test_files_one_after_the_other_and_starts_take_one_process():
    before = children()
    decoders = Decoders(2)
    for _ in range(3):
        decoders.start()
        decoders.rgb(GOOD)
    assert len(children() - before) == 1
    decoders.close()
    assert children() == before


def test_closing_ends_the_processes_and_one_that_decodes_when_it_is_done():
    decoders = Decoders(1)
    with at_work(decoders) as busy:
        decoders.close()
    assert not busy.is_running()
    idle = Decoders(1)
    child = child_of(idle)
    idle.close()
    assert not child.is_running()


def test_a_process_ends_when_its_parent_is_killed():
    code = (
        "import os, signal\n"
        "from dmsh_serving.images.isolated import Decoders\n"
        "decoders = Decoders(1)\n"
        "decoders.start()\n"
        "print(decoders._places.queue[-1]._child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with contextlib.suppress(psutil.NoSuchProcess):
        child = psutil.Process(int(done.stdout))
        wait_for(lambda: child.status() == psutil.STATUS_ZOMBIE)


def test_the_interrupt_of_a_terminal_does_not_reach_the_processes(decoders):
    child = child_of(decoders)
    assert os.getsid(child.pid) != os.getsid(0)


def test_the_processes_are_told_no_secrets_of_the_environment(monkeypatch):
    monkeypatch.setenv("DMSH_CLICKHOUSE_PASSWORD", "secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    decoders = Decoders(1)
    told = child_of(decoders).environ()
    assert set(told) <= {"OPENBLAS_NUM_THREADS", *isolated._ENVIRONMENT}
    assert told["LANG"] == "C.UTF-8"
    decoders.close()


def test_a_process_that_cannot_start_is_told_at_the_start(monkeypatch):
    monkeypatch.setattr(isolated, "_START", "import nothing_of_this_name")
    with pytest.raises(MissingError, match=r"does not start: .*/python3\.\d+ ended by exit code 1"):
        Decoders(1).start()
    monkeypatch.setattr(isolated, "_python", lambda: "/nowhere/python")
    with pytest.raises(MissingError, match=r"does not start: .*No such file or directory: '/nowhere/python'"):
        Decoders(1).start()


def test_an_interpreter_is_found_where_sys_executable_names_none(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    decoders = Decoders(1)
    decoders.start()
    decoders.close()
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    with pytest.raises(MissingError, match=r"no python3\.\d+ in /nowhere/bin"):
        Decoders(1).start()


def test_what_a_decoder_says_of_a_bad_image_fills_nobody_s_log(capfd):
    file = tiff_of_bad_rows(65_000)
    rgb_from_bytes(file)
    assert len(capfd.readouterr().err) > 1e6
    with contextlib.closing(Decoders(1)) as decoders:
        assert decoders.rgb(file).size == (1, 65_000)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("taken", [False, True], ids=["2 is free", "2 is another file"])
def test_a_program_without_stderr_decodes_all_the_same(tmp_path, taken):
    (tmp_path / "bad.tiff").write_bytes(tiff_of_bad_rows(1000))
    code = (
        "import os, sys\n"
        f"held = os.open({os.devnull!r}, os.O_RDONLY) if {taken} else None\n"
        "from pathlib import Path\n"
        "from dmsh_serving.images.isolated import Decoders\n"
        "print(Decoders(1).rgb(Path(sys.argv[1]).read_bytes()).size)\n"
    )
    command = ["sh", "-c", '"$@" 2>&-', "sh", sys.executable, "-c", code, tmp_path / "bad.tiff"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.stdout == "(1, 1000)\n"
