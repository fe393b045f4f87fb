"""A disk that loses power: which states of a folder may be left after the calls of :mod:`system_calls`.

Only fsync makes things sure: that of a file its bytes, its length and its mode; that of a folder the names in it. All
else that was asked for may be on the disk or not, in any combination, whatever the order it was asked in; a file may
also have half of what was written last, or zeros in its place. Real file systems lose less. One rename is atomic, also
between two folders (then it is sure after the fsync of the folder with the new name).
"""

import itertools
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

ALL_SUBSETS_UP_TO = 7  # names that are not sure; of more, prefixes and a sample
SAMPLED = 100
# Calls that change nothing on the disk.
HARMLESS = {"close", "dup", "flock", "lseek"}


@dataclass(eq=False)
class Inode:
    """A file (``names`` None) or a folder as it was at the beginning."""

    names: dict | None = None
    content: bytes = b""
    mode: int = 0


@dataclass
class Step:
    """One change: of the bytes of ``inode`` or of names, or an fsync of ``inode``."""

    kind: str
    inode: Inode
    arguments: tuple = ()


@dataclass
class Trace:
    """The changes of a folder, made of its calls."""

    root: Inode
    steps: list = field(default_factory=list)

    def without(self, chosen):
        """Return the same without some of its fsyncs, given by number."""
        numbers = itertools.count()
        return Trace(self.root, [s for s in self.steps if s.kind != "fsync" or next(numbers) not in chosen])

    def states(self):
        """Yield (whether all was done, {path: (bytes, mode), or None of a folder}) for each state, once."""
        seen = set()
        for cut in range(len(self.steps) + 1):
            for state in _states(self.root, self.steps[:cut]):
                key = (cut == len(self.steps), frozenset(state.items()))
                if key not in seen:
                    seen.add(key)
                    yield cut == len(self.steps), state


def read_tree(folder):
    """Return the inode of a folder and all below it."""
    inode = Inode({})
    for path in folder.iterdir():
        mode = path.stat().st_mode & 0o777
        inode.names[path.name] = read_tree(path) if path.is_dir() else Inode(None, path.read_bytes(), mode)
    return inode


def write_tree(state, folder):
    """Make ``folder`` hold a state."""
    for path, found in sorted(state.items()):
        if found is None:
            (folder / path).mkdir(parents=True)
        else:
            content, mode = found
            (folder / path).write_bytes(content)
            (folder / path).chmod(mode)


def trace_of(folder, tree, calls):
    """Follow the calls of a process that changed ``folder``, which was ``tree`` before."""
    return _Follower(folder, tree).trace(calls)


class _Follower:
    """Knows which file each descriptor and path means, call after call."""

    def __init__(self, folder, tree):
        self._root, self._folder = tree, folder
        self._open = {}  # descriptor -> [inode, offset]
        self._now = {}  # folder -> its names now
        self._steps = []

    def trace(self, calls):
        for call in calls:
            if call.error or call.name in HARMLESS:
                self._after(call)
                continue
            getattr(self, f"_{call.name}", self._unknown)(*call.arguments, result=call.result)
        return Trace(self._root, self._steps)

    def _after(self, call):
        if call.name == "close":
            self._open.pop(int(call.arguments[0]), None)
        elif call.name == "dup" and int(call.arguments[0]) in self._open:
            self._open[call.result] = self._open[int(call.arguments[0])]
        elif call.name == "lseek" and not call.error and int(call.arguments[0]) in self._open:
            self._open[int(call.arguments[0])][1] = call.result

    def _unknown(self, *arguments, result):
        raise AssertionError(f"the model of the disk does not know this call: {arguments}")

    def _names(self, inode):
        return self._now.setdefault(inode, dict(inode.names or {}))

    def _place(self, at, text):
        """Return (folder, name) of a path; None outside of the folder that is looked at."""
        path = Path(os.fsdecode(text))
        if not path.is_absolute():
            if at == "AT_FDCWD" or int(at) not in self._open:
                return None
            return self._open[int(at)][0], str(path)
        if not path.is_relative_to(self._folder):
            return None
        *above, name = path.relative_to(self._folder).parts or (".",)
        inode = self._root
        for part in above:
            inode = self._names(inode)[part]
        return inode, name

    def _at(self, at, text):
        place = self._place(at, text)
        if place is None:
            return None
        return self._root if place[1] == "." else self._names(place[0]).get(place[1])

    def _step(self, kind, inode, *arguments):
        self._steps.append(Step(kind, inode, arguments))

    def _add(self, at, text, inode):
        if place := self._place(at, text):
            folder, name = place
            self._names(folder)[name] = inode
            self._step("link", folder, name, inode)

    def _openat(self, at, text, flags, mode="0", *, result):
        if self._place(at, text) is None:
            return
        inode = self._at(at, text)
        if inode is None:
            inode = Inode(None, b"", int(mode, 8) & ~_umask())
            self._add(at, text, inode)
        elif "O_TRUNC" in flags:
            self._step("truncate", inode, 0)
        self._open[result] = [inode, 0]

    def _write(self, handle, data, _, *, result):
        if int(handle) in self._open:
            inode, offset = self._open[int(handle)]
            self._step("write", inode, offset, data[:result])
            self._open[int(handle)][1] += result

    def _writev(self, handle, *_, result):
        assert int(handle) not in self._open, "the model of the disk does not know writev"

    def _ftruncate(self, handle, length, *, result):
        if int(handle) in self._open:
            self._step("truncate", self._open[int(handle)][0], int(length))

    def _fsync(self, handle, *, result):
        if int(handle) in self._open:
            self._step("fsync", self._open[int(handle)][0])

    def _rename(self, old, new, *, result):
        self._renameat2("AT_FDCWD", old, "AT_FDCWD", new, "0", result=result)

    def _renameat2(self, old_at, old, new_at, new, flags, *, result):
        (source, one), (target, other) = self._place(old_at, old), self._place(new_at, new)
        names, others = self._names(source), self._names(target)
        if "RENAME_EXCHANGE" in flags:
            names[one], others[other] = others[other], names[one]
            self._step("exchange", target, other, others[other], source, one, names[one])
        else:
            others[other] = names.pop(one)
            self._step("rename", target, other, others[other], source, one)

    def _unlink(self, text, *, result):
        self._unlinkat("AT_FDCWD", text, "0", result=result)

    _rmdir = _unlink

    def _unlinkat(self, at, text, _, *, result):
        if place := self._place(at, text):
            folder, name = place
            self._step("unlink", folder, name, self._names(folder).pop(name))

    def _mkdir(self, text, mode, *, result):
        self._add("AT_FDCWD", text, Inode({}))

    def _chmod(self, text, mode, *, result):
        self._fchmodat("AT_FDCWD", text, mode, result=result)

    def _fchmodat(self, at, text, mode, *_, result):
        inode = self._at(at, text)
        if inode is not None and inode.names is None:
            self._step("mode", inode, int(mode, 8))

    def _fchmod(self, handle, mode, *, result):
        if int(handle) in self._open:
            self._step("mode", self._open[int(handle)][0], int(mode, 8))


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _states(root, steps):
    """Yield what may be on the disk once ``steps`` were asked for."""
    last_fsync = {step.inode: at for at, step in enumerate(steps) if step.kind == "fsync"}
    sure = [step.kind != "fsync" and at < last_fsync.get(step.inode, -1) for at, step in enumerate(steps)]
    named = [at for at, step in enumerate(steps) if step.kind in ("link", "unlink", "rename", "exchange")]
    for kept in _subsets([at for at in named if not sure[at]]):
        tree = _tree(root, [steps[at] for at in named if sure[at] or at in kept])
        files = {path: inode for path, inode in tree.items() if inode.names is None}
        choices = []
        for path, inode in files.items():
            own = [(step, sure[at]) for at, step in enumerate(steps) if step.inode is inode and step.kind != "fsync"]
            choices.append([(path, content) for content in _contents(inode, own)])
        folders = {path: None for path, inode in tree.items() if inode.names is not None}
        for combination in itertools.product(*choices):
            yield folders | dict(combination)


