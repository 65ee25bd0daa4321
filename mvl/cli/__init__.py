"""The `mvl` command: each verb is a function of a module of this room, which reads its options.

Nothing heavy is imported before a verb needs it, so that `mvl --help` answers at once.
"""

import importlib
import io
import os
import re
import sys

from mvl.cli.parser import make_parser
from mvl.errors import MvlError, out_of_memory


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 for a fault, 2 for wrong usage.

    As in a shell, Ctrl-C gives 130, and a closed output pipe 141.
    """
    try:
        try:
            return _status(arguments)
        finally:
            if sys.stdout:  # None where the shell has closed it
                sys.stdout.flush()  # while what it raises can still be put into words
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as error:
        _drop_output()
        return _fault(f"cannot write to standard output: {error.strerror or error}")


def _status(arguments):
    options = make_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    module, _, verb = options.call.partition(".")
    try:
        if device := getattr(options, "device", None):
            from mvl.cli.train import use_device

            use_device(device)
        return getattr(importlib.import_module(f"mvl.cli.{module}"), verb)(options) or 0
    except MvlError as error:
        return _fault(_by_option(str(error), options))
    except BrokenPipeError:
        raise
    except OSError as error:  # of a file that no reader or writer of ours has put into words
        return _fault(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not (reason := out_of_memory(error)):
            raise
        return _fault(f"out of memory ({reason}); a machine with more of it would do")
    except KeyboardInterrupt:
        print("mvl: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _by_option(text, options):
    """A fault with the option's name in place of the field of the configuration that it set."""

    def told(match):
        name = {"spacing_mm": "spacing"}.get(match[1], match[1])
        given = getattr(options, name, None) is not None
        return f"--{name.replace('_', '-')} {match[2]}" if given else match[0]

    return re.sub(
        r"^configuration(?: data)?: (?:\w+\.)*?([a-z_]+)(?:\.\d+)? (must|\d+:)", told, text
    )


def _drop_output():
    """Keep Python from writing, and failing, once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fault(message):
    print(f"mvl: {message}", file=sys.stderr)
    return 1
