"""The one exception that is meant for a person.

Everything that a user can mend (a file that is missing, a key that is misspelt, a machine
without network) ends in an `MvlError` whose text says all: what is wrong, where,
and what to do. The command line and a notebook show that text and nothing else.
"""

from collections.abc import Iterable


class MvlError(Exception):
    """A fault that the user can mend; its message names the thing, the reason and the way out."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(MvlError):
    """A configuration with an unknown key, a wrong type or a value out of range."""


class DataError(MvlError):
    """A data set, a case or a file that cannot be used as it is."""


class BlockError(MvlError):
    """A language model's block that cannot be found, read or trusted."""


class RunError(MvlError):
    """A run folder or a results table that is missing, foreign, incomplete or inconsistent."""


def in_words(error: BaseException) -> str:
    """An exception in one line: an `MvlError` speaks for itself, any other has its kind named."""
    return str(error) if isinstance(error, MvlError) else f"{type(error).__name__}: {error}"


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The exception, or its cause, that says that memory has run out; None if there is none.

    PyTorch has its own class for a GPU and a plain RuntimeError for the CPU, and MONAI wraps what
    happens in a transform; no import of theirs is needed to tell.
    """
    while error is not None:
        kind = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if kind or "DefaultCPUAllocator: can't allocate memory" in str(error):
            return error
        error = error.__cause__
    return None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message, with the known names that are nearest to a word; "" if none is near."""
    from difflib import get_close_matches

    name_of = {name.lower(): name for name in known}
    word = word.lower()
    near = [name for name in name_of if len(word) > 2 and word in name]
    near += get_close_matches(word, name_of, 3)
    names = [name_of[name] for name in dict.fromkeys(near)][:3]
    return f"; did you mean {' or '.join(names)}?" if names else ""
