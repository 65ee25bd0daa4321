"""Phantoms: layout, headers, determinism, siblings, and a structure that must be learned."""

import json
import os

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from mvl.data.checks import check_cases
from mvl.data.nifti import read_label, read_volume
from mvl.data.phantom import make_phantom
from mvl.data.task_folder import list_cases
from mvl.data.tasks import TASKS, read_task
from mvl.errors import DataError

HIPPOCAMPUS = "Task04_Hippocampus"
#: A scale at which every task's phantom is small.
SMALL = {name: 0.12 if TASKS[name].shape[0] > 200 else 1.0 for name in TASKS}


def make(root, task_name, **more):
    return make_phantom(task_name, root, progress=False, **more)


@pytest.fixture(scope="module")
def hippocampi(tmp_path_factory):
    """(image, label, subject) of 24 full-size cases."""
    folder = make(tmp_path_factory.mktemp("root"), HIPPOCAMPUS)
    return [
        (read_volume(c.image)[0], read_label(c.label)[0], c.subject) for c in list_cases(folder)
    ]


def bytes_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("task_name", TASKS)
def test_a_phantom_is_a_sound_task_of_its_kind(tmp_path, task_name):
    folder = make(tmp_path, task_name, cases=3, scale=SMALL[task_name])
    known, task = TASKS[task_name], read_task(folder)
    facts = ("modality", "channels", "labels")
    assert task.synthetic and all(getattr(task, f) == getattr(known, f) for f in facts)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == 3 and "synthetic" in description["description"].lower()
    assert len(description["test"]) == description["numTest"] == 2
    assert all(read_volume(folder / path)[0].std() > 0 for path in description["test"])
    cases = list_cases(folder)
    assert check_cases(task, cases, progress=False).faults == []
    seen = set()
    for case in cases:
        image, label = nibabel.load(case.image), nibabel.load(case.label)
        assert image.header.get_zooms()[:3] == pytest.approx(known.spacing_mm)
        assert image.shape[3:] == ((len(known.channels),) if len(known.channels) > 1 else ())
        expected = np.maximum(8, np.array(known.shape) * SMALL[task_name])
        assert np.all(np.abs(np.array(label.shape) / expected - 1) < 0.2)
        assert label.get_data_dtype() == np.uint8
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_allclose(image.get_sform(), image.get_qform(), atol=1e-5)
        seen |= set(np.unique(label.dataobj).tolist())
        # A lung lesion is a few voxels in a large volume.
        assert task_name != "Task06_Lung" or 0 < np.mean(label.get_fdata() > 0) < 0.005
        if task.modality == "CT":
            voxels = np.asanyarray(image.dataobj)
            assert voxels.dtype == np.int16
            assert -1024 <= voxels.min() < -900 and 200 < voxels.max() < 3072
    assert seen == {0, *known.labels}


def test_a_tumours_regions_are_nested(tmp_path):
    case = list_cases(make(tmp_path, "Task01_BrainTumour", cases=1, scale=0.25))[0]
    image, label = read_volume(case.image)[0], read_label(case.label)[0]
    # Oedema wraps the enhancing rim, and the rim wraps the core.
    for inner, around in (((2, 3), 1), ((2,), 3)):
        mask = np.isin(label, inner)
        rim = ndimage.binary_dilation(mask) & ~mask
        assert mask.any() and np.mean(label[rim] == around) > 0.9
    means = {value: image[label == value].mean(axis=0) for value in (1, 3)}
    flair, _, t1gd, _ = range(4)
    assert means[1][flair] > means[3][flair] and means[3][t1gd] > 1.5 * means[1][t1gd]


def test_equal_parameters_give_equal_bytes_and_others_do_not(tmp_path):
    first = bytes_of(make(tmp_path / "a", HIPPOCAMPUS, cases=2, scale=0.5))
    assert bytes_of(make(tmp_path / "b", HIPPOCAMPUS, cases=2, scale=0.5)) == first
    more = bytes_of(make(tmp_path / "c", HIPPOCAMPUS, cases=3, scale=0.5))
    assert all(more[path] == first[path] for path in first if path.suffix == ".gz")
    other = bytes_of(make(tmp_path / "d", HIPPOCAMPUS, cases=2, scale=0.5, seed=1))
    assert all(other[path] != first[path] for path in first)


def test_a_phantom_is_reused_remade_or_repaired(tmp_path):
    folder = make(tmp_path, HIPPOCAMPUS, cases=2, scale=0.5)
    inode, first = os.stat(folder).st_ino, bytes_of(folder)
    assert make(tmp_path, HIPPOCAMPUS, cases=2, scale=0.5) == folder
    assert os.stat(folder).st_ino == inode
    make(tmp_path, HIPPOCAMPUS, cases=1, scale=0.5)
    assert len(list_cases(folder)) == 1
    make(tmp_path, HIPPOCAMPUS, cases=2, scale=0.5)
    list_cases(folder)[0].label.unlink()
    make(tmp_path, HIPPOCAMPUS, cases=2, scale=0.5)
    assert bytes_of(folder) == first
    assert os.listdir(tmp_path) == [HIPPOCAMPUS]  # nothing is left beside it


