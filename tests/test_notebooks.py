"""The committed notebooks: clean, self-contained, and in step with the profiles."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = yaml.safe_load((ROOT / "profiles" / "quick.yaml").read_text())

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_numbers_follow_the_story():
    assert [path.stem for path in NOTEBOOKS][:4] == [
        *("00_start_here", "01_data_preparation", "02_model_tour", "03_training")
    ]
    assert all(re.fullmatch(r"\d\d_[a-z_]+", path.stem) for path in NOTEBOOKS)


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
            assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(cell.source)))
