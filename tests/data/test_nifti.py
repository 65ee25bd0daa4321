"""Where a NIfTI's voxels lie and what they hold: against nibabel, SimpleITK and values by hand."""

import gzip
import itertools
import tracemalloc
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from nibabel.processing import resample_to_output

from mvl.config import DataConfig
from mvl.data import nifti
from mvl.data.checks import check_cases
from mvl.data.nifti import read_header, read_label, read_volume
from mvl.data.preparation import Preparation
from mvl.data.task_folder import Case
from mvl.data.tasks import Task
from mvl.errors import DataError
from mvl.experiment.evaluation import evaluate
from mvl.experiment.inference import Predictor
from mvl.experiment.prediction import predict_file

AFFINE = np.array([[0.5, 0, 0, -3], [0, 0.8, 0, 2], [0, 0, 2, 1], [0, 0, 0, 1]])
EDGES, SHAPE = (0.5, 0.8, 2), (24, 9, 8)
TASK = Task("Other", "MRI", ("MRI",), {1: "slab"}, tolerance_mm=1.0)


def moved(affine=AFFINE, x=40.0):
    affine = affine.copy()
    affine[0, 3] += x
    return affine


def save(path, array, sform=AFFINE, qform=AFFINE, codes=(1, 1), unit=2, image=None, **fields):
    """Write a .nii or .nii.gz field by field, also such as nibabel would not write.

    The forms are in the unit; codes are the sform's and the qform's; image is nibabel's class.
    """
    volume = (image or nibabel.Nifti1Image)(array, AFFINE)
    volume.set_sform(sform)
    volume.set_qform(qform)
    header = volume.header
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["sform_code"], header["qform_code"] = codes
    header["xyzt_units"] = unit
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + bytes(4) + array.tobytes("F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def pixdim(*edges, qfac=1):
    return [qfac, *edges, 0, 0, 0, 0]


MICROMETRES, METRES = (np.diag([unit, unit, unit, 1]) @ AFFINE for unit in (1000, 0.001))
#: One axis tilted by one degree.
TILTED = AFFINE.copy()
TILTED[1, 2] = 2 * np.tan(np.deg2rad(1))
#: 150 degrees about x: a quaternion with b = 0.966, as many digits as a text file has.
TURN = AFFINE.copy()
TURN[:3, :3] = nibabel.quaternions.quat2mat([0, 0.8, 0.6, 0]) @ AFFINE[:3, :3]

#: What is read: voxels in one place by every program, or in two that differ by a rigid motion.
ACCEPTED = {
    "both forms": {},
    "sform alone": {"codes": (2, 0)},
    "qform alone": {"codes": (0, 1)},
    "micrometres": {"sform": MICROMETRES, "qform": MICROMETRES, "unit": 3},
    "micrometres by the qform alone": {"qform": MICROMETRES, "codes": (0, 1), "unit": 3 + 8},
    "metres": {"sform": METRES, "qform": METRES, "unit": 1},
    "unknown unit": {"unit": 0},
    "milliseconds": {"unit": 2 + 16},
    "sform moved by a registration": {"sform": moved(), "codes": (2, 1)},
    "qform moved": {"qform": moved(), "codes": (1, 2)},
    "moved, equal codes": {"sform": moved(), "codes": (1, 1)},
    "qfac of 0": {"codes": (0, 1), "pixdim": pixdim(0.5, 0.8, 2, qfac=0)},
    "quaternion a rounding above 1": {
        "qform": TURN, "codes": (0, 1), "quatern_b": 0.8001, "quatern_c": 0.6001},
    "pixdim of two digits": {"codes": (1, 0), "pixdim": pixdim(0.502, 0.8, 2)},
    "oblique, rounded to three digits": {"sform": np.round(TURN, 3), "codes": (1, 0)},
    "version 2": {"image": nibabel.Nifti2Image},
    "in a template's space": {"codes": (0, 4)},
}  # fmt: skip


def itk_place(path):
    """(4, 4) affine in millimetres, to RAS, and the size that ITK reads."""
    image = SimpleITK.ReadImage(str(path))
    axes = image.GetDimension()
    place = np.eye(4)
    place[:3, :3] = np.reshape(image.GetDirection(), (axes, axes))[:3, :3]
    place[:3, :3] *= image.GetSpacing()[:3]
    place[:3, 3] = image.GetOrigin()[:3]
    return np.diag([-1, -1, 1, 1]) @ place, image.GetSize()[:3]


def nibabel_place(path):
    volume = nibabel.load(path)
    return volume.affine, volume.shape[:3]


class Bright(torch.nn.Linear):
    """Foreground is what is brighter than halfway from dark to bright; it has some parameter."""

    def forward(self, volume):
        return volume - (volume.amin() + volume.amax()) / 2


#: What one of the readers does not read at all.
UNREAD = {(itk_place, "version 2"), (nibabel_place, "quaternion a rounding above 1")}


def slab(start):
    array = np.zeros(SHAPE, np.uint8)
    array[start : start + 2, 1:-1, 1:-1] = 1
    return array


#: An image whose slab from 9 on is bright.
BRIGHT = (100 + 100 * slab(9) + np.arange(np.prod(SHAPE)).reshape(SHAPE) % 9).astype(np.int16)
PREPARATION = Preparation(TASK, DataConfig(grid=(32, 32, 32)))


def faults_of(image, label):
    """The faults of a task of one case."""
    task = replace(TASK, name=image.parent.name)
    return check_cases(task, [Case("i", "i", image, label)], progress=False).faults


def predicted(image, path, preparation=PREPARATION):
    predict_file(image, path, Predictor(Bright(1, 1), preparation))
    return path


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_read_lies_and_measures_right(tmp_path, name):
    how = ACCEPTED[name]
    image = save(tmp_path / "i.nii.gz", BRIGHT, **how)
    label, header = save(tmp_path / "l.nii", slab(6), **how), read_header(image)
    assert header.spacing == pytest.approx(EDGES, rel=1e-3)  # mm

    written = predicted(image, tmp_path / "out.nii.gz")
    for place in (itk_place, nibabel_place):
        if (place, name) not in UNREAD:
            (affine, shape), (wanted, whole) = place(written), place(image)
            assert np.allclose(affine, wanted, atol=1e-4) and shape == whole
    segmentation = nibabel.load(written)
    assert np.allclose(read_header(written).affine, header.affine, atol=1e-4)
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert segmentation.header[field] == header.fields[field]
    assert np.array_equal(np.asarray(segmentation.dataobj), slab(9))

    # The bright slab lies three voxels of 0.5 mm from the labelled one.
    case = Case("a", "a", image, label)
    row = evaluate(Predictor(Bright(1, 1), PREPARATION), [case], show=False).iloc[0]
    assert row["hd95_mm"] == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_image_and_segmentation_coincide_in_all_48_orders_of_the_axes(tmp_path, order):
    every = itertools.cycle([(1, 0), (0, 1), (2, 1)])
    for flips, codes in zip(itertools.product((1, -1), repeat=3), every, strict=False):
        turn = np.zeros((4, 4))
        turn[3, 3] = 1
        turn[list(order), range(3)] = flips
        affine = AFFINE @ turn
        array = (100 + 100 * slab(9).astype(np.int16)).transpose(order)
        sform = moved(affine) if codes == (2, 1) else affine
        image = save(tmp_path / "i.nii", array, sform, affine, codes)
        written = predicted(image, tmp_path / "out.nii")
        for place in (itk_place, nibabel_place):
            assert np.allclose(place(written)[0], place(image)[0], atol=1e-4)
        assert np.array_equal(np.asarray(nibabel.load(written).dataobj), array > 150)


def test_a_vector_volume_of_itk_is_read_and_segmented(tmp_path):
    array = np.random.default_rng(0).random((6, 5, 4, 2)).astype(np.float32)  # z, y, x, channel
    image = SimpleITK.GetImageFromArray(array, isVector=True)
    image.SetSpacing((0.5, 0.8, 2))
    path = tmp_path / "i.nii.gz"
    SimpleITK.WriteImage(image, str(path))
    assert nibabel.load(path).shape == (4, 5, 6, 1, 2)
    np.testing.assert_array_equal(read_volume(path)[0], array.transpose(2, 1, 0, 3))
    task = replace(TASK, channels=("T1", "T2"))
    preparation = Preparation(task, DataConfig(grid=(8, 8, 8), channels="first"))
    written = predicted(path, tmp_path / "out.nii.gz", preparation)
    assert np.allclose(itk_place(written)[0], itk_place(path)[0])
    assert itk_place(written)[1] == (4, 5, 6)


# --- what is refused, and what its remedy makes of it --------------------------------------


def turned(*signs):
    return AFFINE @ np.diag([*signs, 1])


SHEARED = AFFINE.copy()
SHEARED[1, 2] = 2 * np.tan(np.deg2rad(20))


def to_right_angles(volume):
    return resample_to_output(volume, EDGES)


def positive(volume):  # nibabel takes the absolute values itself
    return nibabel.Nifti1Image(np.asarray(volume.dataobj), volume.affine)


def scale_sform(volume):
    edges = volume.header["pixdim"][1:4] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    volume.set_sform(volume.affine @ np.diag([*edges, 1]), 1)


def in_unit(code):
    return lambda volume: volume.header.__setitem__("xyzt_units", code)


def orient(volume):
    volume.set_sform(AFFINE, 1)


def take_sform(volume):
    volume.set_qform(volume.get_sform(), 1)


def take_qform(volume):
    volume.set_sform(volume.get_qform(), 1)


#: name -> (how the file is made, a telling word, [(remedy, edges by it in mm)])
REFUSED = {
    "a tilt of one degree": ({"sform": TILTED, "codes": (1, 0)}, "meet at 89.0 degrees", []),
    "pixdim off by 2 %": (
        {"codes": (1, 0), "pixdim": pixdim(0.51, 0.8, 2)}, "0.51 x 0.8 x 2 mm by pixdim", []),
    "no orientation": ({"codes": (0, 0)}, "no orientation", [(orient, EDGES)]),
    "pixdim against the sform": (
        {"codes": (1, 0), "pixdim": pixdim(1, 1, 2)},
        "0.5 x 0.8 x 2 mm by the sform, of 1 x 1 x 2 mm by pixdim",
        [(take_sform, EDGES), (scale_sform, (1, 1, 2))]),
    "a sform of other edges than the qform": (
        {"sform": np.diag([2, 2, 2, 1]) @ AFFINE},
        "1 x 1.6 x 4 mm by the sform, of 0.5 x 0.8 x 2",
        [(take_sform, (1, 1.6, 4)), (take_qform, EDGES)]),
    "gantry tilt": ({"sform": SHEARED, "codes": (1, 0)}, "sheared", [(to_right_angles, EDGES)]),
    "gantry tilt in both": (
        {"sform": SHEARED, "qform": SHEARED}, "meet at 70.0 degrees", [(to_right_angles, EDGES)]),
    "mirrored forms": (
        {"sform": turned(-1, 1, 1)}, "LAS by the sform, to RAS by the qform",
        [(take_sform, EDGES), (take_qform, EDGES)]),
    "forms turned by half a turn": (
        {"sform": turned(-1, -1, 1)}, "LPS by the sform",
        [(take_sform, EDGES), (take_qform, EDGES)]),
    "a quaternion of norm 1.1": ({"codes": (0, 1), "quatern_b": 1.1}, "not a rotation", []),
    "qfac of 0.5": (
        {"codes": (0, 1), "pixdim": pixdim(0.5, 0.8, 2, qfac=0.5)}, "not a rotation", []),
    "a unit that is none": ({"unit": 5}, "unit of length (code 5)", [(in_unit(2), EDGES)]),
    "micrometres without a unit": (
        {"sform": MICROMETRES, "qform": MICROMETRES, "unit": 0}, "500 x 800 x 2000 mm",
        [(in_unit(3), EDGES)]),
    "metres called millimetres": (
        {"sform": METRES, "qform": METRES}, "0.0005 x 0.0008 x 0.002 mm", [(in_unit(1), EDGES)]),
    "an edge below 0": (
        {"codes": (1, 0), "pixdim": pixdim(0.5, -0.8, 2)}, "spacing", [(positive, EDGES)]),
    "NaN in the sform": ({"srow_x": [np.nan, 0, 0, 0]}, "not invertible", []),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_uncertain_is_refused_and_its_remedy_holds(tmp_path, name):
    how, word, remedies = REFUSED[name]
    array = 100 + slab(9).astype(np.float32)
    path = save(tmp_path / "i.nii.gz", array, **how)
    label = save(tmp_path / "l.nii.gz", slab(9))
    (fault,) = faults_of(path, label)
    assert word in fault.fault and fault.case == "i"
    with pytest.raises(DataError) as caught:
        predicted(path, tmp_path / "out.nii.gz")
    assert word in str(caught.value) and path.name in str(caught.value)
    assert not (tmp_path / "out.nii.gz").exists()
    for remedy, edges in remedies:
        mended, volume = tmp_path / "mended.nii.gz", nibabel.load(path)
        nibabel.save(remedy(volume) or volume, mended)  # most change it in place
        header = read_header(mended)
        assert header.spacing == pytest.approx(edges, rel=1e-4)
        if remedy is to_right_angles:  # of image and label alike
            nibabel.save(resample_to_output(nibabel.load(path), edges, order=0), label)
            resampled = read_header(label)
            assert header.shape == resampled.shape
            assert nifti.place_fault(header.forms, resampled.forms, header.shape) is None
        else:
            np.testing.assert_array_equal(read_volume(mended)[0], array)


# --- image and label -----------------------------------------------------------------------

OTHER = {"sform": moved(), "codes": (2, 1)}
#: name -> (image, label, None or a telling word)
PAIRS = {
    "the label drawn on the scan, by the qform alone": (OTHER, {"codes": (0, 1)}, None),
    "the label saved by nibabel, which takes the sform": (
        OTHER, {"sform": moved(), "codes": (2, 0)}, None),
    "the label saved by ITK, which takes the qform for both": (OTHER, {}, None),
    "the header copied": (OTHER, OTHER, None),
    "the image moved back, the label not": ({}, OTHER, None),
    "a fifth of a voxel": ({}, {"sform": moved(x=0.1), "qform": moved(x=0.1)}, "0.1 mm apart"),
    "rounding": ({}, {"sform": moved(x=1e-3), "qform": moved(x=1e-3)}, None),
    "the same sform, other scans": (
        OTHER, {"sform": moved(), "qform": moved(x=9), "codes": (2, 1)}, "9 mm apart"),
    "the same scan, other registrations": (
        OTHER, {"sform": moved(x=55), "codes": (2, 1)}, "15 mm apart"),
    "one voxel": ({}, {"sform": moved(x=0.5), "qform": moved(x=0.5)}, "0.5 mm apart"),
    "elsewhere": (OTHER, {"codes": (0, 1), "qform": moved(x=10)}, "10 mm apart"),
    "mirrored": ({}, {"sform": turned(-1, 1, 1), "qform": turned(-1, 1, 1)}, "23 mm apart"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_corresponds_where_its_places_do(tmp_path, name):
    how, label_how, word = PAIRS[name]
    image = save(tmp_path / "i.nii.gz", BRIGHT, **how)
    label = save(tmp_path / "l.nii.gz", slab(9), **label_how)
    if word is None:
        assert faults_of(image, label) == []
        (volume,) = PREPARATION.load([Case("i", "i", image, label)], progress=False)
        bright = volume["image"].as_tensor() > 1
        assert torch.equal(bright, volume["label"] > 0) and bright.sum() == slab(9).sum()
        return
    (fault,) = faults_of(image, label)
    assert word in fault.fault
    copied, voxels = nibabel.load(image), np.asarray(nibabel.load(label).dataobj)
    nibabel.save(nibabel.Nifti1Image(voxels, None, copied.header), label)
    assert faults_of(image, label) == []


# --- bytes ---------------------------------------------------------------------------------


def test_bytes_behind_the_gzip_stream_are_left(tmp_path):
    for after in (b"", bytes(512), b"garbage" * 9999, b"\0", b"\x1f"):
        path = save(tmp_path / "x.nii.gz", slab(9))
        path.write_bytes(path.read_bytes() + after)
        itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        np.testing.assert_array_equal(itk.T, slab(9))
        np.testing.assert_array_equal(read_label(path)[0], slab(9))


def test_members_and_blocks_of_a_gzip_file_are_one_stream(tmp_path):
    array = np.random.default_rng(0).normal(size=(90, 80, 70)).astype(np.float32)
    path = save(tmp_path / "x.nii", array)
    content = path.read_bytes()
    parts = [content[start : start + 99_999] for start in range(0, len(content), 99_999)]
    packed = tmp_path / "x.nii.gz"
    packed.write_bytes(b"".join(map(gzip.compress, parts)))
    np.testing.assert_array_equal(read_volume(packed)[0], array)
    damaged = bytearray(packed.read_bytes())
    damaged[-30] ^= 0xFF  # in the last member, behind the first's checksum
    packed.write_bytes(damaged)
    with pytest.raises(DataError, match="gzip"):
        read_volume(packed)


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s12--4d7a.nii.gz\n", "git annex get"),
        (".git/annex/objects/a/b/SHA256E-s1", "git annex get"),  # a link that leads nowhere
        ("away/y.nii.gz", "away/y.nii.gz"),
    ],
)
def test_a_pointer_says_how_to_get_the_file(tmp_path, content, remedy):
    path = tmp_path / "x.nii.gz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.symlink_to(content)
    for reader in (read_header, read_volume):
        with pytest.raises(DataError, match=remedy):
            reader(path)


# --- voxels --------------------------------------------------------------------------------


def test_scaling_is_done_in_double_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "_BLOCK", 100)  # several blocks, the last one smaller
    values = np.resize(np.arange(61, 208), SHAPE)  # 147 grey values; float32 has steps of 256
    stored = (values + 2**31).astype(np.uint32)
    path = save(tmp_path / "x.nii", stored, scl_slope=1, scl_inter=-(2.0**31))
    np.testing.assert_array_equal(nibabel.load(path).get_fdata(), values)
    np.testing.assert_array_equal(read_volume(path)[0], values)
    np.testing.assert_array_equal(read_label(path)[0], values)


@pytest.mark.parametrize(
    ("array", "fields"),
    [
        (np.resize(np.arange(2**31, 2**31 + 100), SHAPE).astype(np.uint32), {}),
        (np.resize(np.arange(2**25, 2**25 + 100), SHAPE).astype(np.int32), {}),
        (np.resize([0, *range(2**31, 2**31 + 100)], SHAPE).astype(np.float64), {}),  # padded by 0
        (np.resize(np.arange(100), SHAPE).astype(np.int16), {"scl_inter": -(2.0**31)}),
    ],
)
def test_intensities_that_float32_does_not_tell_apart_are_refused(tmp_path, array, fields):
    path = save(tmp_path / "x.nii", array, **fields)
    with pytest.raises(DataError, match="float32 tells") as caught:
        read_volume(path)
    assert "10" in str(caught.value)  # 100 grey values, or 101
    values = nibabel.load(path).get_fdata()  # the remedy: less what is common to them all
    low = np.unique(values)[1]
    mended = save(tmp_path / "y.nii", (values - low).astype(np.float32))
    assert len(np.unique(read_volume(mended)[0])) == len(np.unique(values))


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).integers(0, 2**31, SHAPE).astype(np.int32),
        np.resize([100.0, 100 + 1e-13, 100 - 1e-13, 200, 200 + 1e-13], SHAPE),
        np.resize([1e9, 0, 1, 2, 3], SHAPE).astype(np.int32),
        np.full(SHAPE, 2.0**40),
    ],
)
def test_rounding_that_tells_all_apart_is_no_fault(tmp_path, array):
    voxels, _ = read_volume(save(tmp_path / "x.nii", array))
    np.testing.assert_array_equal(voxels, array.astype(np.float32))


