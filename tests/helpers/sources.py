"""The project's own source files, and what each imports, however late."""

import ast

from project import ROOT

PACKAGES = {
    "dmsh_serving": ROOT / "serving" / "dmsh_serving",
    "dmsh_model": ROOT / "export" / "dmsh_model",
    "dmsh_export": ROOT / "export" / "dmsh_export",
    "benchmarks": ROOT / "benchmarks",
    "website": ROOT / "website",
}
INSTALLED = ("dmsh_serving", "dmsh_model", "dmsh_export")


def modules():
    """Return {dotted name: file} of every module; a package goes by its own name."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(tree):
    """Yield every module and every ``module.name`` that an import statement names, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(files):
    """Return {module: the project's modules it imports}, among ``files`` as :func:`modules` returns them.

    ``from package import module`` imports the module alone; ``from package import name`` imports the package.
    """
    graph = {}
    for name, file in files.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names if alias.name in files)
            elif isinstance(node, ast.ImportFrom) and node.module in files:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                found.update(full & files.keys())
                if full - files.keys():
                    found.add(node.module)
        graph[name] = found - {name}
    return graph


def folder_graph(graph, package):
    """Return {folder: folders it imports} among the direct children of ``package`` (a module counts as a folder)."""

    def room(name):
        return name.split(".")[1] if "." in name else "__init__"

    inside = {name: uses for name, uses in graph.items() if name.split(".")[0] == package and name != package}
    rooms = {room(name): set() for name in inside}
    for name, uses in inside.items():
        rooms[room(name)] |= {room(use) for use in uses if use in inside} - {room(name)}
    return rooms


def circles(graph):
    """Return the groups of nodes that reach each other, each sorted; Tarjan's strongly connected components."""
    index, low, stack, groups = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(groups)
