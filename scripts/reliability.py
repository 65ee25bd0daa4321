"""docs/reliability.md, made of the record that the tests of reliability write.

pytest tests/reliability --slow --record    # tries everything, writes docs/reliability.json
python scripts/reliability.py               # the page alone, from the record
"""

import csv
import json
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs"
RECORD, PAGE = FOLDER / "reliability.json", FOLDER / "reliability.md"
#: Raised whenever the page is made of other notes.
VERSION = 1
#: What a note of the section "memory" calls a step that ran out of a GPU's.
ON_GPU = "a step of training on a GPU"
SECTIONS = ("kills", "disk", "memory", "inputs", "fuzz", "secrets", "determinism")

_PAGE = """# Reliability and security

{killed} kills met one of {stages} stages at work. {disk} times a disk was full, or a folder could
not be written. {inputs} inputs were broken. Nothing was lost, and no partial file was taken for a
whole one. Each fault ended in one sentence that names the file, the reason and what to do.

One run of `pytest tests/reliability --slow --record` wrote the numbers ({machine}).
[reliability.json](reliability.json) holds every input with its sentence. Every change is tested
with fewer inputs, kills and full disks.

## Killed at random moments

`kill -9` ends the process group at a random time, or at a random file operation (seed {seed}). Then
each file with a final name must be whole. The same command must leave the bytes of an undisturbed
run, except for times.

{kills_table}

## Full disks and folders that cannot be written

The command prints one sentence. With room, it goes on and ends as an undisturbed one.

{disk_table}

## Too little memory

The process may use 500 MB more. With the batch that the sentence names, training succeeds.

{memory_table}

{gpu} A loss or a gradient that is not finite stops a training in the same way. If the system kills
a process for its memory, the run resumes.

## Broken inputs

The slowest answer took {seconds:.1f} s. The largest took {megabytes} MB.

{inputs_table}

## What files mean

[meaning.csv](meaning.csv) lists {meanings} cases that users of this or of other software have met,
with the outcome and the test of each: {kinds}. No such case ends with a wrong number.

## Generated inputs

Hypothesis generates files. A reader returns a value, or refuses the file by name. Each safetensors
header that is read here is also read by the reference implementation.

{fuzz_table}

## No pickle, no secret, no unasked network

A process trains, evaluates, predicts, runs a suite, saves and loads a model, and draws a figure. It
is watched, with tokens and a proxy's password in its environment. So is each process of a run of
the notebooks, which writes the report.

{secrets_table}

Processes that train together (torchrun, Ray) are not watched. Their libraries pickle what they
send to each other; no file holds it. Only `mvl data download`, the profile `quick` without data,
and sources that begin with `hub:` use the network. Archives and the paths of a `dataset.json`
cannot leave their folder.

## The same bytes again

{determinism_table}

Another number of threads sums in another order. Over many epochs that grows as another seed would.
The study's runs use one thread.

## Versions

A run names the version of its protocol, and a saved model the version of its format. Tables name
the protocol or the run's fingerprint, which depends on it. Another version is refused by name.
"""


def page(record):
    """The text of the page.

    Args:
        record: {"version", "seed", "slow", "machine", "notes": {section: list of flat dicts}}.

    Raises:
        ValueError: the record is of another version, or lacks a section.
    """
    if record.get("version") != VERSION:
        raise ValueError(f"the record has version {record.get('version')}, wanted {VERSION}")
    notes = record["notes"]
    if missing := [section for section in SECTIONS if not notes.get(section)]:
        raise ValueError(f"the record has nothing on {', '.join(missing)}")
    # The slow tier kills each stage again, more often.
    kills = sorted(notes["kills"], key=lambda note: note["kills"])
    kills = list({note["stage"]: note for note in kills}.values())
    inputs = notes["inputs"]
    with open(FOLDER / "meaning.csv", encoding="utf-8", newline="") as file:
        meanings = Counter(row["kind"] for row in csv.DictReader(file))
    gpu = any(note["what"] == ON_GPU for note in notes["memory"])
    return _PAGE.format(
        killed=sum(note["interrupted"] for note in kills),
        stages=len(kills),
        disk=len(notes["disk"]),
        inputs=len(inputs),
        machine=", ".join(f"{name} {value}" for name, value in record["machine"].items()),
        seed=record["seed"],
        kills_table=_table(
            {"stage": "stage", "kills": "kills", "interrupted": "met it at work"}
            | {"operations": "file operations", "equal": "ended as undisturbed"},
            kills,
        ),
        disk_table=_table(
            {"stage": "stage", "count": "faults", "fault": "such as", "said": "sentence"},
            _examples(notes["disk"], "stage"),
        ),
        memory_table=_table({"what": "what", "said": "sentence"}, notes["memory"]),
        gpu="On a GPU the same holds." if gpu else "A GPU's memory was not tried.",
        seconds=max(note["seconds"] for note in inputs),
        megabytes=max(note["megabytes"] for note in inputs),
        inputs_table=_table(
            {"kind": "kind", "count": "inputs", "input": "such as", "said": "sentence"},
            _examples(inputs, "kind"),
        ),
        meanings=meanings.total(),
        kinds=", ".join(f"{kind} ({count})" for kind, count in meanings.items()),
        fuzz_table=_table({key: key for key in notes["fuzz"][0]}, notes["fuzz"]),
        secrets_table=_table({"what": "what", "found": "found"}, notes["secrets"]),
        determinism_table=_table({"what": "what", "found": "found"}, notes["determinism"]),
    )


def _examples(notes, key):
    """The first note of each value of a key, with the number of notes as "count"."""
    counts = Counter(note[key] for note in notes)
    first = {note[key]: note for note in reversed(notes)}
    return [first[value] | {"count": count} for value, count in counts.items()]


def _table(columns, rows):
    """A Markdown table; `columns` is {key of a row: heading}."""
    lines = [columns.values(), ["---"] * len(columns)]
    lines += [[_cell(row[key]) for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value):
    # A sentence may hold anything; the line has to stay one.
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def main():
    """Write the page from the record."""
    PAGE.write_text(page(json.loads(RECORD.read_text(encoding="utf-8"))), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
