"""Progress that suits its place: a bar on a terminal, a plain line at intervals elsewhere."""

import sys
import time

#: Seconds between two plain lines.
INTERVAL_S = 30.0


class Progress:
    """Counts steps of long work and shows how far it is and how long it will take.

    On a terminal it is a tqdm bar. Elsewhere (a log, CI, an executed notebook) it prints a plain
    line when it starts to take long, at intervals, and at its end.

    Args:
        what: what is counted, such as "training vit".
        total: the number of steps.
        unit: what one step is called.
        show: False shows nothing.
    """

    def __init__(self, what, total, unit="case", show=True):
        self.what, self.total, self.unit = what, total, unit
        self.done, self.note = 0, ""
        self.start = self.last = time.monotonic()
        self.first = 0
        self.show = show
        self.bar = None
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.bar is not None:
            self.bar.close()
        elif self.show and kind is None and self.last > self.start:
            self._line()

    def skip(self, steps):
        """Count steps that an earlier process did; they tell nothing about the time left."""
        self.done += steps
        self.first = self.done
        if self.bar is not None:
            self.bar.update(steps)
            self.bar.unpause()

    def step(self, note=""):
        """Count one step; `note` says what it brought."""
        self.done += 1
        self.note = note
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update()
        elif self.show and time.monotonic() - self.last >= INTERVAL_S:
            self.last = time.monotonic()
            self._line()

    def _line(self):
        elapsed = time.monotonic() - self.start
        left = elapsed / max(1, self.done - self.first) * (self.total - self.done)
        print(
            f"{self.what}: {self.unit} {self.done} of {self.total}, {clock(elapsed)} elapsed, "
            f"{clock(left)} left" + (f", {self.note}" if self.note else ""),
            flush=True,
        )


def track(items, what, unit="case", show=True):
    """Iterate over a sized collection with a `Progress`."""
    with Progress(what, len(items), unit, show) as progress:
        for item in items:
            yield item
            progress.step()


def clock(seconds):
    """Seconds as people read them: "m:ss", from an hour on "h:mm:ss"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
