"""Tiny releases of which every voxel's place is known, and the real one where it is there."""

import gzip
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mvl.cli import main
from mvl.data.convert import convert
from mvl.data.nifti import place_fault, read_header
from mvl.data.task_folder import list_cases
from mvl.data.tasks import read_task
from mvl.errors import MvlError

ZEROS = np.zeros((4, 4, 4))
ORGANS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Mandible")
OPENKBP, CHAOS = "OpenKBP_HeadNeckCT", "CHAOS_AbdomenMR"


def flat(p, left, inferior):
    """Index into the released arrays, 128 voxels along P, L and I."""
    return (p * 128 + left) * 128 + inferior


def write_patient(folder, slices=(9, 10), organs=ORGANS):
    """Write a patient whose first slice (9) has 19 voxels of tissue, and whose next has 20."""
    folder.mkdir(parents=True)
    voxels = {flat(60, 40 + n, slices[0]): 1000.0 for n in range(19)}
    voxels |= {flat(60, 40 + n, slices[1]): 1000.0 for n in range(20)}
    voxels |= {flat(40, 50, 30): 1040.0, flat(41, 50, 30): 9000.0, flat(0, 0, 30): 1500.0}
    rows = "".join(f"{index},{value}\n" for index, value in sorted(voxels.items()))
    (folder / "ct.csv").write_text(",data\n" + rows)
    for number, organ in enumerate(organs):
        # Each has a voxel of its own; all of them have the one at (40, 50, 30).
        places = sorted([flat(40, 50, 30), flat(70, 60 + number, 40)])
        (folder / f"{organ}.csv").write_text(",data\n" + "".join(f"{n},\n" for n in places))
    (folder / "voxel_dimensions.csv").write_text("5.0e+00\n4.0e+00\n2.5e+00\n")


@pytest.fixture
def openkbp(tmp_path):
    """A clone with a patient in training, one in validation, and two that are not to be used."""
    data = tmp_path / "clone" / "provided-data"
    write_patient(data / "train-pats/pt_7")
    write_patient(data / "validation-pats/pt_201", slices=(99, 100))
    write_patient(data / "train-pats/pt_8", organs=ORGANS[:4])
    write_patient(data / "test-pats/pt_241")
    return tmp_path / "clone"


def at(path, *mm):
    """The value at a place in millimetres; reading is nibabel's."""
    volume = nibabel.load(path)
    index = np.linalg.inv(volume.affine) @ [*mm, 1]
    assert np.allclose(index, np.rint(index), atol=1e-4)
    return np.asanyarray(volume.dataobj)[tuple(np.rint(index[:3]).astype(int))]


def test_openkbp_lies_where_it_is_computed_by_hand(openkbp, tmp_path):
    folder = convert("openkbp", openkbp, tmp_path / "out", progress=False)
    assert folder == tmp_path / "out" / OPENKBP
    image, label = (folder / sub / "hn_007.nii.gz" for sub in ("imagesTr", "labelsTr"))
    volume = nibabel.load(image)
    assert volume.shape == (64, 72, 80) and nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.header.get_zooms() == (4, 5, 2.5) and volume.get_data_dtype() == np.int16
    # Row 40 of P is the window's 18th of 72, so the 53rd towards A, of 5 mm; column 50 of L is the
    # 18th of 64, so the 45th towards R, of 4 mm; slice 30 is the 20th of 80, the 59th upwards.
    place = (45 * 4, 53 * 5, 59 * 2.5)
    assert at(image, *place) == 1040 - 1000
    assert at(image, place[0], place[1] - 5, place[2]) == 3095  # 9000, clipped
    assert at(image, place[0] - 4, *place[1:]) == -1000
    assert at(label, *place) == 5  # the mandible, which comes last
    # (70, 60 + n, 40): the 23rd towards A, the (35 - n)th towards R, the 49th upwards.
    assert [at(label, (35 - n) * 4, 23 * 5, 49 * 2.5) for n in range(5)] == [1, 2, 3, 4, 5]
    # The slice of 19 voxels is not there, that of 20 is the highest; what the window cuts is gone.
    image = np.asanyarray(volume.dataobj)
    assert np.count_nonzero(image == 0) == 20 == np.count_nonzero(image[..., 79] == 0)
    assert np.count_nonzero(image > -1000) == 22
    # A patient that ends early gets air below.
    image = np.asanyarray(nibabel.load(folder / "imagesTr/hn_201.nii.gz").dataobj)
    assert image.shape == (64, 72, 80) and (image[..., :79] == -1000).all()
    assert np.count_nonzero(image[..., 79] == 0) == 20


