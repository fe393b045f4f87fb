import pytest

from dmsh_serving.console import console, print_table

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