def _subsets(unsure):
    if len(unsure) <= ALL_SUBSETS_UP_TO:
        for count in range(len(unsure) + 1):
            yield from map(set, itertools.combinations(unsure, count))
        return
    for count in range(len(unsure) + 1):
        yield set(unsure[:count])
    for at in unsure:
        yield {at}
        yield set(unsure) - {at}
    chance = random.Random(0)
    for _ in range(SAMPLED):
        yield {at for at in unsure if chance.random() < 0.5}


def _tree(root, steps):
    """Return {path: inode} after the changes of names ``steps``."""
    names = {}

    def of(folder):
        return names.setdefault(folder, dict(folder.names or {}))

    for step in steps:
        here = of(step.inode)
        if step.kind == "link":
            name, inode = step.arguments
            here[name] = inode
        elif step.kind == "unlink":
            name, inode = step.arguments
            if here.get(name) is inode:
                del here[name]
        elif step.kind == "rename":
            name, inode, source, old = step.arguments
            here[name] = inode
            if of(source).get(old) is inode:
                del of(source)[old]
        else:
            name, inode, source, old, other = step.arguments
            here[name], of(source)[old] = inode, other
    found = {}

    def walk(folder, path):
        for name, inode in of(folder).items():
            found[f"{path}{name}"] = inode
            if inode.names is not None:
                walk(inode, f"{path}{name}/")

    walk(root, "")
    return found


def _contents(inode, steps):
    """Return each (bytes, mode) that a file may have: ``steps`` are (step, whether it is sure)."""
    writes = [(step, known) for step, known in steps if step.kind != "mode"]
    unsure = [step for step, known in writes if not known]
    known = [step for step, known in writes if known]
    contents = {_written(inode.content, known), _written(inode.content, [step for step, _ in writes])}
    if unsure and unsure[-1].kind == "write":
        offset, data = unsure[-1].arguments
        before = [step for step, _ in writes[:-1]]
        for torn in (data[: len(data) // 2], bytes(len(data))):
            contents.add(_written(inode.content, [*before, Step("write", inode, (offset, torn))]))
    modes = {inode.mode}
    for step, certain in steps:
        if step.kind == "mode":
            modes = {step.arguments[0]} if certain else {*modes, step.arguments[0]}
    return sorted(itertools.product(contents, modes))


def _written(content, steps):
    found = bytearray(content)
    for step in steps:
        if step.kind == "truncate":
            del found[step.arguments[0] :]
        else:
            offset, data = step.arguments
            found.extend(bytes(max(0, offset + len(data) - len(found))))
            found[offset : offset + len(data)] = data
    return bytes(found)
