"""Every state that a power loss may leave, and every system call that may fail; see helpers/power_loss.py."""

import ast
import json
import os
import subprocess
import sys

import pytest
from disk import Inode, Step, Trace, read_tree, trace_of
from power_loss import CHANGES, HANDED_ON
from project import ROOT
from sources import INSTALLED, PACKAGES
from system_calls import STRACE, Call

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed: apt-get install strace")


# All of them take a minute and more: make test-faults.
FAILING = (
    list(CHANGES) if os.environ.get("DMSH_FAULTS") == "all" else ["a build over another", "an export over another"]
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    command = [sys.executable, ROOT / "tests" / "helpers" / "power_loss.py", tmp_path_factory.mktemp("disk"), *FAILING]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, each in found.items():
        print(f"{name}: {each['states']} states after a power loss, {each.get('failures', 0)} failing calls")
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_fault_39_40_a_power_loss_leaves_the_old_or_the_new_whole_whatever_was_not_fsynced(found, change):
    assert found[change]["wrong"] == []
    assert found[change]["states"] > 5


def test_fault_40_without_any_one_fsync_of_the_code_something_could_be_lost(found):
    """An fsync that no change needs is no fsync that is tested."""
    needed = {line for each in found.values() for line in set(each["fsyncs"]) - set(each["needless"])}
    assert needed == calls_of_fsync()


@pytest.mark.parametrize("change", FAILING)
def test_fault_47_whichever_system_call_fails_nothing_is_lost_and_the_error_names_the_file(found, change):
    assert found[change]["failures"] > 10
    assert found[change]["odd"] == []
    assert found[change]["unnamed"] == []


def calls_of_fsync():
    """Return file:line of every call of fsync in the packages, but for those that hand it on."""
    found = set()
    for package in INSTALLED:
        for file in PACKAGES[package].rglob("*.py"):
            tree = ast.parse(file.read_text())
            handed_on = {
                call
                for function in ast.walk(tree)
                if isinstance(function, ast.FunctionDef) and function.name in HANDED_ON
                for call in ast.walk(function)
            }
            for call in set(ast.walk(tree)) - handed_on:
                if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in (
                    "fsync",
                    "_fsync",
                    "fsync_folder",
                ):
                    found.add(f"{file.name}:{call.lineno}")
    return found


def states(*steps, root=None):
    return [state for done, state in Trace(root or Inode({}), list(steps)).states() if done]


def test_a_file_that_was_renamed_before_its_bytes_were_sure_may_be_empty_torn_or_zeros():
    root, file = Inode({}), Inode(None, b"", 0o600)
    steps = [
        Step("link", root, ("draft", file)), Step("write", file, (0, b"ab")),
        Step("rename", root, ("final", file, root, "draft")), Step("fsync", root),
    ]  # fmt: skip
    assert {state["final"][0] for state in states(*steps, root=root)} == {b"", b"a", b"ab", b"\0\0"}
    assert states(*steps[:2], Step("fsync", file), *steps[2:], root=root) == [{"final": (b"ab", 0o600)}]


def test_a_name_is_sure_once_its_folder_was_fsynced():
    root, file = Inode({}), Inode(None, b"", 0o600)
    link = Step("link", root, ("file", file))
    assert states(link, root=root) == [{}, {"file": (b"", 0o600)}]
    assert states(link, Step("fsync", root), root=root) == [{"file": (b"", 0o600)}]


def test_calls_of_strace_become_changes_and_an_unknown_one_is_refused(tmp_path):
    (tmp_path / "old").write_bytes(b"xyz")
    tree = read_tree(tmp_path)
    name = str(tmp_path / "old").encode()
    opened = Call("openat", ("AT_FDCWD", name, "O_RDWR"), 7, "")
    calls = [
        opened, Call("write", ("7", b"AB", "2"), 2, ""), Call("fsync", ("7",), 0, ""),
        Call("close", ("7",), 0, ""), Call("rename", (name, name + b"2"), 0, ""), Call("unlink", (name,), -1, "ENOENT"),
    ]  # fmt: skip
    trace = trace_of(tmp_path, tree, calls)
    assert [step.kind for step in trace.steps] == ["write", "fsync", "rename"]
    contents = {path: found[0] for done, state in trace.states() if done for path, found in state.items()}
    assert contents == {"old": b"ABz", "old2": b"ABz"}
    with pytest.raises(AssertionError, match="does not know this call"):
        trace_of(tmp_path, tree, [opened, Call("pwrite64", ("7", b"A", "1", "0"), 1, "")])