@pytest.mark.parametrize("slope", [0, np.nan])
def test_a_slope_of_0_or_none_scales_nothing(tmp_path, slope):
    path = save(tmp_path / "x.nii", slab(9), scl_slope=slope, scl_inter=7)
    np.testing.assert_array_equal(read_volume(path)[0], slab(9))
    path = save(tmp_path / "o.nii", slab(9), vox_offset=0)  # as some writers leave it
    np.testing.assert_array_equal(read_volume(path)[0], slab(9))


def test_labels_within_rounding_are_whole_numbers(tmp_path):
    path = save(tmp_path / "x.nii", slab(9) * np.float32(1.00002))
    np.testing.assert_array_equal(read_label(path)[0], slab(9))
    scaled = save(tmp_path / "y.nii", slab(9) * np.uint8(255), scl_slope=1 / 255)
    np.testing.assert_array_equal(read_label(scaled)[0], slab(9))
    with pytest.raises(DataError, match=r"such as 1\.01; correct") as caught:
        read_label(save(tmp_path / "z.nii", slab(9) * np.float32(1.01)))
    assert "swapped" not in str(caught.value)
    noise = np.random.default_rng(0).normal(size=SHAPE)
    with pytest.raises(DataError, match="swapped"):
        read_label(save(tmp_path / "n.nii", noise))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64", ">i2", ">f4"])
