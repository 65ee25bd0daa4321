"""The command as a user meets it."""

import gzip
import json
import shutil
import subprocess
import sys

import nibabel
import pandas as pd
import pytest

from mvl.cli import main
from mvl.config import ExperimentConfig
from mvl.data.phantom import make_phantom
from mvl.data.task_folder import list_cases
from mvl.experiment.metrics import METRICS
from mvl.study.reference import REFERENCE


def test_help_loads_nothing_heavy():
    code = "import sys, mvl.cli\ntry: mvl.cli.main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "print({'torch', 'monai', 'pandas', 'numpy', 'pydantic'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("usage: mvl train") and out.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    "arguments",
    [[], ["x"], ["train", "--x"], ["data"], ["block", "extract", "x"],
     ["run", "--only", "1", "--from", "2"]],
)  # fmt: skip
def test_wrong_usage_ends_with_status_two(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err.startswith("usage: mvl")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--preset", "v9"], "v9"),
        (["train", "--task", "Task99_Nothing", "--root", "ROOT"], "Task99_Nothing"),
        (["evaluate", "ROOT"], "config.json"),
        (["predict", "x.nii.gz", "--run", "ROOT", "-o", "y.nii.gz"], "run"),
        (["data", "check", "Task99_Nothing", "--root", "ROOT"], "Task99_Nothing"),
        (["data", "phantom", "Task99_Nothing", "--root", "ROOT"], "Task99_Nothing"),
        (["data", "download", "Task99_Nothing", "--root", "ROOT"], "Task99_Nothing"),
        (["suite", "run", "nonsense"], "nonsense"),
        (["suite", "status", "adaptation", "--arms", "rotary"], "adaptation"),
        (["run", "--profile", "nonsense"], "nonsense"),
        (["train", "--epochs", "0"], "epochs must"),
        (["block", "show", "package:other"], "all-minilm-l6-v2"),
        (["block", "show", "minilm"], "did you mean package:all-minilm-l6-v2?"),
        (["block", "extract", "path:/nowhere", "-o", "ROOT/b"], "/nowhere"),
        (["block", "extract", 'random:{"model_type": "llama"}', "-o", "ROOT/b"], "no weights"),
    ],
)
def test_a_fault_is_one_sentence_and_status_one(arguments, said, tmp_path, capsys):
    assert main([word.replace("ROOT", str(tmp_path)) for word in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mvl: ") and said in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("out.png", "does not end"),
        (".nii.gz", "does not end"),
        ("folder.nii", "is a folder"),
        ("image.nii", "the image itself"),
        ("link.nii", "the image itself"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_any_work(tmp_path, capsys, output, said):
    (tmp_path / "image.nii").write_text("no image, which would be said later")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "link.nii").symlink_to("image.nii")
    words = [str(tmp_path / "image.nii"), "--run", str(tmp_path), "-o", str(tmp_path / output)]
    assert main(["predict", *words]) == 1
    error = capsys.readouterr().err
    assert output in error and said in error and len(error.splitlines()) == 1
    assert (tmp_path / "image.nii").read_text().startswith("no image")


def test_what_evaluate_prints_are_means_over_subjects(phantom, monkeypatch, capsys):
    cases = pd.DataFrame({"subject": ["a", "a", "b"], "structure": "foreground"})
    cases = cases.assign(**dict.fromkeys(METRICS, [0.0, 0.0, 1.0]))
    monkeypatch.setattr("mvl.experiment.run.read_config", lambda *_: ExperimentConfig())
    monkeypatch.setattr("mvl.experiment.run.test", lambda *_, **__: cases)
    assert main(["evaluate", str(phantom), "--root", str(phantom)]) == 0
    out = capsys.readouterr().out
    assert "means over 2 test subjects" in out
    assert out.count("0.500") == len(METRICS)


def test_bad_cases_are_refused_together_or_left_out_in_writing(tmp_path, capsys):
    root, runs = tmp_path / "data", tmp_path / "runs"
    task = "Task04_Hippocampus"
    main(["data", "phantom", task, "--root", str(root), "--cases", "16", "--scale", "0.4"])
    images = sorted((root / task / "imagesTr").glob("*.nii.gz"))
    images[0].write_bytes(b"broken")
    images[5].unlink()
    given = ["train", "--task", task, "--root", str(root), "--runs", str(runs), "--epochs", "1"]
    given += ["--grid", "16", "24", "16"]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert "hippocampus_001" in error and "hippocampus_006" in error
    assert main([*given, "--on-bad-case", "skip"]) == 0
    skipped = next(runs.glob("*/skipped.csv")).read_text()
    assert "hippocampus_001" in skipped and "hippocampus_006" in skipped
    status = ["suite", "status", "data", "--arms", "vit-10", "--root", str(root)]
    assert main(status) == 1
    assert "hippocampus_006" in capsys.readouterr().err
    assert main([*status, "--on-bad-case", "skip"]) == 0
    assert "vit-10" in capsys.readouterr().out


def test_a_suite_of_five_folds_refuses_test_cases_of_the_tasks_own(tmp_path, capsys):
    folder = make_phantom("Task04_Hippocampus", tmp_path, cases=12, scale=0.4)
    status = ["suite", "status", "llama", "--arms", "none", "--root", str(tmp_path)]
    status += ["--results", str(tmp_path)]
    assert main(status) == 0
    case = list_cases(folder)[0].name
    (folder / "splits.json").write_text(json.dumps({"test": [case]}))
    assert main(status) == 1
    assert f"1 test cases, such as {case}" in capsys.readouterr().err


def test_status_says_which_cells_the_reference_has(tmp_path, capsys, monkeypatch):
    task = "Task04_Hippocampus"
    make_phantom(task, tmp_path, cases=12, scale=0.4)
    status = ["suite", "status", "language", "--arms", "none", "random", "--root", str(tmp_path)]
    assert main([*status, "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "has 0 of these 2 cells" in said  # a phantom's cells are none of the study's
    fingerprint = next(line.split()[-2] for line in said.splitlines() if " none " in f" {line} ")
    monkeypatch.setattr("mvl.study.reference.held", lambda: {fingerprint: "GPU"})
    assert main([*status, "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{fingerprint}       GPU" in said and "has 1 of these 2 cells" in said


@pytest.mark.parametrize("command", [["reference"], ["audit", "table"]])
def test_the_reference_takes_no_phantom(command, phantom, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in REFERENCE.rglob("*")}
    assert main([*command, "--root", str(phantom), "--results", str(tmp_path)]) == 1
    assert "synthetic" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in REFERENCE.rglob("*")} == before


def test_a_folder_of_images_becomes_a_submission(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    task = "Task04_Hippocampus"
    assert main(["data", "phantom", task, "--root", str(root), "--cases", "1"]) == 0
    images = sorted((root / task / "imagesTs").iterdir())
    assert len(images) == 2
    broken = root / task / "imagesTs" / "a_broken.nii.gz"
    broken.write_bytes(images[0].read_bytes()[:500])
    capsys.readouterr()

    command = ["predict", str(root / task), "-o", str(out)]
    assert main(command) == 1  # the others are segmented all the same
    said = capsys.readouterr()
    assert str(out / task) in said.out
    assert said.err.count("failed: ") == 1 and "a_broken.nii.gz" in said.err
    written = sorted((out / task).iterdir())
    assert [path.name for path in written] == [path.name for path in images]
    for path, image in zip(written, images, strict=True):
        assert nibabel.load(path).shape == nibabel.load(image).shape

    # What is whole stays, what is not is made again.
    broken.unlink()
    before = [path.stat().st_mtime_ns for path in written]
    written[1].write_bytes(written[1].read_bytes()[:100])
    assert main(command) == 0
    assert "1 of 2 are segmented already" in capsys.readouterr().out
    after = [path.stat().st_mtime_ns for path in written]
    assert after[0] == before[0] and after[1] != before[1]
    assert nibabel.load(written[1]).get_fdata().max() <= 1

    # In capitals, over itself, two of one name, and none.
    other, plain = tmp_path / "other", tmp_path / "plain"
    other.mkdir()
    capitals = other / "B.NII.GZ"
    shutil.copy(images[0], capitals)
    assert main(["predict", str(other), "-o", str(plain)]) == 0
    assert (plain / "B.nii.gz").is_file()
    capitals.rename(other / "b.nii.gz")
    assert main(["predict", str(other), "-o", str(other)]) == 1
    assert "the image itself" in capsys.readouterr().err
    (other / "b.nii").write_bytes(gzip.decompress(images[0].read_bytes()))
    assert main(["predict", str(other), "-o", str(plain)]) == 1
    assert "both become" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    assert main(["predict", str(tmp_path / "nothing"), "-o", str(plain)]) == 1
    assert "no image" in capsys.readouterr().err
