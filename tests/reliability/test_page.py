"""The page of docs/ says what the record says; results name their version."""

import json

import pandas as pd
import pytest

from mvl.config import PROTOCOL_VERSION
from mvl.files import REPOSITORY
from mvl.models.folder import FORMAT_VERSION
from mvl.study.reference import BEST, REFERENCE
from scripts import reliability
from tests.reliability.stages import STAGES
from tests.reliability.test_kills import FEW, MANY


def test_the_page_is_made_of_the_record():
    record = json.loads(reliability.RECORD.read_text(encoding="utf-8"))
    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.page(record)


def test_each_meaning_is_held_by_a_test():
    for row in reliability.meanings():
        file, _, name = row["test"].partition("::")
        assert f"\ndef {name}(" in (REPOSITORY / file).read_text(encoding="utf-8"), row["test"]


def test_the_committed_record_is_of_the_slow_tier():
    """Every stage was killed as often as in that tier, some kills met it, and all ended well."""
    record = json.loads(reliability.RECORD.read_text(encoding="utf-8"))
    kills = record["notes"]["kills"]
    assert {(n["stage"], n["kills"]) for n in kills} == {
        (s, k) for s in STAGES for k in (FEW, MANY)
    }
    assert all(n["equal"] == n["kills"] >= n["interrupted"] > 0 for n in kills)
    said = "of `pytest tests/reliability --slow --record`"
    assert record["slow"] and said in reliability.PAGE.read_text(encoding="utf-8")


def test_a_record_without_a_gpu_says_that_none_was_tried():
    record = json.loads(reliability.RECORD.read_text(encoding="utf-8"))
    there = [{"what": reliability.ON_GPU, "said": "out of memory"}]
    for memory, tried in (([{"what": "a step", "said": "x"}], False), (there, True)):
        notes = record["notes"] | {"memory": memory}
        assert ("not tried" in reliability.page(record | {"notes": notes})) != tried


def test_a_record_that_is_not_whole_is_refused():
    notes = {section: [{}] for section in reliability.SECTIONS[1:]}
    with pytest.raises(ValueError, match="nothing on kills"):
        reliability.page({"version": reliability.VERSION, "notes": notes})
    with pytest.raises(ValueError, match="version 0"):
        reliability.page({"version": 0})


def test_results_name_their_version(given):
    stored = json.loads((given.trained / "config.json").read_text())
    assert stored["protocol_version"] == PROTOCOL_VERSION
    assert json.loads((BEST / "config.json").read_text())["format_version"] == FORMAT_VERSION
    tables = [*REFERENCE.glob("*.csv"), *REFERENCE.glob("*.csv.gz")]
    assert len(tables) > 4
    for path in tables:
        # A fingerprint depends on the version.
        assert {"protocol_version", "fingerprint"} & {*pd.read_csv(path, nrows=1)}, path.name
