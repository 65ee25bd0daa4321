"""docs/reliability.md, made of the record that the tests of reliability write.

    pytest tests/reliability --slow --record    # tries everything, writes docs/reliability.json
    python scripts/reliability.py               # the page alone, from the record

A record holds what was noted in the sections below; a section without a note is refused. What
right and odd files are read as stands in docs/meaning.csv, each row with the test that holds it.
"""

import csv
import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs"
RECORD, PAGE = FOLDER / "reliability.json", FOLDER / "reliability.md"
MEANING = FOLDER / "meaning.csv"
#: Raised whenever the page is made of other notes.
VERSION = 1
#: What a note of the section "memory" calls a step that ran out of a GPU's.
ON_GPU = "a step of training on a GPU"
SECTIONS = ("kills", "disk", "memory", "inputs", "fuzz", "secrets", "determinism")


def page(record):
    """The text of the page.

    Args:
        record: {"version", "seed", "slow", "machine", "notes": {section: list of notes}}; a note
            is a flat dict.

    Raises:
        ValueError: the record is of another version, or lacks a section.
    """
    if record.get("version") != VERSION:
        raise ValueError(f"the record has version {record.get('version')}, wanted {VERSION}")
    notes = record["notes"]
    if missing := [section for section in SECTIONS if not notes.get(section)]:
        raise ValueError(f"the record has nothing on {', '.join(missing)}")
    inputs = notes["inputs"]
    # The slow tier kills each stage anew, more often.
    kills = sorted(notes["kills"], key=lambda note: note["kills"])
    kills = list({note["stage"]: note for note in kills}.values())
    killed = sum(note["interrupted"] for note in kills)
    kinds = dict.fromkeys(note["kind"] for note in inputs)
    parts = [
        "# Reliability and security: what was tried, and what happened",
        f"{killed} kills that met one of {len(kills)} stages at work, {len(notes['disk'])} full "
        f"disks and folders that may not be written, {len(inputs)} broken inputs: nothing was "
        "lost, no partial file was taken for a whole one, and each fault of the user's or the "
        "machine's ended in a sentence. "
        "The tables are written from [reliability.json](reliability.json), the record of one run "
        f"of `pytest tests/reliability{' --slow' * record['slow']} --record` "
        f"({_machine(record['machine'])}). Every change is tested with "
        f"{'fewer' if record['slow'] else 'as many'} kills and full disks, and with every one of "
        "the inputs.",
        "## Killed at random moments",
        "`kill -9` to the process group, by the clock or at one of the stage's operations on files "
        f"(seed {record['seed']}). Then every file with a final name has to be whole, and the same "
        "command, run again, has to leave what an undisturbed run leaves: the same bytes in every "
        "table, weight and notebook, times aside. A kill that came when the stage had just ended "
        "is not counted as one that met it at work.",
        _table(
            ("stage", "kills", "met it at work", "operations on files", "ended as undisturbed"),
            [
                (n["stage"], n["kills"], n["interrupted"], n["operations"], n["equal"])
                for n in kills
            ],
        ),
        "## Disks that are full, results that may not be written",
        "A file system of a few pages in memory, a limit on the size of a file, permissions taken "
        "away. The command says one sentence; with room, it goes on and ends as undisturbed.",
        _table(
            ("stage", "fault", "said"), [(n["stage"], n["fault"], n["said"]) for n in notes["disk"]]
        ),
        "## Memory that runs out",
        "In a process that may have 500 MB more. A second training, with the batch that the "
        "sentence names, went well under the same limit.",
        _table(("what", "said"), [(n["what"], n["said"]) for n in notes["memory"]]),
        _about_gpus(notes["memory"]),
        "A loss or a gradient that is no number stops a training in the same way, before the "
        "optimiser steps on it (`tests/experiment/test_training.py`). A machine that kills a "
        "process for its memory leaves no sentence, but a run that goes on where it was.",
        "## Broken inputs",
        f"{len(inputs)} inputs, each asked of the command line; the slowest answer took "
        f"{max(n['seconds'] for n in inputs):.1f} s, the hungriest "
        f"{max(n['megabytes'] for n in inputs):.0f} MB more than the process had. Paths are "
        "shortened.",
    ]
    for kind in kinds:
        rows = [(n["input"].rpartition(": ")[2], n["said"]) for n in inputs if n["kind"] == kind]
        parts += [f"### {kind}", _table(("input", "said"), rows)]
    parts += [
        "## What files mean",
        "Each case is one that users of this or of other software have met. No such case ends with "
        "status 0 and a wrong number. Each row is a test, and is run with every change.",
    ]
    meaning = meanings()
    for kind in dict.fromkeys(row["kind"] for row in meaning):
        rows = [
            (row["case"], row["outcome"], f"`{row['test']}`")
            for row in meaning
            if row["kind"] == kind
        ]
        parts += [f"### {kind.capitalize()}", _table(("case", "outcome", "test"), rows)]
    parts += [
        "## Generated inputs",
        "Hypothesis makes files of bytes, numbers and nestings; a reader gives a value or refuses "
        "in a sentence. What the reader of safetensors headers lets in, the reference "
        "implementation has to let in, too.",
        _table(
            ("reader", "examples", "read", "refused"),
            [(n["reader"], n["examples"], n["read"], n["refused"]) for n in notes["fuzz"]],
        ),
        "## No pickle, no secret, no network that nobody asked for",
        "One process trains, evaluates, predicts, runs a suite, saves and loads a model and draws "
        "a figure, with tokens and a proxy's password in its environment, while it is watched; so "
        "is every process of a batch run of notebooks, which writes the report.",
        _table(("what", "found"), [(n["what"], n["found"]) for n in notes["secrets"]]),
        "Several processes are not watched: those that train together (torchrun, by accelerate) "
        "and Ray's workers pass each other objects, pickled by these libraries. No file holds "
        "them.",
        "Nothing above asks the network. `mvl data download`, the profile `quick` without data at "
        "hand, and sources that begin with `hub:` do, and say so. Archives and the paths of a "
        "`dataset.json` cannot leave their folder (see above).",
        "## The same bytes again",
        _table(("what", "found"), [(n["what"], n["found"]) for n in notes["determinism"]]),
        "Another number of threads sums in another order; a training amplifies that from epoch to "
        "epoch, so that a long one is another draw, as another seed would be. The study's runs "
        "have one thread.",
        "## Versions",
        "A run folder names the version of its protocol in `config.json`, a saved model that of "
        "its format; the reference's tables name the protocol or the run's fingerprint, which "
        "depends on it. Another version is refused by name (see *A run folder*, *A saved model*, "
        "*The reference*). The figures of benchmarks/results.json have no version: they are known "
        "by their names.",
    ]
    return "\n\n".join(parts) + "\n"


def meanings():
    """The rows of docs/meaning.csv: kind, case, outcome, and test as "file::function"."""
    with open(MEANING, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _about_gpus(memory):
    if any(note["what"] == ON_GPU for note in memory):
        return "On a GPU the same, within 2 GB of its memory."
    return (
        "A GPU's memory was not tried: the machine of this record has none. The test of it "
        "(`tests/reliability/test_faults.py`) is skipped there; on a machine with a GPU it runs."
    )


def _machine(machine):
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value):
    # A sentence may hold anything; the line has to stay one.
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def main():
    """Write the page from the record."""
    PAGE.write_text(page(json.loads(RECORD.read_text(encoding="utf-8"))), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
