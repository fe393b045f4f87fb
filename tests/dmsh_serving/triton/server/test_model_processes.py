import os
import subprocess
import sys

from dmsh_serving.triton.server.model_processes import all_living, all_stubs, living_stubs, processor_seconds

# The first process of a container, as its orphans see it.
FIRST = """
import ctypes, os, subprocess, time
from dmsh_serving.triton.server import model_processes

PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
children = f"/proc/self/task/{os.getpid()}/children"
subprocess.run(["sh", "-c", "sleep 0.2 & sleep 0.3 &"], check=True)
own = subprocess.Popen(["sh", "-c", "exit 7"])
while len(open(children).read().split()) < 3:
    time.sleep(0.01)
model_processes.bury_orphans(own.pid)
time.sleep(0.6)
model_processes.bury_orphans(own.pid)
print(len(open(children).read().split()))
os.getpid = lambda: 1
deadline = time.monotonic() + 30
while len(open(children).read().split()) > 1 and time.monotonic() < deadline:
    own.poll()
    model_processes.bury_orphans(own.pid)
print(len(open(children).read().split()), own.wait())
"""


def test_the_first_process_of_a_container_buries_orphans_and_leaves_its_own_child_to_who_waits_for_it():
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["3", "0", "7"], "")


def process(folder, pid, name, state, children=""):
    task = folder / str(pid) / "task" / str(pid)
    task.mkdir(parents=True)
    (task / "children").write_text(children)
    (folder / str(pid) / "stat").write_text(f"{pid} ({name}) {state} 1 1 1 0 -1")


def test_only_living_stubs_among_the_servers_children_count(tmp_path):
    process(tmp_path, 10, "tritonserver", "S", children="11 12 13 14 ")
    process(tmp_path, 11, "triton_python_b", "S")
    process(tmp_path, 12, "triton_python_b", "Z")
    process(tmp_path, 13, "other (odd) name", "S")
    process(tmp_path, 20, "triton_python_b", "S")
    assert living_stubs(10, tmp_path) == {11}
    assert all_stubs(10, tmp_path) == {11, 12}


def test_children_of_every_thread_count(tmp_path):
    process(tmp_path, 10, "tritonserver", "S", children="11")
    thread = tmp_path / "10" / "task" / "15"
    thread.mkdir()
    (thread / "children").write_text("12")
    for pid in (11, 12):
        process(tmp_path, pid, "triton_python_b", "R")
    assert living_stubs(10, tmp_path) == {11, 12}


def test_a_server_that_is_gone_has_none(tmp_path):
    assert living_stubs(10, tmp_path) == frozenset()


def test_stubs_that_were_found_are_asked_for_alone(tmp_path):
    process(tmp_path, 11, "triton_python_b", "S")
    process(tmp_path, 12, "triton_python_b", "S")
    process(tmp_path, 13, "triton_python_b", "Z")
    process(tmp_path, 14, "other", "S")
    assert all_living([11, 12], tmp_path)
    for dead in (13, 14, 15):
        assert not all_living([11, dead], tmp_path)


def test_the_processors_time_of_a_model_is_that_of_its_stubs_and_else_of_the_server(tmp_path):
    second = os.sysconf("SC_CLK_TCK")
    for pid, name, model, user, system in (
        (10, "tritonserver", "", 5, 2),
        (11, "odd) S 1 (name", "dmsh_encoder", 20, 4),
        (12, "triton_python_b", "dmsh_encoder", 100, 0),
        (13, "triton_python_b", "dmsh_ranker", 1000, 0),
    ):
        process(tmp_path, pid, name, "S")
        fields = f"{pid} ({name}) S 1 1 1 0 -1 4194560 9 8 7 6 {user * second} {system * second} 77 66"
        (tmp_path / str(pid) / "stat").write_text(fields)
        (tmp_path / str(pid) / "cmdline").write_text(f"stub\0/repository/{model}/1/model.py\0")
    stubs = {11, 12, 13, 14}
    assert processor_seconds("dmsh_encoder", 10, stubs, tmp_path) == 124
    assert processor_seconds("dmsh_ranker", 10, stubs, tmp_path) == 1000
    assert processor_seconds("dmsh_decode", 10, stubs, tmp_path) == 7
    assert processor_seconds("dmsh_decode", 15, [], tmp_path) == 0
