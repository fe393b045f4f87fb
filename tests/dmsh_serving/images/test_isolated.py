import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from hostile_images import SLOW
from PIL import Image

from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.images import isolated
from dmsh_serving.images.decode import FORMATS, MAX_FILE_BYTES, image_from_bytes, rgb_from_bytes
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.isolated import Decoders
from dmsh_serving.images.limits import MAX_DECODE_BYTES, MAX_PIXELS

SHORT = 0.2  # seconds of processor time
GENEROUS = 20.0  # of a slow and busy machine


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


def child_of(decoders):
    """Return the process that decodes the next file."""
    decoders.image(GOOD, 16, Framing(), name="x")
    return psutil.Process(decoders._idle[-1]._child.pid)


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
    large = file_of(Image.new("RGB", (5000, 5000)), "PNG", compress_level=1)  # some 0.17 s
    decoders = Decoders(1, seconds=0.06)
    assert decoders.image(large, 16, Framing(), name="x").shape == (16, 16, 3)
    decoders.close()


@pytest.mark.parametrize("ending", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_fault_06_a_decoder_that_crashes_is_the_error_of_its_file_alone(decoders, ending):
    child, memory = child_of(decoders), decoders._idle[-1]._memory.fileno()
    child.suspend()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(decoders.image, GOOD, 16, Framing(), name="upload")
        while not os.fstat(memory).st_size:  # until it is asked
            time.sleep(0.001)
        child.send_signal(ending)
        child.resume()
        with pytest.raises(InputError, match=f"upload: the image is damaged: its decoder ended by {ending.name}"):
            answer.result(GENEROUS)
    assert decoders.rgb(GOOD).tobytes() == rgb_from_bytes(GOOD).tobytes()


def test_a_process_that_hangs_is_ended(monkeypatch):
    decoders = Decoders(1)
    child = child_of(decoders)
    monkeypatch.setattr(isolated, "_WALL_SECONDS", 0.1)
    child.suspend()
    with pytest.raises(InputError, match="takes too long"):
        decoders.image(GOOD, 16, Framing(), name="x")
    assert not child.is_running()
    decoders.close()


def test_nothing_is_decoded_that_nobody_waits_for(decoders):
    child = child_of(decoders)
    with pytest.raises(InputError, match="x: the images before it took too long to decode: send fewer at once"):
        decoders.image(GOOD, 16, Framing(), name="x", until=time.monotonic())
    child.suspend()
    with pytest.raises(InputError, match="x: the image takes too long to decode"):
        decoders.image(GOOD, 16, Framing(), name="x", until=time.monotonic() + 0.5)
    assert not child.is_running()


def test_a_process_that_ended_while_nobody_asked_is_replaced(decoders):
    child = child_of(decoders)
    child.kill()
    child.wait(GENEROUS)
    assert decoders.rgb(GOOD).tobytes() == rgb_from_bytes(GOOD).tobytes()


def test_a_process_may_take_what_the_largest_image_needs_and_no_more(decoders):
    child = child_of(decoders)
    most = isolated.MEMORY_BYTES
    assert child.rlimit(psutil.RLIMIT_DATA)[0] == most
    assert child.rlimit(psutil.RLIMIT_CORE)[0] == 0
    assert Path(f"/proc/{child.pid}/oom_score_adj").read_text() == "1000\n"
    assert most >= MAX_DECODE_BYTES + MAX_FILE_BYTES + 3 * MAX_PIXELS


@pytest.mark.parametrize("data", [SLOW["TIFF"], file_of(Image.new("RGB", (3000, 3000)), "PNG")], ids=["TIFF", "PNG"])
def test_fault_30_a_file_that_needs_more_memory_is_refused_alone(decoders, data):
    child = child_of(decoders)
    held = 1024 * int(Path(f"/proc/{child.pid}/status").read_text().split("VmData:")[1].split()[0])
    child.rlimit(psutil.RLIMIT_DATA, (held + (12 << 20), isolated.MEMORY_BYTES))
    with pytest.raises(InputError, match=r"^upload: the image needs too much memory to decode"):
        decoders.image(data, 16, Framing(), name="upload")
    if child.is_running():  # it had enough to say so
        child.kill()
        child.wait(GENEROUS)
    assert decoders.rgb(GOOD).tobytes() == rgb_from_bytes(GOOD).tobytes()


def test_files_at_once_share_the_processes_that_there_are(decoders):
    before = set(psutil.Process().children())
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: decoders.image(GOOD, 16, Framing(), name="x"), range(60)))
    assert all(np.array_equal(image, image_from_bytes(GOOD, 16)) for image in found)
    assert len(decoders._idle) <= 2
    assert len(set(psutil.Process().children()) - before) <= 2


def test_closing_ends_the_processes_and_one_that_decodes_when_it_is_done():
    decoders = Decoders(1)
    busy = child_of(decoders)
    busy.suspend()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(decoders.rgb, GOOD)
        while decoders._idle:
            time.sleep(0.001)
        decoders.close()
        busy.resume()
        assert answer.result(GENEROUS).size == (190, 70)
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
        "print(decoders._idle[0]._child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child, deadline = int(done.stdout), time.monotonic() + GENEROUS
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_interrupt_of_a_terminal_does_not_reach_the_processes(decoders):
    child = child_of(decoders)
    assert os.getsid(child.pid) != os.getsid(0)


def test_a_process_that_cannot_start_is_told_at_the_start(monkeypatch):
    monkeypatch.setattr(isolated, "_START", "import nothing_of_this_name")
    with pytest.raises(MissingError, match=r"does not start: .*/python3\.\d+ ended by exit code 1"):
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
