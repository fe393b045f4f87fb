from website.docstrings import as_markdown


def test_roles_become_code_and_literal_blocks_markdown():
    text = "See :func:`dmsh_model.load` and :class:`~a.B`::\n\n    code\n"
    assert as_markdown(text) == "See `dmsh_model.load` and `a.B`:\n\n    code\n"