@pytest.mark.parametrize(
    "text", [None, "{", "[]", "{}", '{"synthetic": "true"}', '{"synthetic": true}']
)
def test_a_folder_that_is_no_phantom_is_never_overwritten(tmp_path, text):
    folder = tmp_path / HIPPOCAMPUS
    folder.mkdir()
    (folder / "precious").write_text("data")
    if text is not None:
        (folder / "dataset.json").write_text(text)
    before = bytes_of(folder)
    with pytest.raises(DataError, match="not a phantom"):
        make(tmp_path, HIPPOCAMPUS, cases=1)
    assert bytes_of(folder) == before


def test_what_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for root, task_name, more, reason in (
        (tmp_path, "Task99", {}, "no phantom of 'Task99'"),
        (tmp_path, HIPPOCAMPUS, {"cases": 0}, "at least 1"),
        (tmp_path, HIPPOCAMPUS, {"scale": 0}, "scale"),
        (tmp_path / "file", HIPPOCAMPUS, {}, "cannot write .* choose another root"),
    ):
        with pytest.raises(DataError, match=reason):
            make(root, task_name, **more)


def test_the_hippocampus_has_the_real_ones_size_and_two_adjacent_parts(hippocampi):
    """Real Task04: 3,325 +- 434 foreground voxels, half of them anterior; head in front."""
    volumes = [np.count_nonzero(label) for _, label, _ in hippocampi]
    assert 2900 < np.mean(volumes) < 3700 and 250 < np.std(volumes) < 900
    for _, label, _ in hippocampi:
        front, back = (np.argwhere(label == value).mean(0) for value in (1, 2))
        assert 0.3 < np.mean(label[label > 0] == 1) < 0.7 and front[1] > back[1] + 8
        assert (ndimage.binary_dilation(label == 1) & (label == 2)).sum() > 50


def aligned(label):
    """A mask about its centre of mass, in a common frame."""
    frame, place = np.zeros((80, 80, 80), bool), np.argwhere(label > 0)
    frame[tuple((place - place.mean(0).round().astype(int) + 40).T)] = True
    return frame


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_siblings_are_alike_and_subjects_differ(hippocampi):
    masks = [aligned(label) for _, label, _ in hippocampi]
    subjects = [subject for _, _, subject in hippocampi]
    assert subjects[0] == subjects[1] != subjects[2] == subjects[3]
    siblings = [dice(masks[k], masks[k + 1]) for k in range(0, 24, 2)]
    strangers = [dice(masks[k], masks[k + 2]) for k in range(0, 22, 2)]
    assert np.mean(siblings) > np.mean(strangers) + 0.03
    assert max(siblings) < 0.97

    # As in the real set: siblings come from one scanner, and differ less in mean intensity.
    means = np.log([image.mean() for image, _, _ in hippocampi])
    assert np.median(np.abs(np.diff(means)[::2])) < 0.5 * np.median(np.abs(np.diff(means)[1::2]))


def best_band(images, masks):
    """The highest Dice of any one pair of intensity thresholds for all cases, after z-scoring."""
    values = np.concatenate([((i - i.mean()) / i.std()).ravel() for i in images])
    inside = np.concatenate([mask.ravel() for mask in masks])
    edges = np.quantile(values, np.linspace(0, 1, 60))
    below = np.append(0, np.cumsum(np.histogram(values, edges)[0]))
    hits = np.append(0, np.cumsum(np.histogram(values[inside], edges)[0]))
    return max(
        2 * (hits[j] - hits[i]) / (below[j] - below[i] + np.count_nonzero(inside))
        for i in range(len(edges))
        for j in range(i + 1, len(edges))
    )


def test_no_threshold_segments_a_phantom(hippocampi, tmp_path):
    assert best_band([i for i, _, _ in hippocampi], [lab > 0 for _, lab, _ in hippocampi]) < 0.5
    cases = list_cases(make(tmp_path, "Task09_Spleen", cases=3, scale=0.12))
    images = [read_volume(case.image)[0] for case in cases]
    assert best_band(images, [read_label(case.label)[0] > 0 for case in cases]) < 0.5


def test_place_and_brightness_together_segment_a_phantom(hippocampi):
    """What a small model has to learn: bright voxels near the middle."""
    for image, label, _ in hippocampi[:6]:
        axes = [np.linspace(-1, 1, n) for n in label.shape]
        x, y, z = np.ix_(*axes)
        near = np.sqrt((x / 0.45) ** 2 + (y / 0.9) ** 2 + (z / 0.45) ** 2) < 1
        bright = image > np.quantile(image[near], 0.4)
        assert dice(near & bright, label > 0) > 0.8
