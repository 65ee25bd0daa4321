"""Every fault of the check list, in a file that has it; all of them in one pass."""

import gzip
import json
import os
import re
import shutil
import struct
import sys
from collections import Counter

import nibabel
import numpy as np
import pytest

from mvl.data.checks import check_cases, require, unlisted
from mvl.data.task_data import describe_cases, open_task
from mvl.data.task_folder import list_cases, task_and_cases
from mvl.errors import DataError
from mvl.experiment import run

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (6, 7, 8)
NAMES = ("a", "b", "c")
LABELS = {"0": "background", "1": "anterior", "2": "posterior"}


def save(path, array, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def make_task(folder):
    """Make a sound task of three cases."""
    rng = np.random.default_rng(0)
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for name in NAMES:
        label = np.zeros(SHAPE, np.uint8)
        label[2:4, 2:5, 2:6], label[4, 2:5, 2:6] = 1, 2
        save(folder / f"imagesTr/{name}.nii.gz", rng.normal(size=SHAPE).astype(np.float32))
        save(folder / f"labelsTr/{name}.nii.gz", label)
    describe(folder)


@pytest.fixture
def folder(tmp_path):
    make_task(tmp_path)
    return tmp_path


def describe(folder, *channels, **entries):
    """Write dataset.json: an MRI, unless other channels are named; entries change it further."""
    description = {
        "modality": dict(enumerate(channels or ["MRI"])),
        "labels": LABELS,
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in NAMES
        ],
    }
    (folder / "dataset.json").write_text(json.dumps(description | entries))


def check(folder):
    return check_cases(*task_and_cases(folder), progress=False)


def faults_of(folder):
    return [(fault.case, fault.fault) for fault in check(folder).faults]


def image_of(folder, name="b"):
    return folder / f"imagesTr/{name}.nii.gz"


def label_of(folder, name="b"):
    return folder / f"labelsTr/{name}.nii.gz"


def edit(path, change, affine=None):
    """Pass a file's voxels through `change` and save the result in its place."""
    volume = nibabel.load(path)
    voxels = change(np.asanyarray(volume.dataobj).copy())
    save(path, voxels, volume.affine if affine is None else affine)


def patch(path, offset, code, *values):
    """Write into the header of a .nii.gz."""
    block = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(code, block, offset, *values)
    path.write_bytes(gzip.compress(bytes(block)))


def second_version(path, change):
    """Save a .nii.gz as NIfTI-2, with a change to its header: 64-bit sizes, double precision."""
    volume = nibabel.load(path)
    header = nibabel.Nifti2Image(np.asanyarray(volume.dataobj), volume.affine).header
    header["vox_offset"] = 544
    change(header)
    voxels = volume.get_fdata(dtype=np.float32).tobytes("F")
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + voxels))


def huge_voxels(header):
    """Voxels of 1e200 mm, whose volume no number holds."""
    header["sform_code"] = 1
    header["srow_x"], header["srow_y"], header["srow_z"] = 1e200 * np.eye(4)[:3]


def put(value, kind=None):
    """A change that writes a value into the first voxel, of an array that is cast before."""

    def change(array):
        array = array.astype(kind or array.dtype)
        array[0, 0, 0] = value
        return array

    return change


def beside_the_label(array):
    """A background of 0 where `make_task` has its labels."""
    array -= array.min()
    array[2:5, 2:5, 2:6] = 0
    return array


def swap(folder):
    image, label = image_of(folder).read_bytes(), label_of(folder).read_bytes()
    image_of(folder).write_bytes(label)
    label_of(folder).write_bytes(image)


