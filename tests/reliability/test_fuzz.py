"""The readers of foreign files, given anything: a value or a sentence, never something else.

How many examples there are, and whether they are the same every time, conftest.py says.
"""

import gzip
import json
import struct
from collections import Counter

import nibabel
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from mvl.blocks.sources import open_checkpoint
from mvl.config import PRESETS, ExperimentConfig
from mvl.data.checks import check_cases
from mvl.data.nifti import read_header, read_label, read_volume
from mvl.data.task_folder import list_cases
from mvl.data.tasks import read_task
from mvl.errors import BlockError, ConfigError, DataError, MvlError
from mvl.files import read_json
from tests.data import test_checks as volumes

#: (reader, "read" or "refused") -> number of examples.
OUTCOMES = Counter()


@pytest.fixture(scope="module", autouse=True)
def _noted(note):
    yield
    for reader in dict.fromkeys(reader for reader, _ in OUTCOMES):
        read, refused = (OUTCOMES[reader, what] for what in ("read", "refused"))
        note("fuzz", reader=reader, examples=read + refused, read=read, refused=refused)


# --- NIfTI ---------------------------------------------------------------------------------

_SHAPE = (5, 6, 7)


def _sound_nifti(kind):
    header = kind()
    header.set_data_dtype(np.int16)
    header.set_data_shape(_SHAPE)
    header["vox_offset"], header["qform_code"] = header.single_vox_offset, 1
    voxels = np.arange(np.prod(_SHAPE), dtype="<i2")
    return header.binaryblock + bytes(4) + voxels.tobytes()


#: Fields of a NIfTI header that say where and what the voxels are.
_FIELDS = (
    *("sizeof_hdr", "magic", "datatype", "bitpix", "dim", "pixdim", "vox_offset", "scl_slope"),
    *("scl_inter", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def _edits(kind):
    """Up to four (offset, bytes) that write numbers, of the field's own type or any, into one."""
    fields = kind.template_dtype.fields

    @st.composite
    def edit(draw):
        dtype, offset = fields[draw(st.sampled_from(_FIELDS))]
        base, count = dtype.base, int(np.prod(dtype.shape))
        offset += base.itemsize * draw(st.integers(0, count - 1))
        if base.kind == "S" or draw(st.booleans()):
            return offset, draw(st.binary(min_size=1, max_size=8))
        bits = 8 * base.itemsize
        # Small numbers change what a header says, huge ones whether it can be.
        whole = st.integers(-8, 8) | st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        value = draw(whole if base.kind == "i" else st.floats(width=bits))
        return offset, np.array(value, base).tobytes()

    return st.lists(edit(), max_size=4)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
@given(data=st.data(), keep=st.floats(0, 1), packed=st.booleans(), cut=st.booleans())
def test_a_nifti_file_is_read_or_refused(tmp_path, kind, data, keep, packed, cut):
    block, name = bytearray(_sound_nifti(kind)), f"NIfTI-{kind.__name__[5]}"
    edits = data.draw(_edits(kind))
    for offset, value in edits:
        block[offset : offset + len(value)] = value
    content = gzip.compress(bytes(block), 1) if packed else bytes(block)
    path = tmp_path / "x.nii"
    path.write_bytes(content[: int(keep * len(content))] if cut else content)
    for reader in (read_volume, read_label):
        try:
            result = reader(path)
        except DataError as error:
            assert str(path) in str(error)
            OUTCOMES[name, "refused"] += 1
            continue
        OUTCOMES[name, "read"] += 1
        voxels, header = result
        assert voxels.shape == read_header(path).shape == header.shape
        assert voxels.nbytes < 1 << 20
    if not edits and not cut:
        np.testing.assert_array_equal(read_volume(path)[0].ravel("F"), np.arange(np.prod(_SHAPE)))


# --- safetensors' headers ------------------------------------------------------------------

_COUNTS = st.one_of(st.integers(0, 24), st.integers(-(2**70), 2**70), st.none(), st.floats())
_CLAIMS = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F64", "X", None, 4]),
            "shape": st.lists(_COUNTS, max_size=3),
            "data_offsets": st.lists(_COUNTS, min_size=1, max_size=3),
        }
    ),
    st.none(),
    st.integers(),
    st.text(max_size=3),
)
_HEADERS = st.one_of(
    st.dictionaries(st.text(max_size=3), _CLAIMS, max_size=3).map(json.dumps).map(str.encode),
    st.binary(max_size=40),
)


@given(header=_HEADERS, lie=st.just(0) | st.integers(0, 2**64), data=st.binary(max_size=24))
def test_a_safetensors_header_is_read_or_refused(tmp_path, header, lie, data):
    length = (len(header) + lie) % 2**64
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header + data)
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(f"path:{tmp_path}")
    try:
        entries = checkpoint.entries(checkpoint.names())
    except BlockError as error:
        assert str(path) in str(error)
        OUTCOMES["safetensors header", "refused"] += 1
        return
    OUTCOMES["safetensors header", "read"] += 1
    # What is let in, the reference implementation lets in, too.
    with safe_open(path, "np") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert found == {name: entry.shape for name, entry in entries.items()}


