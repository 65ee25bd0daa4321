"""Every fault of the check list, in a file that has it; all of them in one pass."""

import gzip
import json
import os
import struct
import time
import tracemalloc
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from mvl.data.checks import check_cases, require, unlisted
from mvl.data.nifti import read_label, read_volume
from mvl.data.task_folder import list_cases
from mvl.errors import DataError

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (6, 7, 8)
NAMES = ("a", "b", "c")


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
    write_description(folder, NAMES)


@pytest.fixture
def folder(tmp_path):
    make_task(tmp_path)
    return tmp_path


def write_description(folder, names, modality=("MRI",)):
    training = [
        {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names
    ]
    description = {
        "modality": dict(enumerate(modality)),
        "labels": {"0": "background", "1": "anterior", "2": "posterior"},
        "training": training,
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def check(folder):
    return check_cases(folder, list_cases(folder), progress=False)


def image_of(folder, name="b"):
    return folder / f"imagesTr/{name}.nii.gz"


def label_of(folder, name="b"):
    return folder / f"labelsTr/{name}.nii.gz"


def edit(path, change):
    """Pass a file's voxels through `change` and save the result in its place."""
    volume = nibabel.load(path)
    save(path, change(np.asanyarray(volume.dataobj).copy()), volume.affine)


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
    for axis, row in zip((0, 1, 2), ("srow_x", "srow_y", "srow_z"), strict=True):
        header[row] = 1e200 * np.eye(4)[axis]


def put(value):
    def change(array):
        array[0, 0, 0] = value
        return array

    return change


def beside_the_label(array):
    """Zeros where `make_task` has its labels."""
    array[2:5, 2:5, 2:6] = 0
    return array


def swap(folder):
    image, label = image_of(folder).read_bytes(), label_of(folder).read_bytes()
    image_of(folder).write_bytes(label)
    label_of(folder).write_bytes(image)


def bomb(path):
    """A header of 2048 x 2048 x 256 floats before 640 MiB of zeros, in about 700 kB."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((2048, 1024, 80))
    header["vox_offset"], header["qform_code"] = 352, 1
    member = gzip.compress(bytes(16 << 20))
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + member * 40)


def cut(path, share):
    block = path.read_bytes()
    path.write_bytes(block[: int(share * len(block))])


def rot(path):
    block = bytearray(path.read_bytes())
    block[len(block) // 2] ^= 0xFF
    path.write_bytes(block)


# name -> (what is done to case b, what the fault says)
FAULTS = {
    "missing image": (lambda f: image_of(f).unlink(), "image: missing"),
    "missing label": (lambda f: label_of(f).unlink(), "label: missing"),
    "truncated gzip": (lambda f: cut(image_of(f), 0.6), "image: truncated"),
    "truncated label": (lambda f: cut(label_of(f), 0.8), "label: truncated"),
    "cut inside the header": (lambda f: cut(image_of(f), 0.01), "image: truncated gzip"),
    "sound gzip of too little": (
        lambda f: image_of(f).write_bytes(
            gzip.compress(gzip.decompress(image_of(f).read_bytes())[:-9])
        ),
        "image: truncated: 1,335 of 1,344 bytes of voxels",
    ),
    "checksum cut off": (
        lambda f: image_of(f).write_bytes(image_of(f).read_bytes()[:-4]),
        "image: truncated",
    ),
    "a flipped byte": (lambda f: rot(image_of(f)), "image: damaged gzip"),
    "truncated plain file": (
        lambda f: image_of(f).write_bytes(gzip.decompress(image_of(f).read_bytes())[:900]),
        "cannot hold them",
    ),
    "empty file": (lambda f: image_of(f).write_bytes(b""), "image: empty file"),
    "text": (lambda f: image_of(f).write_bytes(b"no volume" * 99), "image: not NIfTI"),
    "packed text": (
        lambda f: image_of(f).write_bytes(gzip.compress(b"no volume" * 99)),
        "image: not NIfTI",
    ),
    "wrong magic": (lambda f: patch(image_of(f), 344, "4s", b"ni1\0"), "image: not NIfTI"),
    "a folder": (lambda f: (image_of(f).unlink(), image_of(f).mkdir()), "not a regular file"),
    "a named pipe": (
        lambda f: (image_of(f).unlink(), os.mkfifo(image_of(f))),
        "not a regular file",
    ),
    "other shape": (lambda f: edit(label_of(f), lambda a: a[:-1]), "label of (5, 7, 8)"),
    "other affine": (
        lambda f: save(label_of(f), np.asanyarray(nibabel.load(label_of(f)).dataobj), np.eye(4)),
        "apart",
    ),
    "moved by a voxel": (
        lambda f: patch(label_of(f), 292, "<f", 1.0),
        "up to 1 mm apart",
    ),
    "foreign label": (lambda f: edit(label_of(f), put(3)), "values 3 that the task"),
    "label 255": (lambda f: edit(label_of(f), put(255)), "values 255 that the task"),
    "negative label": (
        lambda f: edit(label_of(f), lambda a: put(-1)(a.astype(np.int16))),
        "values -1 that the task",
    ),
    "fractional label": (
        lambda f: edit(label_of(f), lambda a: put(0.5)(a.astype(np.float32))),
        "not whole numbers, such as 0.5",
    ),
    "NaN label": (
        lambda f: edit(label_of(f), lambda a: put(np.nan)(a.astype(np.float32))),
        "not whole numbers, such as nan",
    ),
    "huge label": (
        lambda f: edit(label_of(f), lambda a: put(1e9)(a.astype(np.float32))),
        "values from 0 to 1e+09",
    ),
    "swapped": (swap, "label: values that are not whole numbers"),
    "empty label": (lambda f: edit(label_of(f), np.zeros_like), "label: empty"),
    "NaN voxels": (lambda f: edit(image_of(f), put(np.nan)), "1 voxels are NaN or infinite"),
    "infinite voxels": (lambda f: edit(image_of(f), put(-np.inf)), "1 voxels are NaN or infinite"),
    "beyond float32": (
        lambda f: edit(image_of(f), lambda a: put(1e300)(a.astype(np.float64))),
        "1 voxels are NaN or infinite",
    ),
    "two channels": (lambda f: edit(image_of(f), lambda a: np.stack([a, a], -1)), "2 channels"),
    "4D label": (lambda f: edit(label_of(f), lambda a: np.stack([a, a], -1)), "label: 4D"),
    "2D": (lambda f: edit(image_of(f), lambda a: a[..., 0]), "2D data"),
    "5D": (lambda f: edit(image_of(f), lambda a: a[..., None, None] * np.ones((1, 2, 2), "f")),
           "5D data"),
    "no voxels": (lambda f: patch(image_of(f), 42, "<h", 0), "header with sizes"),
    "negative size": (lambda f: patch(image_of(f), 42, "<h", -6), "header with sizes"),
    "100 axes": (lambda f: patch(image_of(f), 40, "<h", 100), "header with sizes"),
    "huge sizes": (
        lambda f: patch(image_of(f), 42, "<3h", 32767, 32767, 32767),
        "cannot hold them",
    ),
    "zero spacing": (lambda f: patch(image_of(f), 80, "<f", 0), "voxel spacing [0.0"),
    "negative spacing": (lambda f: patch(image_of(f), 84, "<f", -1), "voxel spacing"),
    "NaN spacing": (lambda f: patch(image_of(f), 84, "<f", np.nan), "voxel spacing"),
    "singular affine": (lambda f: patch(image_of(f), 280, "<4f", 0, 0, 0, 0), "not invertible"),
    "infinite affine": (lambda f: patch(image_of(f), 280, "<f", np.inf), "not invertible"),
    "far offset": (lambda f: patch(image_of(f), 108, "<f", 1e12), "voxels at byte"),
    "NaN offset": (lambda f: patch(image_of(f), 108, "<f", np.nan), "voxels at byte"),
    "unknown type": (lambda f: patch(image_of(f), 70, "<h", 999), "header without sense"),
    "colours": (lambda f: patch(image_of(f), 70, "<2h", 128, 24), "not numbers"),
    "infinite intercept": (
        lambda f: patch(image_of(f), 112, "<2f", 1, np.inf),
        "header without sense",
    ),
    "sizes of 64 bits": (
        lambda f: second_version(image_of(f), lambda h: h["dim"].put([1, 2, 3], 1 << 40)),
        "cannot hold them",
    ),
    "sizes that overflow": (
        lambda f: second_version(image_of(f), lambda h: h["dim"].put([1, 2, 3], 1 << 62)),
        "cannot hold them",
    ),
    "voxels beyond any number": (
        lambda f: second_version(image_of(f), huge_voxels),
        "not invertible",
    ),
    "bomb": (lambda f: bomb(image_of(f)), "as a decompression bomb does"),
    "duplicate": (
        lambda f: image_of(f).write_bytes(image_of(f, "a").read_bytes()),
        "the same voxels as a's",
    ),
    "duplicate in other clothes": (
        lambda f: save(
            image_of(f), nibabel.load(image_of(f, "a")).get_fdata(dtype=np.float64), np.eye(4)
        ),
        "the same voxels as a's",
    ),
    "blank image": (lambda f: edit(image_of(f), np.zeros_like), "image: 0 in all voxels"),
    "constant image": (
        lambda f: edit(image_of(f), lambda a: np.full_like(a, 7)),
        "image: 7 in all voxels",
    ),
    "a voxel of 1e9": (lambda f: edit(image_of(f), put(1e9)), "image: a voxel of 1e+09, while"),
    "a voxel of -65535": (lambda f: edit(image_of(f), put(-65535)), "image: a voxel of -65535"),
    "the label as its own image": (
        lambda f: image_of(f).write_bytes(label_of(f).read_bytes()),
        "image: the same voxels as its label's",
    ),
    "an image of three values": (
        lambda f: edit(image_of(f), lambda a: np.digitize(a, [-1, 1]).astype(np.float32)),
        "image: no other values than 0, 1, 2",
    ),
    "label on the background": (
        lambda f: edit(image_of(f), lambda a: beside_the_label(a - a.min())),
        "label: wholly where the image has its lowest value, 0",
    ),
}  # fmt: skip


def test_a_sound_task_has_no_fault(folder):
    result = check(folder)
    assert result.faults == []
    assert set(result.hashes) == set(result.image_hashes) == set(NAMES)
    cases = list_cases(folder)
    assert require(cases, result) == cases


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_reported_with_its_case(folder, name):
    spoil, text = FAULTS[name]
    spoil(folder)
    tracemalloc.start()
    start = time.monotonic()
    result = check(folder)
    seconds, (_, peak) = time.monotonic() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {fault.case for fault in result.faults} == {"b"}
    assert any(text in fault.fault for fault in result.faults), result.table()
    assert all(fault.remedy for fault in result.faults)
    assert seconds < 5 and peak < 64 << 20
    cases = list_cases(folder)
    with pytest.raises(DataError, match="of 3 cases") as caught:
        require(cases, result)
    assert text in str(caught.value)
    assert [case.name for case in require(cases, result, "skip")] == ["a", "c"]


def test_all_faults_are_found_in_one_pass(folder):
    image_of(folder, "a").unlink()
    label_of(folder, "a").unlink()
    edit(image_of(folder, "b"), put(np.nan))
    edit(label_of(folder, "b"), put(9))
    edit(label_of(folder, "c"), lambda a: np.zeros_like(a)[:-1])
    result = check(folder)
    assert [fault.case for fault in result.faults] == ["a", "a", "b", "b", "c", "c"]
    with pytest.raises(DataError, match="6 faults in 3 of 3 cases") as caught:
        require(list_cases(folder), result, "fail")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 + 6
    with pytest.raises(DataError, match="no case is left"):
        require(list_cases(folder), result, "skip")


def test_a_case_without_a_label_is_a_fault(folder):
    cases = list_cases(folder)
    cases[1] = replace(cases[1], label=None)
    result = check_cases(folder, cases, progress=False)
    assert [(fault.case, fault.fault) for fault in result.faults] == [
        ("b", "no label in dataset.json")
    ]


def test_channels_are_held_against_the_task(folder):
    write_description(folder, NAMES, modality=("T2", "ADC"))
    for name in ("a", "c"):
        edit(image_of(folder, name), lambda a: np.stack([a, a], -1))
    faults = check(folder).faults
    assert [(f.case, f.fault) for f in faults] == [("b", "image: 1 channels, the task has 2")]


def two_channels(folder, change):
    """A task of T1 and T2, with the two channels of b passed through `change`."""
    write_description(folder, NAMES, modality=("T1", "T2"))
    for name in NAMES:
        edit(image_of(folder, name), lambda a: np.stack([a, 300 - a], -1))
    edit(image_of(folder), change)


def test_a_missing_channel_is_named(folder):
    def blank(array):
        array[..., 1] = 0
        return array

    two_channels(folder, blank)
    faults = check(folder).faults
    assert [(f.case, f.fault) for f in faults] == [
        ("b", "image: 0 in all voxels in channel 1 (T2)")
    ]


def test_a_far_voxel_of_one_channel_is_named(folder):
    def burnt(array):
        array[0, 0, 0, 0] = 1e9
        return array

    two_channels(folder, burnt)
    (fault,) = check(folder).faults
    assert "a voxel of 1e+09 in channel 0 (T1), while 98 % lie from" in fault.fault


@pytest.mark.parametrize("metal", [3095, 30_000])
def test_metal_in_a_ct_is_no_fault_and_what_no_ct_reaches_is(folder, metal):
    write_description(folder, NAMES, modality=("CT",))
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"window_hu": [-100, 300]}))
    edit(image_of(folder), put(metal))
    assert check(folder).faults == []
    edit(image_of(folder), put(1e9))
    assert [f.case for f in check(folder).faults] == ["b"]


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
    rng = np.random.default_rng(0)
    array, label = draw(rng, (40, 40, 40)).astype(np.float32), np.zeros((40, 40, 40), np.uint8)
    label[5:20, 5:20, 5:20], label[20:30, 5:20, 5:20] = 1, 2
    save(image_of(folder), array)
    save(label_of(folder), label)
    assert check(folder).faults == []


def test_one_image_labelled_twice_is_no_fault_once_both_have_one_subject(folder):
    """The remedy, followed: nothing is taken out."""
    image_of(folder).write_bytes(image_of(folder, "a").read_bytes())
    (fault,) = check(folder).faults
    assert "subjects.csv" in fault.remedy
    (folder / "subjects.csv").write_text("case,subject\na,one\nb,one\nc,two\n")
    assert check(folder).faults == []


def test_an_unlabelled_image_may_be_listed_as_a_test_image(folder):
    """The remedy, followed."""
    description = json.loads((folder / "dataset.json").read_text())
    entry = description["training"][1]
    del entry["label"]
    (folder / "dataset.json").write_text(json.dumps(description))
    (fault,) = check(folder).faults
    assert "'test'" in fault.remedy
    description["training"].remove(entry)
    (folder / "dataset.json").write_text(json.dumps(description | {"test": [entry["image"]]}))
    assert check(folder).faults == []
    assert unlisted(folder, list_cases(folder)) == []


def test_images_that_nothing_names_are_told(folder):
    """Another session of one patient, say; no fault, since they may be meant for later."""
    save(folder / "imagesTr/b_second.nii.gz", np.ones(SHAPE, np.float32))
    (folder / "imagesTr/._b.nii.gz").write_bytes(b"")
    assert check(folder).faults == []
    beside = unlisted(folder, list_cases(folder))
    assert [path.name for path in beside] == ["b_second.nii.gz"]


def test_the_second_version_is_read_like_the_first(folder):
    before, _ = read_volume(image_of(folder))
    second_version(image_of(folder), lambda header: None)
    assert gzip.decompress(image_of(folder).read_bytes())[4:7] == b"n+2"
    np.testing.assert_array_equal(read_volume(image_of(folder))[0], before)
    assert check(folder).faults == []


def test_float_labels_and_rounded_affines_are_no_fault(folder):
    edit(label_of(folder), lambda a: a.astype(np.float32))
    patch(label_of(folder), 292, "<f", 1e-4)
    assert check(folder).faults == []


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_no_header_ends_in_a_traceback(tmp_path, suffix):
    """Random bytes at random places of a header: read, or refused by a sentence."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(SHAPE)
    header["vox_offset"], header["qform_code"] = 352, 1
    sound = header.binaryblock + bytes(4) + bytes(2 * int(np.prod(SHAPE)))
    rng = np.random.default_rng(0)
    path = tmp_path / f"x{suffix}"
    refused = 0
    for _ in range(300):
        block = bytearray(sound)
        for offset in rng.integers(40, 348, rng.integers(1, 4)):
            block[offset : offset + 4] = rng.bytes(4)
        block = bytes(block[: len(sound)])
        path.write_bytes(gzip.compress(block, 1) if suffix == ".nii.gz" else block)
        for reader in (read_volume, read_label):
            try:
                reader(path)
            except DataError as error:
                refused += 1
                assert str(path) in str(error)
    assert 50 < refused < 550


def describe(folder, **facts):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_label_that_no_case_has_is_the_tasks_fault(folder):
    labels = {"0": "background", "1": "anterior", "2": "posterior", "7": "never"}
    describe(folder, labels=labels)
    result, cases = check(folder), list_cases(folder)
    assert [(fault.case, fault.fault) for fault in result.faults] == [
        ("dataset.json", "label 7 (never): in none of 3 cases")
    ]
    for on_bad_case in ("fail", "skip"):  # no case is at fault
        with pytest.raises(DataError, match="label 7"):
            require(cases, result, on_bad_case)
    del labels["7"]  # the remedy
    describe(folder, labels=labels)
    assert require(cases, check(folder)) == cases


def test_a_label_that_skipped_cases_alone_have_is_the_tasks_fault(folder):
    for name in ("a", "c"):
        edit(label_of(folder, name), lambda array: np.minimum(array, 1))
    edit(image_of(folder, "b"), put(np.nan))
    result = check(folder)
    assert {fault.case for fault in result.faults} == {"b"}
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
    (fault,) = check(folder).faults
    assert fault.case == "b" and "declared healthy" in fault.fault
    describe(folder, healthy=["B"])
    (fault,) = check(folder).faults
    assert fault.case == "dataset.json" and "B, which is no case" in fault.fault


def test_ignored_voxels_are_no_structure_and_no_fault(folder):
    names = {"0": "background", "1": "anterior", "2": "posterior", "255": "ignore"}
    describe(folder, labels=names)
    edit(label_of(folder), put(255))
    assert check(folder).faults == []
    edit(label_of(folder), lambda array: np.where(array == 255, array, 0).astype(np.uint8))
    assert "no voxel of a structure" in check(folder).faults[0].fault
    edit(label_of(folder), lambda array: np.full_like(array, 255))
    describe(folder, healthy=["b"])
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
