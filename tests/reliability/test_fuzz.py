"""The readers of foreign files, given anything: a value or a sentence, never something else."""

import gzip
import json
import struct
from collections import Counter
from functools import partial

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from mvl.blocks.sources import open_checkpoint
from mvl.config import PRESETS, ExperimentConfig
from mvl.data.checks import check_cases
from mvl.data.nifti import read_header, read_label, read_volume
from mvl.data.task_folder import list_cases, task_and_cases
from mvl.errors import MvlError
from tests.data import test_checks as volumes

#: (reader, "read" or "refused") -> number of examples.
OUTCOMES = Counter()


@pytest.fixture(scope="module", autouse=True)
def _noted(note):
    yield
    for reader in dict.fromkeys(reader for reader, _ in OUTCOMES):
        read, refused = (OUTCOMES[reader, what] for what in ("read", "refused"))
        note("fuzz", reader=reader, examples=read + refused, read=read, refused=refused)


def read_or_refused(reader, function, path):
    """What a function returns, or None where it refuses the file by name."""
    try:
        value = function()
    except MvlError as error:
        assert str(path) in str(error)
        OUTCOMES[reader, "refused"] += 1
        return None
    OUTCOMES[reader, "read"] += 1
    return value


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


@st.composite
def _edit(draw, kind):
    """(offset, bytes) that write over a number of a header."""
    dtype, offset = kind.template_dtype.fields[draw(st.sampled_from(_FIELDS))]
    offset += dtype.base.itemsize * draw(st.integers(0, dtype.itemsize // dtype.base.itemsize - 1))
    if dtype.base.kind == "S" or draw(st.booleans()):
        return offset, draw(st.binary(min_size=1, max_size=8))
    # Small numbers change what a header says; those above, whether it can be.
    return offset, np.array(draw(st.integers(-8, 8)), dtype.base).tobytes()


@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
@given(data=st.data(), keep=st.floats(0, 1), packed=st.booleans(), cut=st.booleans())
def test_a_nifti_file_is_read_or_refused(tmp_path, kind, data, keep, packed, cut):
    block, name = bytearray(_sound_nifti(kind)), f"NIfTI-{kind.__name__[5]}"
    edits = data.draw(st.lists(_edit(kind), max_size=4))
    for offset, value in edits:
        block[offset : offset + len(value)] = value
    content = gzip.compress(bytes(block), 1) if packed else bytes(block)
    path = tmp_path / "x.nii"
    path.write_bytes(content[: int(keep * len(content))] if cut else content)
    for reader in (read_volume, read_label):
        result = read_or_refused(name, partial(reader, path), path)
        if result is not None:
            voxels, header = result
            assert voxels.shape == read_header(path).shape == header.shape
            assert voxels.nbytes < 1 << 20
    if not edits and not cut:
        assert read_volume(path)[0].ravel("F").tolist() == [*range(np.prod(_SHAPE))]


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
        inside = whole
        while True:
            added = ["new"] if isinstance(inside, dict) else []
            key = draw(st.sampled_from([*sorted(inside), *added] if added else range(len(inside))))
            inner = inside.get(key) if added else inside[key]
            if not (isinstance(inner, dict | list) and inner and draw(st.booleans())):
                break
            inside = inner
        if draw(st.booleans()) or not (added or len(inside) > 1):
            inside[key] = draw(_JSON)
        elif not added or key in inside:
            del inside[key]
    return whole


@st.composite
def _header(draw):
    """A sound header of a safetensors file, and the bytes of its tensors."""
    header, start = {}, 0
    for number, size in enumerate(draw(st.lists(st.integers(0, 4), max_size=4))):
        stop = start + 4 * size
        header[str(number)] = {"dtype": "F32", "shape": [size], "data_offsets": [start, stop]}
        start = stop
    return {"header": header, "size": start}


@given(
    sound=_header(),
    changed=st.none() | _changed(_header()) | st.binary(max_size=40),
    lie=st.just(0) | st.integers(0, 2**64),
    cut=st.just(0) | st.integers(0, 40),
)
def test_a_safetensors_header_is_read_or_refused(tmp_path, sound, changed, lie, cut):
    header, size = sound["header"], sound["size"]
    if isinstance(changed, dict):
        header, size = changed.get("header"), changed.get("size")
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    data = bytes(size) if type(size) is int and 0 <= size < 99 else b""
    whole = struct.pack("<Q", (len(text) + lie) % 2**64) + text + data
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole[: len(whole) - cut])
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(f"path:{tmp_path}")

    def read():
        return dict(checkpoint._entries(checkpoint.names()))

    entries = read_or_refused("safetensors header", read, path)
    if changed is None and not lie:
        assert (entries is None) == bool(cut) and (cut or set(entries) == set(header))
    if entries is not None:
        # What is let in, the reference implementation lets in, too.
        with safe_open(path, "np") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        assert found == {name: entry.shape for name, entry in entries.items()}


_PRESETS = [ExperimentConfig(model=model, training=plan) for model, plan in PRESETS.values()]
_CONFIGURATIONS = st.sampled_from([config.to_dict() for config in _PRESETS])


@given(values=_changed(_CONFIGURATIONS) | _JSON)
def test_a_configuration_is_read_or_refused(values):
    config = read_or_refused("configuration", lambda: ExperimentConfig.from_dict(values), "")
    if config is None:
        return
    again = json.loads(json.dumps(config.to_dict()))
    assert json.dumps(ExperimentConfig.from_dict(again).to_dict()) == json.dumps(again)


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
    listed = read_or_refused("dataset.json", lambda: task_and_cases(folder), path)
    if listed is None:
        return
    task, cases = listed
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
    cases = read_or_refused("subjects.csv", lambda: list_cases(folder), path)
    if cases is not None:
        assert tuple(case.name for case in cases) == _NAMES
        assert all(case.subject and case.subject == case.subject.strip() for case in cases)