def bomb(path):
    """A header of 2048 x 1024 x 80 floats before 640 MiB of zeros, in about 700 kB."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((2048, 1024, 80))
    header["vox_offset"], header["qform_code"] = 352, 1
    member = gzip.compress(bytes(16 << 20))
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + member * 40)


def cut(path, end):
    """Keep the bytes up to an index, or to a share of them."""
    block = path.read_bytes()
    path.write_bytes(block[: int(end * len(block)) if isinstance(end, float) else end])


def cut_inside(path, end, pack=gzip.compress):
    """Cut what a .nii.gz unpacks to."""
    path.write_bytes(pack(gzip.decompress(path.read_bytes())[:end]))


def rot(path):
    block = bytearray(path.read_bytes())
    block[len(block) // 2] ^= 0xFF
    path.write_bytes(block)


def replace_by(make):
    return lambda path: (path.unlink(), make(path))


def image(spoil, *arguments):
    return lambda folder: spoil(image_of(folder), *arguments)


def label(spoil, *arguments):
    return lambda folder: spoil(label_of(folder), *arguments)


def from_a(folder):
    image_of(folder).write_bytes(image_of(folder, "a").read_bytes())


#: name -> (what is done to case b, what the fault says); tests/reliability runs them, too.
FAULTS = {
    "missing image": (image(os.unlink), "image: missing"),
    "missing label": (label(os.unlink), "label: missing"),
    "truncated gzip": (image(cut, 0.6), "image: truncated"),
    "truncated label": (label(cut, 0.8), "label: truncated"),
    "cut inside the header": (image(cut, 0.01), "image: truncated gzip"),
    "sound gzip of too little": (image(cut_inside, -9), "1,335 of 1,344 bytes of voxels"),
    "checksum cut off": (image(cut, -4), "image: truncated"),
    "a flipped byte": (image(rot), "image: damaged gzip"),
    "truncated plain file": (image(cut_inside, 900, bytes), "cannot hold them"),
    "empty file": (image(cut, 0), "image: empty file"),
    "text": (lambda f: image_of(f).write_bytes(b"no volume" * 99), "image: not NIfTI"),
    "packed text": (
        lambda f: image_of(f).write_bytes(gzip.compress(b"no volume" * 99)), "image: not NIfTI"),
    "wrong magic": (image(patch, 344, "4s", b"ni1\0"), "image: not NIfTI"),
    "a folder": (image(replace_by(os.mkdir)), "not a regular file"),
    "a named pipe": (image(replace_by(os.mkfifo)), "not a regular file"),
    "other shape": (label(edit, lambda a: a[:-1]), "label of (5, 7, 8)"),
    "other affine": (label(edit, lambda a: a, np.eye(4)), "apart"),
    "moved by a voxel": (label(patch, 292, "<f", 1.0), "up to 1 mm apart"),
    "foreign label": (label(edit, put(3)), "values 3 that the task"),
    "label 255": (label(edit, put(255)), "values 255 that the task"),
    "negative label": (label(edit, put(-1, np.int16)), "values -1 that the task"),
    "fractional label": (label(edit, put(0.5, "f4")), "not whole numbers, such as 0.5"),
    "NaN label": (label(edit, put(np.nan, "f4")), "not whole numbers, such as nan"),
    "huge label": (label(edit, put(1e9, "f4")), "values from 0 to 1e+09"),
    "swapped": (swap, "label: values that are not whole numbers"),
    "empty label": (label(edit, np.zeros_like), "label: empty"),
    "NaN voxels": (image(edit, put(np.nan)), "1 voxels are NaN or infinite"),
    "infinite voxels": (image(edit, put(-np.inf)), "1 voxels are NaN or infinite"),
    "beyond float32": (image(edit, put(1e300, "f8")), "1 voxels are NaN or infinite"),
    "two channels": (image(edit, lambda a: np.stack([a, a], -1)), "2 channels"),
    "4D label": (label(edit, lambda a: np.stack([a, a], -1)), "label: 4D"),
    "2D": (image(edit, lambda a: a[..., 0]), "2D data"),
    "5D": (image(edit, lambda a: a[..., None, None] * np.ones((1, 2, 2), "f")), "5D data"),
    "no voxels": (image(patch, 42, "<h", 0), "header with sizes"),
    "negative size": (image(patch, 42, "<h", -6), "header with sizes"),
    "100 axes": (image(patch, 40, "<h", 100), "header with sizes"),
    "huge sizes": (image(patch, 42, "<3h", 32767, 32767, 32767), "cannot hold them"),
    "zero spacing": (image(patch, 80, "<f", 0), "voxel spacing [0.0"),
    "negative spacing": (image(patch, 84, "<f", -1), "voxel spacing"),
    "NaN spacing": (image(patch, 84, "<f", np.nan), "voxel spacing"),
    "singular affine": (image(patch, 280, "<4f", 0, 0, 0, 0), "not invertible"),
    "infinite affine": (image(patch, 280, "<f", np.inf), "not invertible"),
    "far offset": (image(patch, 108, "<f", 1e12), "voxels at byte"),
    "NaN offset": (image(patch, 108, "<f", np.nan), "voxels at byte"),
    "unknown type": (image(patch, 70, "<h", 999), "header without sense"),
    "colours": (image(patch, 70, "<2h", 128, 24), "not numbers"),
    "infinite intercept": (image(patch, 112, "<2f", 1, np.inf), "header without sense"),
    "sizes of 64 bits": (
        image(second_version, lambda h: h["dim"].put([1, 2, 3], 1 << 40)), "cannot hold them"),
    "sizes that overflow": (
        image(second_version, lambda h: h["dim"].put([1, 2, 3], 1 << 62)), "cannot hold them"),
    "voxels beyond any number": (image(second_version, huge_voxels), "not invertible"),
    "bomb": (image(bomb), "as a decompression bomb does"),
    "duplicate": (from_a, "the same voxels as a's"),
    "duplicate in other clothes": (
        lambda f: save(image_of(f), nibabel.load(image_of(f, "a")).get_fdata(), np.eye(4)),
        "the same voxels as a's"),
    "blank image": (image(edit, np.zeros_like), "image: 0 in all voxels"),
    "constant image": (image(edit, lambda a: np.full_like(a, 7)), "image: 7 in all voxels"),
    "a voxel of 1e9": (image(edit, put(1e9)), "image: a voxel of 1e+09, while"),
    "a voxel of -65535": (image(edit, put(-65535)), "image: a voxel of -65535"),
    "the label as its own image": (
        lambda f: image_of(f).write_bytes(label_of(f).read_bytes()),
        "image: the same voxels as its label's"),
    "an image of three values": (
        image(edit, lambda a: np.digitize(a, [-1, 1]).astype(np.float32)),
        "image: no other values than 0, 1, 2"),
    "label on the background": (
        image(edit, beside_the_label), "label: wholly where the image has its lowest value, 0"),
}  # fmt: skip


def test_a_sound_task_has_no_fault_and_a_record_of_each_case(folder):
    result, cases = check(folder), list_cases(folder)
    assert result.faults == [] and require(cases, result) == cases
    record = result.records["b"]
    assert (record.shape, record.spacing_mm.tolist()) == (SHAPE, [1, 1, 2])
    assert record.label_counts == {0: 336 - 36, 1: 24, 2: 12}
    voxels = nibabel.load(image_of(folder)).get_fdata()
    assert record.mean_intensity == pytest.approx(voxels.mean(), abs=1e-6)
    assert len({record.voxel_hash for record in result.records.values()}) == len(NAMES)


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_reported_with_its_case(folder, name):
    spoil, text = FAULTS[name]
    spoil(folder)
    result = check(folder)
    assert {fault.case for fault in result.faults} == {"b"}
    assert any(text in fault.fault for fault in result.faults), result.table()
    assert all(fault.remedy for fault in result.faults)
    cases = list_cases(folder)
    with pytest.raises(DataError, match=f"(?s)of 3 cases.*{re.escape(text)}"):
        require(cases, result)
    assert [case.name for case in require(cases, result, "skip")] == ["a", "c"]


def test_all_faults_are_found_in_one_pass(folder):
    image_of(folder, "a").unlink()
    label_of(folder, "a").unlink()
    edit(image_of(folder, "b"), put(np.nan))
    edit(label_of(folder, "b"), put(9))
    edit(label_of(folder, "c"), lambda a: np.zeros_like(a)[:-1])
    result = check(folder)
    assert [fault.case for fault in result.faults] == ["a", "a", "b", "b", "c", "c"]
    for on_bad_case, text in (("fail", "6 faults in 3 of 3 cases"), ("skip", "no case is left")):
        with pytest.raises(DataError, match=text) as caught:
            require(list_cases(folder), result, on_bad_case)
        assert len(str(caught.value).splitlines()) == 2 + 6


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (image(edit, lambda a: a), True),
        (image(second_version, lambda header: None), True),
        (label(edit, lambda a: a.astype(np.float64)), True),
        (image(edit, put(3)), False),
        (label(edit, put(1)), False),
        (label(patch, 292, "<f", 1e-4), False),
    ],
)
def test_the_voxel_hash_is_of_content_and_place_alone(folder, change, same):
    before = check(folder).records
    change(folder)
    result = check(folder)
    after = result.records
    assert result.faults == []
    assert (after["b"].voxel_hash == before["b"].voxel_hash) is same
    assert after["a"].voxel_hash == before["a"].voxel_hash


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: a * [1, 0], "0 in all voxels in channel 1 (T2)"),
        (lambda a: a + 1e9 * (a == a[0, 0, 0, 0]), "a voxel of 1e+09 in channel 0 (T1), while 98"),
        (lambda a: a[..., 0], "1 channels, the task has 2"),
    ],
)
def test_a_faulty_channel_is_named(folder, change, text):
    describe(folder, "T1", "T2")
    for name in NAMES:
        edit(image_of(folder, name), lambda a: np.stack([a, 300 - a], -1))
    edit(image_of(folder), change)
    ((case, fault),) = faults_of(folder)
    assert case == "b" and text in fault


def test_metal_in_a_ct_is_no_fault_and_what_no_ct_reaches_is(folder):
    describe(folder, "CT", window_hu=[-100, 300])
    for value, bad in ((3095, []), (30_000, []), (1e9, ["b"])):
        edit(image_of(folder), put(value))
        assert check(folder).bad_cases == bad


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, shape: rng.lognormal(3, 1.5, shape),  # many dark, few bright
        lambda rng, shape: rng.exponential(1, shape) + 150 * (rng.random(shape) < 0.002),  # PET
        lambda rng, shape: rng.normal(500, 50, shape) * (rng.random(shape) < 0.005),  # mostly air
        lambda rng, shape: rng.normal(500, 50, shape) * (rng.random(shape) < 0.0005),
        lambda rng, shape: 100 + rng.normal(0, 50, shape) * (rng.random(shape) < 0.001),
        lambda rng, shape: np.round(rng.normal(8, 2, shape)),  # few grey values
        lambda rng, shape: rng.normal(40, 10, shape) + 4000 * (rng.random(shape) < 0.001),
    ],
)
def test_skewed_sparse_and_coarse_images_are_no_fault(folder, draw):
    array = draw(np.random.default_rng(0), (40, 40, 40)).astype(np.float32)
    truth = np.zeros(array.shape, np.uint8)
    truth[5:20, 5:20, 5:20], truth[20:30, 5:20, 5:20] = 1, 2
    save(image_of(folder), array)
    save(label_of(folder), truth)
    assert check(folder).faults == []


def test_one_image_labelled_twice_is_no_fault_once_both_have_one_subject(folder):
    from_a(folder)
    (fault,) = check(folder).faults
    assert "subjects.csv" in fault.remedy
    (folder / "subjects.csv").write_text("case,subject\na,one\nb,one\nc,two\n")
    assert check(folder).faults == []


def test_an_unlabelled_image_may_be_listed_as_a_test_image(folder):
    entries = json.loads((folder / "dataset.json").read_text())["training"]
    del entries[1]["label"]
    describe(folder, training=entries)
    (fault,) = check(folder).faults
    assert "no label" in fault.fault and "'test'" in fault.remedy
    describe(folder, training=[entries[0], entries[2]], test=[entries[1]["image"]])
    assert check(folder).faults == []
    assert unlisted(folder, list_cases(folder)) == []


def test_one_label_of_two_subjects_is_a_fault_and_of_one_subject_is_not(folder):
    pairs = [("a", "a"), ("b", "a"), ("c", "c")]
    training = [
        {"image": f"./imagesTr/{a}.nii.gz", "label": f"./labelsTr/{b}.nii.gz"} for a, b in pairs
    ]
    describe(folder, training=training)
    assert faults_of(folder) == [("b", "label: the file is a's, of another subject")]
    (folder / "subjects.csv").write_text("case,subject\na,p\nb,p\nc,q\n")
    assert faults_of(folder) == []


def test_a_folder_that_is_not_there_is_a_fault_of_its_cases(folder):
    training = [
        {"image": f"./imageTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in NAMES
    ]
    describe(folder, training=training, test=None)
    assert [case for case, _ in faults_of(folder)] == list(NAMES)
    assert unlisted(folder, list_cases(folder)) == []


def test_images_that_nothing_names_are_told(folder):
    """Another session of one patient, say; no fault, since they may be meant for later."""
    save(folder / "imagesTr/b_second.nii.gz", np.ones(SHAPE, np.float32))
    (folder / "imagesTr/._b.nii.gz").write_bytes(b"")
    assert check(folder).faults == []
    assert [path.name for path in unlisted(folder, list_cases(folder))] == ["b_second.nii.gz"]


def test_a_label_that_no_case_has_is_the_tasks_fault(folder):
    describe(folder, labels=LABELS | {"7": "never"})
    assert faults_of(folder) == [("dataset.json", "label 7 (never): in none of 3 cases")]
    result, cases = check(folder), list_cases(folder)
    for on_bad_case in ("fail", "skip"):  # no case is at fault
        with pytest.raises(DataError, match="label 7"):
            require(cases, result, on_bad_case)
    describe(folder)  # the remedy
    assert require(cases, check(folder)) == cases


def test_a_label_that_skipped_cases_alone_have_is_the_tasks_fault(folder):
    for name in ("a", "c"):
        edit(label_of(folder, name), lambda array: np.minimum(array, 1))
    edit(image_of(folder, "b"), put(np.nan))
    result = check(folder)
    assert result.bad_cases == ["b"]
    with pytest.raises(DataError, match="label 2 .posterior.: in none of 2 cases"):
        require(list_cases(folder), result, "skip")


def test_an_empty_label_may_be_declared(folder):
    sound = label_of(folder).read_bytes()
    edit(label_of(folder), np.zeros_like)
    (fault,) = check(folder).faults
    assert fault.case == "b" and '"b" to a list "healthy"' in fault.remedy
    describe(folder, healthy=["b"])  # the remedy
    assert check(folder).faults == []
    label_of(folder).write_bytes(sound)
    assert faults_of(folder) == [("b", "label: not empty, but the case is declared healthy")]
    describe(folder, healthy=["B"])
    assert faults_of(folder) == [("dataset.json", "'healthy' names B, which is no case")]


def test_ignored_voxels_are_no_structure_and_no_fault(folder):
    describe(folder, labels=LABELS | {"255": "ignore"})
    edit(label_of(folder), put(255))
    assert check(folder).faults == []
    edit(label_of(folder), lambda array: np.where(array == 255, array, 0).astype(np.uint8))
    assert "no voxel of a structure" in check(folder).faults[0].fault
    edit(label_of(folder), lambda array: np.full_like(array, 255))
    assert "ignore alone" in check(folder).faults[0].fault


def test_the_remedy_for_a_background_of_one_is_sound(folder):
    """Every voxel of the labels is above 0, as where 0 is not used."""
    for name in NAMES:
        edit(label_of(folder, name), lambda array: array + 1)
    describe(folder, labels={"1": "background", "2": "anterior", "3": "posterior"})
    with pytest.raises(DataError, match="change 1 to 0 in every label"):
        check(folder)
    for name in NAMES:
        edit(label_of(folder, name), lambda array: np.where(array == 1, 0, array))
    describe(folder, labels={"0": "background", "2": "anterior", "3": "posterior"})
    assert check(folder).faults == []


def test_each_file_is_opened_once_to_check_it_and_once_to_use_it(phantom, tmp_path, tiny):
    """A task is opened, a model trained and tested, the cases described."""
    opened, watching = Counter(), True

    def watch(event, arguments):
        if watching and event == "open" and isinstance(arguments[0], str | os.PathLike):
            opened[str(arguments[0])] += 1

    sys.addaudithook(watch)  # nothing takes it away again
    root = shutil.copytree(phantom, tmp_path / "copy")  # which nobody has opened yet
    config = tiny(training={"epochs": 1, "warmup_epochs": 0})
    opened.clear()
    data = open_task(config.data, 0, root, progress=False)
    assert {opened[str(path)] for c in data.cases.values() for path in (c.image, c.label)} == {1}
    run.test(run.fit(config, data, tmp_path / "runs", show=False), data, show=False)
    describe_cases(data)
    watching = False
    for side in ("train", "validation", "test"):
        for case in data.side(side):
            assert opened[str(case.image)] == opened[str(case.label)] == 2, (side, case.name)