@given(sizes=st.lists(st.integers(0, 4), max_size=4), cut=st.integers(0, 40))
def test_sound_headers_are_read_and_cut_ones_are_not(tmp_path, sizes, cut):
    header, start = {}, 0
    for number, size in enumerate(sizes):
        stop = start + 4 * size
        header[str(number)] = {"dtype": "F32", "shape": [size], "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    whole = struct.pack("<Q", len(text)) + text + bytes(start)
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole[: len(whole) - cut])
    (tmp_path / "config.json").write_text("{}")
    if cut:
        with pytest.raises(BlockError, match="model.safetensors"):
            open_checkpoint(f"path:{tmp_path}").names()
        with pytest.raises(SafetensorError), safe_open(path, "np"):
            pass
        OUTCOMES["safetensors header", "refused"] += 1
    else:
        assert set(open_checkpoint(f"path:{tmp_path}").names()) == set(header)
        OUTCOMES["safetensors header", "read"] += 1


# --- configurations ------------------------------------------------------------------------

_TEXT = st.text(max_size=4)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def _changed(draw, sound):
    """A sound JSON object with up to three values exchanged, taken out or added, at any depth."""
    whole = json.loads(json.dumps(draw(sound)))
    for _ in range(draw(st.integers(0, 3))):
        place = whole
        while True:
            added = ["new"] if isinstance(place, dict) else []
            key = draw(st.sampled_from([*sorted(place), *added] if added else range(len(place))))
            inner = place.get(key) if added else place[key]
            if not (isinstance(inner, dict | list) and inner and draw(st.booleans())):
                break
            place = inner
        if draw(st.booleans()) or not (added or len(place) > 1):
            place[key] = draw(_JSON)
        elif not added or key in place:
            del place[key]
    return whole


def _configurations():
    """The configuration of a preset, changed."""
    configs = [ExperimentConfig(model=model, training=plan) for model, plan in PRESETS.values()]
    return _changed(st.sampled_from([config.to_dict() for config in configs]))


@given(values=_configurations() | _JSON)
def test_a_configuration_is_read_or_refused(values):
    try:
        config = ExperimentConfig.from_dict(values)
    except ConfigError as error:
        assert str(error)
        OUTCOMES["configuration", "refused"] += 1
        return
    OUTCOMES["configuration", "read"] += 1
    again = json.loads(json.dumps(config.to_dict()))
    assert json.dumps(ExperimentConfig.from_dict(again).to_dict()) == json.dumps(again)


# --- a task's description ------------------------------------------------------------------

_NAMES = ("a", "b")
_SOUND = [f"imagesTr/{name}.nii.gz" for name in _NAMES]
_ODD = ["../x.nii.gz", "/etc/passwd", "imagesTr/out.nii.gz", "imagesTr/c.nii.gz", "imagesTr", ""]


def _description(images):
    return {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "anterior", "2": "posterior"},
        "tolerance_mm": 1.0,
        "training": [
            {"image": image, "label": f"labelsTr/{name}.nii.gz"}
            for image, name in zip(images, _NAMES, strict=True)
        ],
    }


_IMAGES = st.just(_SOUND) | st.tuples(*[st.sampled_from(_SOUND + _ODD)] * 2)


@given(description=_changed(_IMAGES.map(_description)))
def test_a_dataset_json_is_read_or_refused(tmp_path, description):
    folder = tmp_path / "task"
    if not folder.exists():
        volumes.make_task(folder)
        (folder / "imagesTr/out.nii.gz").symlink_to("/etc/passwd")
    path = folder / "dataset.json"
    path.write_text(json.dumps(description))
    try:
        task, cases = read_task(folder), list_cases(folder)
    except DataError as error:
        assert str(path) in str(error)
        OUTCOMES["dataset.json", "refused"] += 1
        return
    OUTCOMES["dataset.json", "read"] += 1
    assert task.channels and all(type(n) is int and n > 0 for n in task.labels)
    assert len({case.name for case in cases}) == len(cases) > 0
    for case in cases:
        for file in filter(None, (case.image, case.label)):
            assert file.resolve().is_relative_to(folder.resolve())
    result = check_cases(task, cases, progress=False)
    assert all(fault.fault and fault.remedy for fault in result.faults)
    if description == _description(_SOUND):
        assert tuple(case.name for case in cases) == _NAMES and not result.faults


_CELLS = st.sampled_from(["p", " p ", "q\t", "a", "", " ", '"', "\0", "\r"]) | _TEXT


@given(subjects=st.tuples(_CELLS, _CELLS), more=st.lists(_CELLS, max_size=3), junk=st.binary())
def test_a_subjects_csv_is_read_or_refused(tmp_path, subjects, more, junk):
    """A subject for each case, perhaps a row more, perhaps bytes that are no text."""
    rows = [("case", "subject"), *zip(_NAMES, subjects, strict=True), more]
    text = "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass")
    content = text + (junk if more else b"")
    folder = tmp_path / "task"
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(_description(_SOUND)))
    path = folder / "subjects.csv"
    path.write_bytes(content)
    try:
        cases = list_cases(folder)
    except DataError as error:
        assert str(path) in str(error)
        OUTCOMES["subjects.csv", "refused"] += 1
        return
    OUTCOMES["subjects.csv", "read"] += 1
    assert tuple(case.name for case in cases) == _NAMES
    assert all(case.subject and case.subject == case.subject.strip() for case in cases)


# --- any JSON file -------------------------------------------------------------------------


@given(content=st.binary(max_size=60) | _JSON.map(json.dumps).map(str.encode))
def test_a_json_file_is_read_or_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    try:
        value = read_json(path)
    except MvlError as error:
        assert str(path) in str(error)
        OUTCOMES["JSON file", "refused"] += 1
        return
    OUTCOMES["JSON file", "read"] += 1
    assume(value == value)  # not NaN
    with pytest.raises(MvlError, match="lacks 'no such key'"):
        read_json(path, "no such key")
