"""Notes what of the network each process asks; Python imports this where PYTHONPATH leads here.

The file that the variable MVL_WATCH names gets a line for each process that starts, and one for
each object out of a pickle and each address of another machine that is looked up or connected to.
"""

import os
import sys

_LOG = os.open(os.environ["MVL_WATCH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_OWN = ("127.0.0.1", "::1", "localhost")
#: What multiprocessing hands through a pipe to the kernel that it forks; no file is read.
_OWN += ("multiprocessing.process", "multiprocessing.context", "mvl.runner.kernels")


def _audit(event, arguments):
    host = arguments[0] if arguments else None
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event not in ("socket.getaddrinfo", "socket.gethostbyname", "pickle.find_class"):
        return
    if host not in _OWN:
        os.write(_LOG, f"asked {event} {host}\n".encode())


os.write(_LOG, f"process {os.getpid()}\n".encode())
sys.addaudithook(_audit)
