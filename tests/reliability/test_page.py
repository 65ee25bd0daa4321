"""docs/reliability.md agrees with its record; results name their version."""

import json

import pandas as pd
import pytest

from mvl.config import PROTOCOL_VERSION
from mvl.files import REPOSITORY
from mvl.models.folder import FORMAT_VERSION
from mvl.study.reference import BEST, REFERENCE
from scripts import reliability
from tests.reliability.stages import STAGES
from tests.reliability.test_kills import MANY


def test_the_page_is_made_of_a_whole_record_of_the_slow_tier():
    record = json.loads(reliability.RECORD.read_text(encoding="utf-8"))
    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.page(record)
    kills = record["notes"]["kills"]
    assert record["slow"] and {n["stage"] for n in kills if n["kills"] == MANY} == {*STAGES}
    assert all(n["equal"] == n["kills"] >= n["interrupted"] > 0 for n in kills)
    record["notes"]["kills"] = []
    with pytest.raises(ValueError, match="kills"):
        reliability.page(record)


def test_each_meaning_is_held_by_a_test():
    rows = pd.read_csv(REPOSITORY / "docs" / "meaning.csv")
    assert len(rows) >= 55
    for test in rows["test"]:
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (REPOSITORY / file).read_text(encoding="utf-8"), test


def test_results_name_their_version(given):
    stored = json.loads((given.trained / "config.json").read_text())
    assert stored["protocol_version"] == PROTOCOL_VERSION
    assert json.loads((BEST / "config.json").read_text())["format_version"] == FORMAT_VERSION
    tables = [*REFERENCE.glob("*.csv"), *REFERENCE.glob("*.csv.gz")]
    assert len(tables) > 4
    for path in tables:
        # A fingerprint depends on the version.
        assert {"protocol_version", "fingerprint"} & {*pd.read_csv(path, nrows=1)}, path.name
