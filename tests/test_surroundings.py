"""What a process finds around it: no name, no home, no reader, another locale."""

import os
import shutil
import subprocess
import sys

import nibabel
import pytest

from mvl.data.phantom import make_phantom
from mvl.files import REPOSITORY

#: A user number that no system has an entry for.
NOBODY = 54321
#: As OpenShift and repo2docker start a container; reading is allowed, since the interpreter may
#: lie in a folder of root's.
SETPRIV = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
#: Several commands in one process, since each would import torch.
COMMANDS = """
import os, sys
from mvl.cli import main
root, out = sys.argv[1:]
for words in (
    ["block", "list"],
    ["block", "show", "hub:owner/name"],
    ["data", "check", "Task04_Hippocampus", "--root", root],
    ["train", "--root", root, "--epochs", "1", "--runs", f"{out}/runs", "--grid", "16", "24", "16"],
):
    print("status", main(words), flush=True)
run = f"{out}/runs/{os.listdir(out + '/runs')[0]}"
image = f"{root}/Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz"
print("status", main(["predict", image, "--run", run, "-o", f"{out}/label.nii.gz"]), flush=True)

from pathlib import Path
from tests.reliability import stages
root = Path(out, "repository")
root.mkdir()
stages.write_notebooks(root)
print("status", stages.STAGES["batch"](root, None))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv (util-linux)")
@pytest.mark.parametrize("home", [None, pytest.param("/", marks=pytest.mark.slow)])
def test_a_user_without_a_name_or_a_home_can_work(phantom, tmp_path, home):
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, NOBODY, NOBODY)
    named = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "MVL_CACHE", "XDG_CACHE_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in named}
    environment |= {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    environment |= {"HOME": home} if home else {}
    command = [*SETPRIV, sys.executable, "-c", COMMANDS, str(phantom), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = done.stdout.splitlines()
    statuses = [line.split()[1] for line in said if line.startswith("status")]
    assert statuses == ["0", "1", "0", "0", "0", "0"]
    assert any("package:all-minilm-l6-v2" in line for line in said)
    image = nibabel.load(phantom / "Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz")
    assert nibabel.load(out / "label.nii.gz").shape == image.shape


def mvl(*words, **more):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | more
    return subprocess.Popen([sys.executable, "-m", "mvl", *map(str, words)], **options)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_reads_on(phantom, unbuffered):
    """As with `| head`: no traceback, and the status of a command that SIGPIPE ends, 128 + 13."""
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with mvl("data", "check", phantom / "Task04_Hippocampus", env=environment) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_an_output_that_cannot_be_written_is_one_sentence(phantom):
    task = phantom / "Task04_Hippocampus"
    with open("/dev/full", "w") as full, mvl("data", "check", task, stdout=full) as process:
        said = process.stderr.read()
        assert process.wait() == 1
    assert said.startswith("mvl: ") and "No space left on device" in said
    assert said.count("\n") == 1


def test_an_output_that_the_shell_has_closed_is_no_fault(phantom):
    command = f"{sys.executable} -m mvl data check {phantom}/Task04_Hippocampus >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_paths_need_not_be_ascii_in_a_plain_locale(tmp_path):
    root = tmp_path / "Müller 脳"
    folder = make_phantom("Task04_Hippocampus", root, cases=2, scale=0.3, progress=False)
    shutil.copy(*(folder / f"imagesTr/{name}.nii.gz" for name in ("hippocampus_001", "übrig")))
    with mvl("data", "check", folder, env=os.environ | {"LC_ALL": "C"}) as process:
        said = process.stdout.read()
        assert process.wait() == 0
    assert "2 cases of 1 subjects" in said
    assert said.startswith("not used: 1 images") and "brig.nii.gz" in said
