"""The committed notebooks: clean, self-contained, and in step with the profiles."""

import ast
import re
import subprocess
import tomllib

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

from mvl.files import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
ADDRESS = PROJECT["tool"]["mvl"]["repository"]
QUICK = yaml.safe_load((REPOSITORY / "profiles" / "quick.yaml").read_text())


def parsed(cell):
    """Syntax tree of a code cell, which may have lines of IPython's own, such as !command."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@notebooks
def test_it_is_committed_without_outputs(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


@notebooks
def test_it_opens_with_its_question_and_closes_with_its_answer(path):
    cells = nbformat.read(path, 4).cells
    assert cells[0].source.startswith("# ") and "**The question: " in cells[0].source
    assert cells[-2].source.startswith("## The answer") and cells[-1].cell_type == "code"


@notebooks
def test_it_links_to_its_neighbours_and_the_readme_names_it(path):
    first, place = nbformat.read(path, 4).cells[0].source, NOTEBOOKS.index(path)
    neighbours = [n.name for n in NOTEBOOKS[max(0, place - 1) : place + 2] if n != path]
    assert re.findall(r"\]\(([^/)]*\.ipynb)\)", first) == neighbours
    assert f"](notebooks/{path.name})" in (REPOSITORY / "README.md").read_text()


def test_the_address_makes_the_links_to_binder_and_colab(tmp_path):
    """By the line of CONTRIBUTING.md, which a maintainer copies."""
    (line,) = re.findall(r"^    git grep (.*)", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.M)
    files = ["README.md", "pyproject.toml", "notebooks/00_start_here.ipynb"]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((REPOSITORY / name).read_text())
    subprocess.run(
        f"git init -q && git add . && git grep {line}", cwd=tmp_path, shell=True, check=True
    )
    readme, project, notebook = ((tmp_path / name).read_text() for name in files)
    assert ADDRESS not in readme + project + notebook and 'repository = "YOU/REPO"' in project
    assert "https://github.com/YOU/REPO\\n" in notebook
    visible = re.sub(r"<!--.*?-->", "", readme, flags=re.S)
    assert "mybinder.org/v2/gh/YOU/REPO/HEAD" in visible
    assert "colab.research.google.com/github/YOU/REPO/blob/HEAD/notebooks/00" in visible


def test_the_first_code_of_each_fetches_the_suite_on_colab():
    notebooks = [nbformat.read(path, 4).cells for path in NOTEBOOKS]
    code = [[cell.source for cell in cells if cell.cell_type == "code"] for cells in notebooks]
    (first,) = {sources[0] for sources in code}
    assert f"git clone -q --depth 1 https://github.com/{ADDRESS}\n" in first
    assert not any("google.colab" in source for sources in code for source in sources[1:])


@notebooks
def test_it_chooses_the_profile_before_it_uses_a_parameter(path):
    """Where memory is little, a notebook that a person opens takes the smoke profile."""
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    (place,) = (n for n, c in enumerate(code) if "parameters" in c.metadata.get("tags", []))
    names = {statement.targets[0].id for statement in ast.parse(code[place].source).body}
    statements = [statement for cell in code[place + 1 :] for statement in parsed(cell).body]
    choice = [ast.unparse(s) for s in statements].index("mvl.choose_profile(globals())")
    for statement in statements[:choice]:
        used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        assert not used & names


@notebooks
def test_its_parameters_are_the_quick_profiles(path):
    tagged = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    values = {}
    for statement in ast.parse(tagged[0].source).body:
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    assert values and values == {key: QUICK.get(key) for key in values}


@notebooks
def test_it_names_no_place_of_one_machine_and_defines_nothing(path):
    for cell in nbformat.read(path, 4).cells:
        assert not re.search(r"(^|[\s\"'(])/(home|root|work|tmp|Users|content)\b", cell.source)
        if cell.cell_type == "code":
            kinds = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
            assert not any(isinstance(node, kinds) for node in ast.walk(parsed(cell)))
