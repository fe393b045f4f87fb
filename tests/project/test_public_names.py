"""Every public module says in ``__all__`` what is public: what others use of it, or documents name.

The types that the public names mention may stand there too.
"""

import ast
import re

import pytest
from project import ROOT
from sources import INSTALLED, modules

# Commands are public by their options, not by their names in Python.
PUBLIC = {
    name: file
    for name, file in modules().items()
    if name.split(".")[0] in INSTALLED and not {"cli", "__main__"} & set(name.split("."))
}
READERS = [*modules().values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "model_repository").rglob("*.py")]


def declared(tree):
    """Return the names in ``__all__`` of a module, or None if it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return None


def defined(tree):
    """Return every public name that a module defines or assigns, not those that it imports."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def used_elsewhere(trees):
    """Return {module: names that other files import from it, or take from it as attributes}."""
    used = {}
    for tree in trees:
        aliases = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    used.setdefault(node.module, set()).add(alias.name)
                    aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Import):
                aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
                used.setdefault(aliases[node.value.id], set()).add(node.attr)
            elif isinstance(node, ast.Attribute):
                used.setdefault(ast.unparse(node.value), set()).add(node.attr)
    return used


def told_by_types(tree, names):
    """Return the names that the signatures and fields of ``names`` mention, and those that these mention in turn."""
    mentions = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            types = [leaf.annotation for leaf in ast.walk(node) if isinstance(leaf, ast.arg | ast.AnnAssign)]
            types += [
                leaf.returns for leaf in ast.walk(node) if isinstance(leaf, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            types += node.bases if isinstance(node, ast.ClassDef) else []
            mentions[node.name] = set(re.findall(r"\w+", " ".join(ast.unparse(each) for each in types if each)))
    found = set(names)
    while more := {name for each in found for name in mentions.get(each, ())} - found:
        found |= more
    return found


def public_names(tree, used):
    """Return what of a module is public if others use ``used`` of it: that, and the types which it mentions."""
    own = defined(tree)
    return own & told_by_types(tree, own & used)


def problems(names, tree, used):
    """Return what is wrong with ``names``, the ``__all__`` of ``tree``, of which others use ``used``."""
    if names is None:
        return ["no __all__"]
    imported = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    own = defined(tree)
    wrong = [f"{name} is not there" for name in names if name not in own | imported]
    wrong += [f"{name} is used elsewhere and missing" for name in sorted((own & used) - set(names))]
    return wrong + [f"nobody uses {name}" for name in names if name in own - public_names(tree, used)]


@pytest.fixture(scope="module")
def used():
    found = used_elsewhere([ast.parse(file.read_text()) for file in READERS])
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    for module, name in re.findall(r"^::: ([\w.]+)\.(\w+)$", text, re.MULTILINE):
        found.setdefault(module, set()).add(name)
    return found


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_a_public_module_lists_exactly_what_others_use_of_it(module, used):
    tree = ast.parse(PUBLIC[module].read_text())
    if PUBLIC[module].name == "__init__.py" and not defined(tree) and declared(tree) is None:
        return  # a folder, nothing more
    assert problems(declared(tree), tree, used.get(module, set())) == []


def test_a_missing_and_a_needless_name_are_seen():
    tree = ast.parse("__all__ = ['b', 'c', 'x']\nfrom m import b\nA = 1\ndef c(): ...\n")
    assert problems(declared(tree), tree, {"A"}) == [
        "x is not there",
        "A is used elsewhere and missing",
        "nobody uses c",
    ]
    typed = ast.parse("class Answer: ...\ndef ask() -> 'Answer | None': ...\n")
    assert public_names(typed, {"ask"}) == {"ask", "Answer"}
    assert problems(None, tree, set()) == ["no __all__"]
