"""Broken inputs: each ends in a sentence that names file and reason, in bounded time and memory."""

import re

import pytest

from tests.reliability import children
from tests.reliability.conftest import said
from tests.reliability.corpus import CORPUS, MEMORY, SECONDS, examine, strange_names


@pytest.fixture(scope="session")
def answers(given, tmp_path_factory):
    """A function: kind -> what came of all its entries, which one child examines."""
    known = {}

    def of(kind):
        if kind not in known:
            folder = tmp_path_factory.mktemp("inputs")
            names = [name for name, entry in CORPUS.items() if entry.kind == kind]
            patience = 20 + SECONDS * len(names)
            known[kind] = children.run(
                examine, names, folder, given, log=folder / "log", patience=patience
            )
            assert not list(folder.rglob("*evil*")), "unpacked where it must not be"
        return known[kind]

    return of


@pytest.mark.parametrize("name", CORPUS)
def test_a_broken_input_ends_in_a_sentence(name, answers, note):
    entry = CORPUS[name]
    child = answers(entry.kind)
    assert child.value is not None, child.output
    answer = child.value[name]
    assert answer.status == 1 and "Traceback" not in answer.output, answer.output
    # Progress may stand before it.
    sentence = answer.output[answer.output.rfind("mvl: ") :]
    for part in entry.said:
        assert part in sentence
    assert not re.search(r"<.* object at 0x", sentence)
    assert answer.seconds < SECONDS and answer.memory < MEMORY
    (line, *_) = [line for line in sentence.splitlines() if entry.said[-1] in line]
    facts = {"seconds": round(answer.seconds, 2), "megabytes": round(answer.memory / 1e6)}
    note("inputs", kind=entry.kind, input=name, said=said(line), **facts)


def test_names_that_are_no_text_are_no_fault(given, tmp_path):
    done = children.run(strange_names, tmp_path, given, log=tmp_path / "log")
    assert done.value == (0, 0), done.output
