"""Progress of long work: a bar on a terminal, a plain line every half minute elsewhere."""

import sys
from collections.abc import Iterator, Sized

from tqdm import tqdm

#: Seconds between two plain lines.
INTERVAL_S = 30.0


class _Lines:
    """A file that prints each state of a bar on a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), flush=True)

    def flush(self) -> None:
        pass


class Progress(tqdm):
    """A tqdm bar, or plain lines in a log, CI or an executed notebook; short work prints nothing.

    Args:
        what: what is counted, such as "training".
    """

    monitor_interval = 0  # no thread

    def __init__(self, what: str, total: int, unit: str = "case", show: bool = True) -> None:
        options = {"desc": what, "total": total, "unit": unit, "disable": not show}
        if not sys.stderr.isatty():
            line = "{desc}: {unit} {n_fmt} of {total_fmt}, {elapsed} elapsed, {remaining} left"
            options |= {"bar_format": line + "{postfix}", "file": _Lines(), "position": 0}
            options |= {"mininterval": INTERVAL_S, "delay": INTERVAL_S, "miniters": 1}
        super().__init__(dynamic_ncols=True, **options)

    def skip(self, steps: int) -> None:
        """Count steps that an earlier process did; they do not count for the time left."""
        self.initial = self.n = self.last_print_n = steps

    def step(self, note: str = "") -> None:
        """Count one step; `note` says what it brought."""
        self.set_postfix_str(note, refresh=False)
        self.update()


def track(items: Sized, what: str, unit: str = "case", show: bool = True) -> Iterator:
    """Iterate over a sized collection with a `Progress`."""
    with Progress(what, len(items), unit, show) as progress:
        for item in items:
            yield item
            progress.step()


#: Key in the metadata of the output that says what a notebook lacks.
INCOMPLETE = "mvl-incomplete"


def say_incomplete(reasons: list[str]) -> None:
    """Say what a notebook could not train; its runner then does not take the notebook for done."""
    if reasons:
        from IPython.display import display

        text = "Not complete: " + "; ".join(reasons)
        display({"text/plain": text}, raw=True, metadata={INCOMPLETE: True})
