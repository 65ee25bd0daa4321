"""The readers of foreign files, given anything: a value or a sentence, never something else."""

import gzip
import json
import struct
from collections import Counter
from datetime import timedelta

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from mvl.config import PRESETS, ExperimentConfig
from mvl.data.sources import read_header, read_label, read_volume
from mvl.errors import BlockError, ConfigError, DataError, MvlError
from mvl.files import read_json
from mvl.models.checkpoint import open_checkpoint

#: (reader, "read" or "refused") -> number of examples.
OUTCOMES = Counter()


@pytest.fixture(scope="module", autouse=True)
def _noted(note):
    yield
    for reader in dict.fromkeys(reader for reader, _ in OUTCOMES):
        read, refused = (OUTCOMES[reader, what] for what in ("read", "refused"))
        note("fuzz", reader=reader, examples=read + refused, read=read, refused=refused)


#: The same examples every time, so that a run of the tests fails for a change of the code alone.
bounded = settings(
    max_examples=150,
    deadline=timedelta(seconds=5),
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# --- NIfTI ---------------------------------------------------------------------------------

_SHAPE = (5, 6, 7)


def _sound_nifti():
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(_SHAPE)
    header["vox_offset"] = 352
    voxels = np.arange(np.prod(_SHAPE), dtype="<i2")
    return header.binaryblock + bytes(4) + voxels.tobytes()


_NUMBERS = st.one_of(
    st.integers(-(2**15), 2**15 - 1).map(lambda n: struct.pack("<h", n)),
    st.floats(width=32).map(lambda x: struct.pack("<f", x)),
    st.binary(min_size=1, max_size=8),
)
#: Where a NIfTI header keeps sizes, type, spacing, offset, scaling, affine and magic.
_PLACES = [0, *range(40, 56), *range(68, 124, 2), *range(252, 348, 4)]
_EDITS = st.lists(st.tuples(st.sampled_from(_PLACES), _NUMBERS), max_size=4)


@bounded
@given(edits=_EDITS, keep=st.floats(0, 1), packed=st.booleans(), cut=st.booleans())
def test_a_nifti_file_is_read_or_refused(tmp_path, edits, keep, packed, cut):
    block = bytearray(_sound_nifti())
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
            OUTCOMES["NIfTI", "refused"] += 1
            continue
        OUTCOMES["NIfTI", "read"] += 1
        voxels = result[0] if reader is read_volume else result
        assert voxels.shape == read_header(path).shape and voxels.nbytes < 1 << 20
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


@bounded
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


@bounded
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
def _configurations(draw):
    """The configuration of a preset with up to three values exchanged, taken out or added."""
    model, training = PRESETS[draw(st.sampled_from(sorted(PRESETS)))]
    values = ExperimentConfig(model=model, training=training).to_dict()
    for _ in range(draw(st.integers(0, 3))):
        place = values
        while True:
            key = draw(st.sampled_from([*sorted(place), "new"]))
            inner = place.get(key)
            if not (isinstance(inner, dict) and inner and draw(st.booleans())):
                break
            place = inner
        if draw(st.booleans()):
            place[key] = draw(_JSON)
        else:
            place.pop(key, None)
    return values


@bounded
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


@bounded
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
