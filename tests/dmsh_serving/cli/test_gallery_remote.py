"""The gallery commands on a gallery in ClickHouse, from the command line."""

import json
import sys

import clickhouse_world
import numpy as np
import pytest
from clickhouse_world import F

from dmsh_serving import gallery, program
from dmsh_serving.cli import gallery_remote  # noqa: F401  # its commands join gallery_app
from dmsh_serving.cli.gallery import gallery_app
from dmsh_serving.clickhouse.connection import Connection
from dmsh_serving.codes import uniform_codes

pytest.importorskip("chdb")


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
def folder(tmp_path):
    keys = [f"key-{number}" for number in range(100)]
    gallery.build(tmp_path / "g", uniform_codes(100, 64, 1), None, keys, bits=64, fingerprint=F)
    return tmp_path / "g"


def test_a_gallery_is_pushed_changed_and_pulled(command, folder, tmp_path):
    address, result = clickhouse_world.address(), tmp_path / "result.json"

    def done(*arguments):
        code, out, err = command(*arguments, "--json", result)
        assert (code, err) == (0, "")
        return json.loads(result.read_text()), out

    pushed, out = done("push", folder, address)
    assert (pushed["count"], pushed["sent"], pushed["segments"], pushed["fingerprint"]) == (100, 100, [100], F)
    assert "100 codes sent" in out
    assert done("info", address)[0]["version"] == pushed["version"]
    assert done("remove", address, "--key", "key-7")[0]["count"] == 99
    assert done("remove", address, "--id", "8")[0]["removed"] == 2
    assert done("compact", address)[0]["segments"] == [98]
    assert done("rollback", address)[0]["removed"] == 2
    pulled, _ = done("pull", address, "--out", tmp_path / "pulled")
    assert pulled["count"] == 98
    contents = gallery.open_current(tmp_path / "pulled").contents()
    assert set(range(100)) - set(contents.ids.tolist()) == {7, 8}
    np.testing.assert_array_equal(contents.codes[:7], uniform_codes(100, 64, 1)[:7])
    assert contents.keys[7] == "key-9"
    assert gallery.open_current(tmp_path / "pulled").next_id == 100


def test_info_checks_what_is_there(command, folder):
    address = clickhouse_world.address()
    assert command("push", folder, address)[0] == 0
    with Connection(address) as connection:
        connection.run(f"ALTER TABLE {address.database}.codes_photos UPDATE w0 = 0 WHERE id = 5", mutations_sync=2)
    code, _, err = command("info", address)
    assert code == 1
    assert err.endswith(
        "100 of 100 rows are there, and their checksum differs: push again, which sends what is missing\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("push", "FOLDER", "localhost/images/photos"), 2, "no address of a gallery"),
        (("push", "FOLDER", "ADDRESS", "--bits", "64"), 2, "go with a Parquet file"),
        (("push", "missing.parquet", "ADDRESS"), 2, "does not exist"),
        (("info", "ADDRESS"), 2, "dmsh-serve gallery push"),
        (("verify", "ADDRESS"), 2, "is in ClickHouse, and this command reads folders: dmsh-serve gallery pull"),
        (("rollback", "ADDRESS"), 2, "dmsh-serve gallery push"),
        (("remove", "ADDRESS"), 2, "say what to remove"),
        (("pull", "ADDRESS", "--out", "FOLDER"), 2, "already holds a gallery"),
        (("info", "clickhouse://127.0.0.1:1/images/photos"), 3, "does not answer"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_the_right_exit_code(command, folder, arguments, code, reason):
    places = {"FOLDER": folder, "ADDRESS": clickhouse_world.address()}
    found, _, err = command(*(places.get(each, each) for each in arguments))
    assert found == code
    assert reason in err
    assert err.count("\n") == 1
