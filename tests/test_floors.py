"""Who may import whom: no import runs upward, and there is no circle."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter

import mvl
from mvl.files import REPOSITORY

#: Rooms by floor, the lowest first; what is on one floor may import each other.
FLOORS = (
    ("errors", "config", "draws", "files", "locks", "machine", "progress", "strict"),
    ("data", "models", "blocks"),
    ("experiment",),
    ("study",),
    ("audit",),
    ("show",),
    ("runner", "cli", "__main__"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def _modules():
    """{dotted name of each module below mvl: its path}."""
    root = REPOSITORY / "mvl"
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = {name: path for name, path in _modules() if name}


@cache
def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path, everywhere):
    """Names of the modules of mvl that a module imports; in functions, too, if `everywhere`."""
    tree = _tree(path)
    typing = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree) if everywhere else tree.body:
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            _, _, name = name.partition("mvl.") if name.startswith("mvl.") else ("", "", "")
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name:
                yield name


def _broken():
    """Pairs of a module and one that it must not import."""
    for name, path in MODULES.items():
        room = name.partition(".")[0]
        for other in set(_imports(path, everywhere=True)):
            above = other.partition(".")[0]
            upward = FLOOR_OF[above] > FLOOR_OF[room]
            knows_a_model = room in ("data", "show") and above in ("models", "blocks")
            if upward or knows_a_model:
                yield name, other


def test_no_import_runs_upward_and_data_and_show_know_no_model():
    assert not set(_broken())


def test_there_is_no_circle():
    imports = {name: set(_imports(path, everywhere=False)) for name, path in MODULES.items()}
    # A package's own module imports what it offers.
    TopologicalSorter({name: others - {name} for name, others in imports.items()}).prepare()


def test_the_command_loads_nothing_heavy_and_the_list_of_metrics_no_torch():
    loaded = "print(*sys.modules)"
    code = f"import sys, mvl.cli, mvl.errors; {loaded}; import mvl.experiment.metrics; {loaded}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = ({*line.split()} for line in out.stdout.splitlines())
    heavy = {"torch", "monai", "transformers", "pandas", "numpy", "pydantic", "tqdm", "filelock"}
    assert not heavy & first and not {"torch", "monai"} & second


def test_each_public_name_is_where_it_is_said_to_be():
    assert all(hasattr(mvl, name) for name in mvl.__all__)
