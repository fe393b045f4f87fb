import errno
import grp
import hashlib
import os
import pwd
import stat
import types
from pathlib import Path

import pytest
from named_pipe import pipe_at

from dmsh_serving import files
from dmsh_serving.errors import InputError
from dmsh_serving.files import (
    files_below,
    is_ours,
    open_regular,
    read_regular,
    replace_folder,
    sha256_of_file,
    whole_file,
    write_atomically,
)


@pytest.fixture
def two(tmp_path):
    """A new folder, and the old one that is in its place."""
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    return tmp_path / "new", tmp_path / "target"


def test_a_new_folder_takes_the_place_of_the_old_one(two, tmp_path):
    replace_folder(*two)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "content").read_text() == "new"


def test_a_folder_is_put_where_none_was(two, tmp_path):
    replace_folder(two[0], tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "content").read_text() == "new"


def test_a_link_to_the_old_folder_is_replaced_and_the_old_folder_stays(two, tmp_path):
    (tmp_path / "link").symlink_to("target")
    replace_folder(two[0], tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]
    assert (tmp_path / "link" / "content").read_text() == "new"
    assert (tmp_path / "target" / "content").read_text() == "target"


def test_a_file_system_that_cannot_exchange_names_gets_the_new_folder_too(two, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    test_a_new_folder_takes_the_place_of_the_old_one(two, tmp_path)


def test_what_cannot_be_exchanged_is_told_from_what_is_not_there(two, tmp_path):
    (two[0] / "inner").mkdir()
    assert not files._exchange(two[0], two[0] / "inner")  # EINVAL, as from a file system that cannot do it
    with pytest.raises(FileNotFoundError):
        files._exchange(two[0], tmp_path / "absent")


@pytest.mark.parametrize("stopped_by", [OSError, KeyboardInterrupt])
def test_the_old_folder_is_back_when_the_new_one_cannot_be_moved(two, tmp_path, monkeypatch, stopped_by):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    rename = Path.rename

    def fail(path, to):
        if path.name == "new":
            raise stopped_by
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(stopped_by):
        replace_folder(*two)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "target"]
    assert (tmp_path / "target" / "content").read_text() == "target"


def test_a_file_is_written_with_the_permissions_that_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"data")
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"data"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_file_that_another_thread_makes_meanwhile_is_open_to_all(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask of the whole process was changed"))
    write_atomically(tmp_path / "file", b"data")
    with whole_file(tmp_path / "part", mode=0o444) as file:
        file.write(b"data")
    assert stat.S_IMODE((tmp_path / "part").stat().st_mode) == 0o444


def test_a_checksum_is_that_of_the_bytes_and_a_missing_file_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"data")
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(b"data").hexdigest()
    with pytest.raises(InputError, match="absent does not exist"):
        sha256_of_file(tmp_path / "absent")


def test_only_a_regular_file_is_opened_and_nothing_else_is_waited_for(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    with pipe_at(tmp_path / "pipe"):
        for name in ("endless", "folder", "pipe"):
            with pytest.raises(OSError, match="not a regular file") as refused:
                open_regular(tmp_path / name)
            assert refused.value.filename == str(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nowhere")


def test_a_file_is_read_up_to_a_size(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert read_regular(tmp_path / "file", 7) == b"content"
    with pytest.raises(OSError, match="larger than 6 bytes"):
        read_regular(tmp_path / "file", 6)


@pytest.mark.parametrize("named", [True, False])  # that listing breaks off halfway names no folder
def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty_and_is_named(tmp_path, monkeypatch, named):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    scandir = os.scandir

    def broken(path):
        if Path(path).name == "folder":
            raise OSError(errno.EIO, "Input/output error", *([str(path)] if named else []))
        return scandir(path)

    assert list(files_below(tmp_path)) == ["folder/file"]
    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(OSError, match="Input/output error") as refused:
        list(files_below(tmp_path))
    assert refused.value.filename == str(tmp_path / "folder")


def test_links_to_files_are_files_and_links_to_folders_are_refused(tmp_path):
    for name in ("target/file", ".hidden/file", "folder/.hidden", "folder/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "target" / "file")
    (tmp_path / "folder" / "nowhere").symlink_to("missing")
    (tmp_path / "folder" / "circle").symlink_to("circle")
    names = ["folder/circle", "folder/file", "folder/link", "folder/nowhere", "target/file"]
    assert sorted(files_below(tmp_path)) == names
    (tmp_path / "folder" / "out").symlink_to(tmp_path / "target")
    with pytest.raises(InputError, match="folder/out is a link to a folder"):
        list(files_below(tmp_path))


def test_what_others_can_write_is_not_ours(tmp_path, monkeypatch):
    own = pwd.getpwuid(os.geteuid()).pw_name
    for mode, group, ours in ((0o755, "staff", True), (0o775, own, True), (0o775, "staff", False), (0o777, own, False)):
        tmp_path.chmod(mode)
        monkeypatch.setattr(grp, "getgrgid", lambda _, group=group: types.SimpleNamespace(gr_name=group))
        assert is_ours(tmp_path) == ours
    tmp_path.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    assert is_ours(tmp_path) == (tmp_path.stat().st_uid == 0)
