"""The drawings of docs/architecture.md are the code's: its floors are the import graph, its paths exist."""

import re

import pytest
from project import ROOT
from sources import INSTALLED, folder_graph, import_graph, modules

TEXT = (ROOT / "docs" / "architecture.md").read_text()


def drawn_floors(text, package):
    """Return {folder: folders it points at} of the drawing that a comment ``%% package`` names."""
    (drawing,) = re.findall(rf"```mermaid\n%% {package}\nflowchart TB\n(.*?)```", text, re.DOTALL)
    graph = {}
    for line in drawing.splitlines():
        left, _, right = line.partition("-->")
        for source in left.split("&"):
            graph.setdefault(source.strip(), set()).update(goal.strip() for goal in right.split("&") if goal.strip())
    return graph


def reached(graph, node):
    """Return every node below ``node``."""
    found, waiting = set(), [node]
    while waiting:
        for other in graph.get(waiting.pop(), ()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def differences(drawn, real):
    """Return what to change in a drawing: arrows that no import stands for, imports that no arrows lead to."""
    rooms = real.keys() - {"__main__"}
    wrong = [f"remove {a} --> {b}" for a, goals in drawn.items() for b in goals if b not in real.get(a, ())]
    wrong += [f"add {a} --> {b}" for a in rooms for b in real[a] - {"__main__"} if b not in reached(drawn, a)]
    shown = drawn.keys() | {goal for goals in drawn.values() for goal in goals}
    return sorted(wrong + [f"add {room}" for room in rooms - shown])


@pytest.mark.parametrize("package", INSTALLED)
def test_the_drawn_floors_are_the_import_graph(package):
    assert differences(drawn_floors(TEXT, package), folder_graph(import_graph(modules()), package)) == []


def test_a_drawing_that_differs_from_the_code_is_seen():
    drawn = {"a": {"b"}, "b": {"c"}}
    assert differences(drawn, {"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []  # a -> c follows from the others
    assert differences(drawn, {"a": {"b"}, "b": set(), "c": {"d"}, "d": set()}) == [
        "add c --> d",
        "add d",
        "remove b --> c",
    ]
