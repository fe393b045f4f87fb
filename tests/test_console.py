import sys

import pytest

from dmsh_serving.console import JsonOption, console, make_app, print_table, run

NAMES = ["cat[old].png", "a[/b].png", "[bold]loud[/bold].png", ":smile:.png", "C:\\[red]"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_it_is_whatever_its_brackets_mean_to_rich(name, capsys):
    print_table(f"a title {name}", [f"a column {name}"], [[name]])
    console().print(f"wrote {name}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"a title {name}"
    assert f"a column {name} " in lines[2]
    assert f" {name} " in lines[4]
    assert lines[-1] == f"wrote {name}"


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_the_tool_is_one_line_and_no_failed_check(debug, capsys, monkeypatch):
    app = make_app("A tool with a fault.")

    @app.command()
    def fail() -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(sys, "argv", ["tool", *(["--debug"] if debug else [])])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert ended.value.code == 70
    said = capsys.readouterr().err
    assert said.endswith("error: internal: ValueError: two lines; run with --debug to see where\n")
    assert ("Traceback" in said) == debug


@pytest.mark.parametrize("place", ["absent/result.json", "."])
def test_a_result_that_could_not_be_written_is_refused_before_the_work(place, tmp_path, capsys, monkeypatch):
    app = make_app("A tool that works for hours.")
    ran = []

    @app.command()
    def work(json: JsonOption = None) -> None:
        ran.append(json)

    monkeypatch.setattr(sys, "argv", ["tool", "--json", str(tmp_path / place)])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert (ended.value.code, ran) == (2, [])
    assert "name a file in a folder that exists" in capsys.readouterr().err