def test_openkbp_has_the_patients_of_training_and_validation_with_all_contours(openkbp, tmp_path):
    folder = convert("openkbp", openkbp / "provided-data", tmp_path, progress=False)
    cases = list_cases(folder)
    assert [(case.name, case.subject) for case in cases] == [("hn_007",) * 2, ("hn_201",) * 2]
    task, described = read_task(folder), json.loads((folder / "dataset.json").read_text())
    assert task.labels[2] == "spinal cord" and task.window_hu == (-200, 500)
    assert task.tolerance_mm == 4 and not task.assumptions and not task.synthetic
    assert described["numTraining"] == 2 and described["release"] == "git ce625e62f3"


def write_chaos(folder, number, image=None, label=None, apart=0):
    """Write a case as the release has it: floats, axes to the left, the front and the top."""
    affine = np.array([[-1.25, 0, 0, 190], [0, 1.25, 0, -200], [0, 0, 7.7, -77], [0, 0, 0, 1]])
    if image is None:
        image, label = np.zeros((8, 9, 5)), np.zeros((8, 9, 5))
        image[2, 3, 4], label[2, 3, 4] = 855, 2
        image[0, 0, :number] = 1  # no two cases are one image
    folder.mkdir(parents=True, exist_ok=True)
    for what, array in (("image", image), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{what}_{number}.nii.gz")
        affine[2, 3] += apart  # millimetres between image and label


@pytest.fixture
def chaos(tmp_path):
    folder = tmp_path / "clone" / "data/CHAOST2/chaos_MR_T2_normalized"
    write_chaos(folder, 1)
    write_chaos(folder, 3)
    (folder / "classmap_1.json").write_text("{}")
    return tmp_path / "clone"


def test_chaos_keeps_voxels_and_places(chaos, tmp_path):
    folder = convert("chaos", chaos, tmp_path / "out", progress=False)
    assert [case.name for case in list_cases(folder)] == ["chaos_01", "chaos_03"]
    image, label = (folder / sub / "chaos_01.nii.gz" for sub in ("imagesTr", "labelsTr"))
    # (2, 3, 4): 190 - 2 * 1.25, -200 + 3 * 1.25, -77 + 4 * 7.7 mm
    place = (187.5, -196.25, -46.2)
    assert at(image, *place) == 855 and at(label, *place) == 2
    assert nibabel.load(image).get_data_dtype() == np.int16
    assert nibabel.load(label).get_data_dtype() == np.uint8
    task = read_task(folder)
    assert task.labels == {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
    assert (task.modality, task.tolerance_mm, task.assumptions) == ("MRI", 3, ())
    headers = read_header(image), read_header(label)
    assert place_fault(*(header.forms for header in headers), headers[0].shape) is None


def broken(name, text):
    return lambda clone: (clone / "provided-data/train-pats/pt_7" / name).write_text(text)


def second(image=ZEROS, label=ZEROS, apart=0):
    """A second case; without its label if that is None."""

    def damage(clone):
        folder = clone / "data/CHAOST2/chaos_MR_T2_normalized"
        write_chaos(folder, 2, image, ZEROS if label is None else label, apart)
        if label is None:
            (folder / "label_2.nii.gz").unlink()

    return damage


FAULTS = [
    (broken("ct.csv", ",data\n5,1000.0\n"), "no slice of it shows a body"),
    (broken("ct.csv", ",data\n5,1000.0\n6,"), "ct.csv is damaged.*cut off"),
    (broken("ct.csv", ",data\n5,1000.0\n6,\n"), "ct.csv.*each voxel has a value"),
    (broken("ct.csv", ",data\n5,1000.0\n5,1.0\n"), "ct.csv.*not one per voxel"),
    (broken("ct.csv", ",data\n2097152,1.0\n"), "ct.csv.*not one per voxel"),
    (broken("ct.csv", "version https://git-lfs\n"), "ct.csv lacks the column 'data'"),
    (broken("Mandible.csv", ",data\n5,1000.0\n"), "Mandible.csv.*have no value"),
    (broken("Mandible.csv", ",data\n"), "Mandible.csv: the column 'data'"),
    (broken("Mandible.csv", ""), "Mandible.csv is not a readable table"),
    (broken("voxel_dimensions.csv", "5.0\n4.0\n"), "voxel_dim.*not three edges"),
    (broken("voxel_dimensions.csv", "5.0\nnan\n2.0\n"), "voxel_dim.*not three edges"),
    (broken("voxel_dimensions.csv", "5.0\nx\n2.0\n"), "voxel_dim.*missing or damaged"),
    (lambda c: (c / "provided-data/train-pats/pt_7/ct.csv").unlink(), "ct.csv does not exist"),
    (lambda c: write_patient(c / "provided-data/validation-pats/pt_7"), "second of its number"),
    (lambda c: write_patient(c / "provided-data/train-pats/pt_7 copy"), "pt_7 copy is not"),
    (second(ZEROS + 0.5), "image_2.nii.gz has voxels that are not whole"),
    (second(ZEROS + np.nan), "image_2.nii.gz has voxels that are not whole"),
    (second(ZEROS - 1), "image_2.nii.gz has voxels that are not whole numbers from 0 on"),
    (second(label=ZEROS + 5), "label_2.nii.gz has labels from 5 to 5, not 0 to 4"),
    (second(label=ZEROS + 0.5), "label_2.nii.gz: values that are not whole"),
    (second(label=ZEROS[:3]), "do not have the same voxels"),
    (second(apart=3), "do not have the same voxels"),
    (second(label=None), "label_2.nii.gz: missing"),
]


@pytest.mark.parametrize(("damage", "words"), FAULTS)
def test_a_fault_of_a_release_is_one_sentence_and_leaves_nothing(
    openkbp, chaos, tmp_path, damage, words
):
    damage(openkbp)  # both are in one clone
    release = "chaos" if "_2.nii" in words or "same voxels" in words else "openkbp"
    with pytest.raises(MvlError, match=words) as raised:
        convert(release, openkbp, tmp_path / "out", progress=False)
    assert "\n" not in str(raised.value)
    assert not any((tmp_path / "out").glob("*"))


def test_the_command_makes_a_folder_once_and_says_how_much_of_it_there_is(chaos, tmp_path, capsys):
    command = ["data", "convert", "chaos", str(chaos), "-o", str(tmp_path / "out")]
    (tmp_path / "out" / CHAOS).mkdir(parents=True)  # an empty folder is in nobody's way
    assert main(command) == 0
    assert "2 of the study's 20 cases" in capsys.readouterr().out
    before = (tmp_path / "out" / CHAOS / "dataset.json").stat().st_mtime_ns
    assert main(command) == 1
    assert "exists and is left as it is" in capsys.readouterr().err
    assert (tmp_path / "out" / CHAOS / "dataset.json").stat().st_mtime_ns == before


def test_a_wrong_folder_is_told_which_one_is_right(chaos, tmp_path, capsys):
    command = ["data", "convert", "openkbp", str(chaos), "-o", str(tmp_path / "out")]
    assert main(command) == 1
    assert "clone of https://github.com/ababier/open-kbp at commit" in capsys.readouterr().err
    assert main([*command[:3], str(tmp_path / "nowhere"), *command[4:]]) == 1
    assert not (tmp_path / "out").exists()


ROOT = Path(os.environ.get("MVL_DATA_ROOT") or "nowhere")


@pytest.mark.skipif(
    not (ROOT / "raw/open-kbp").is_dir() or not (ROOT / OPENKBP).is_dir(),
    reason="MVL_DATA_ROOT holds no raw/open-kbp, or not the task that it becomes",
)
def test_released_patients_come_out_as_the_studys_files(tmp_path):
    folder = convert("openkbp", ROOT / "raw/open-kbp", tmp_path, progress=False)
    made = sorted(folder.rglob("*.nii.gz"))
    assert made
    for path in made:
        studys = ROOT / OPENKBP / path.relative_to(folder)
        assert gzip.decompress(path.read_bytes()) == gzip.decompress(studys.read_bytes()), path.name
