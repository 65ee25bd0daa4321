"""Files are whole or not there, and equal content gives equal bytes."""

import itertools
import os
import shutil

import pandas as pd
import pytest

from mvl.errors import MvlError
from mvl.files import (
    absolute_source,
    read_json,
    read_table,
    staging,
    write_json,
    write_table,
    write_text,
    written,
)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), written(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


@pytest.mark.parametrize(
    ("source", "whole"),
    [
        ("path:models/a", "path:/base/models/a"),
        ("gguf:a.gguf", "gguf:/base/a.gguf"),
        ("gguf:/b/a.gguf", "gguf:/b/a.gguf"),
        ("random:config.json", "random:/base/config.json"),
        ('random:{"a": 1}', 'random:{"a": 1}'),
        ("hub:owner/name", "hub:owner/name"),
        ("package:a", "package:a"),
        (None, None),
    ],
)
def test_a_source_that_names_a_file_gets_its_whole_path(source, whole):
    assert absolute_source(source, "/base") == whole


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_equal_tables_give_equal_bytes(tmp_path, name, monkeypatch):
    monkeypatch.setattr("time.time", itertools.count(1_000_000_000, 100).__next__)
    table = pd.DataFrame({"arm": ["000", "111"], "dice": [1 / 3, 0.5]})
    for folder in ("one", "two"):
        write_table(tmp_path / folder / name, table)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    again = pd.read_csv(tmp_path / "one" / name, dtype={"arm": str})
    pd.testing.assert_frame_equal(again, table, check_dtype=False, rtol=1e-8)


def test_a_file_is_as_readable_as_any_other(tmp_path):
    mask = os.umask(0o022)
    try:
        write_text(tmp_path / "text", "x")
    finally:
        os.umask(mask)
    assert (tmp_path / "text").stat().st_mode & 0o777 == 0o644


def test_what_a_killed_process_had_begun_goes_and_what_another_is_doing_stays(tmp_path):
    with staging(tmp_path) as living:
        (living / "half").write_text("x")
        dead = tmp_path / living.name.replace(living.name[-3:], "old")
        shutil.copytree(living, dead)  # nobody holds its lock
        write_text(tmp_path / "text", "x")
        with staging(tmp_path) as other:
            assert {*tmp_path.iterdir()} == {living, other, tmp_path / "text"}
        assert (living / "half").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_what_cannot_be_written_or_read_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MvlError, match="cannot write .*file/inside"):
        write_text(tmp_path / "file" / "inside", "x")
    with pytest.raises(MvlError, match="nothing.json does not exist"):
        read_json(tmp_path / "nothing.json")
    with pytest.raises(MvlError, match="file is not readable JSON"):
        read_json(tmp_path / "file")


def test_names_in_a_table_come_as_they_were_written(tmp_path):
    subjects, cases = ["01", "1", "NA"], ["001", "1e5", "None"]
    path = tmp_path / "cases.csv"
    write_table(path, pd.DataFrame({"subject": subjects, "case": cases, "dice": [0.5, 0.25, 1]}))
    table = read_table(path, ("subject", "case"), ("dice",))
    assert table["subject"].tolist() == subjects and table["case"].tolist() == cases
    assert table.groupby("subject")["dice"].mean().to_dict() == {"01": 0.5, "1": 0.25, "NA": 1.0}