def test_volumes_agree_with_nibabel(tmp_path, suffix, dtype):
    array = np.random.default_rng(0).integers(0, 200, (5, 7, 3)).astype(dtype)
    volume = nibabel.Nifti1Image(array, TURN[[1, 0, 2, 3]])
    volume.set_data_dtype(dtype)
    path = tmp_path / f"x{suffix}"
    nibabel.save(volume, path)
    expected, (voxels, header) = nibabel.load(path), read_volume(path)
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels, expected.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(header.affine, expected.affine)
    assert header.spacing == pytest.approx(nibabel.affines.voxel_sizes(expected.affine).tolist())


def test_scaling_extensions_and_version_2_are_read_as_nibabel_reads_them(tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5, 1)
    volume = nibabel.Nifti2Image(array, AFFINE)
    volume.header.set_slope_inter(2.5, -1024)
    volume.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"hello"))
    path = tmp_path / "x.nii.gz"
    nibabel.save(volume, path)
    expected = nibabel.load(path).get_fdata()[..., 0]  # the fourth axis, of one voxel, is left out
    np.testing.assert_allclose(read_volume(path)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(("lowest", "dtype"), [(0, np.uint8), (-1, np.int16)])
def test_float_labels_of_whole_numbers_become_small_integers(tmp_path, lowest, dtype):
    array = np.full((4, 5, 6), lowest, np.float32)
    array[1:3] = 2
    label, _ = read_label(save(tmp_path / "x.nii.gz", array))
    assert label.dtype == dtype
    np.testing.assert_array_equal(label, array)


@pytest.mark.parametrize("reader", [read_volume, read_label])
def test_no_reader_holds_two_copies_of_a_float64_volume(tmp_path, reader):
    array = np.zeros((160, 160, 120))
    array[20:30] = 3
    path = save(tmp_path / "double.nii.gz", array)
    tracemalloc.start()
    reader(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.8 * array.nbytes
