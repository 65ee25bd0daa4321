"""Notes what of the network each process asks; Python imports this where PYTHONPATH leads here.

The file that the variable MVL_WATCH names gets a line for each process that starts, and one for
each address that is looked up or connected to and is not this machine's own.
"""

import os
import sys

_LOG = os.open(os.environ["MVL_WATCH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_OWN = ("127.0.0.1", "::1", "localhost")


def _note(*words):
    os.write(_LOG, (" ".join(map(str, words)) + "\n").encode())


def _audit(event, arguments):
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if host not in _OWN:
        _note("asked", event, host)


_note("process", os.getpid())
sys.addaudithook(_audit)
