from website.commands import COMMANDS, command_pages, grouped, linked


def test_a_list_of_commands_becomes_links_and_options_stay():
    text = (
        "# `tool`\n\n* `run`: Does something that is cut...\n* `--help`: Show this.\n\n## `tool run`\n\n* `path`: x\n"
    )
    lines = linked(text).splitlines()
    assert lines[2:4] == ["* [tool run](#tool-run)", "* `--help`: Show this."]


def test_every_command_has_a_page_with_its_options():
    pages = command_pages()
    assert pages.keys() == {f"reference/{name}.md" for name in COMMANDS}
    assert "## `dmsh-serve start`" in pages["reference/dmsh-serve.md"]
    assert "--grpc-port" in pages["reference/dmsh-serve.md"]


def test_options_stand_in_the_groups_of_the_help():
    text = "## `t run`\n\n**Options**:\n\n* `--a`: x\n* `--b <int>`: y\n* `--c`: z\n\nEnd\n"
    expected = "## `t run`\n\n**Options**:\n\n* `--a`: x\n* `--c`: z\n\n**Rare**:\n\n* `--b <int>`: y\n\nEnd\n"
    assert grouped(text, {"t run": {"--b": "Rare"}}) == expected
    assert grouped(text, {"t other": {"--b": "Rare"}}) == text
