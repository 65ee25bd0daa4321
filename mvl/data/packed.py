"""The bytes of a file that somebody else made: packed or not, cut off, lying, or not there at all.

A file is held against its size before memory is asked for, and the checksum of a gzip stream is
reached, so that a file that lies or was cut off costs little and never passes for whole.
"""

import contextlib
import io
import os
import stat
import zlib

from mvl.errors import DataError

COPY_AGAIN = "copy or download the file again"

#: So many bytes are read without asking; above it, a file that unpacks to more than
#: `_MAX_RATIO` times its size is taken for a decompression bomb. Images pack about twofold, a
#: label of one small lesion up to a thousandfold, but few of those are this large.
_MODEST_BYTES = 512 << 20
_MAX_RATIO = 200
#: Deflate cannot pack more tightly than this (1032 to 1, rounded up).
_DEFLATE_RATIO = 1040
#: Bytes that are unpacked at once.
_BLOCK = 1 << 20


class BadFile(DataError):
    """A file that cannot be used: what is wrong with it, and what to do."""

    def __init__(self, path, fault, remedy):
        super().__init__(f"{path}: {fault}; {remedy}")
        self.fault, self.remedy = fault, remedy


class _Unpacked(io.RawIOBase):
    """The content of a gzip file: its members one after another, each held against its checksum.

    What stands behind the last one is no member and is left, as ITK and nibabel leave it; Python's
    own reader takes zeros alone.
    """

    def __init__(self, file):
        self._file, self._packed, self._member = file, b"", zlib.decompressobj(31)

    def readable(self):
        return True

    def readinto(self, buffer):
        while True:
            more = b"" if len(self._packed) > 1 else self._file.read(_BLOCK)
            self._packed += more
            if self._member is None:
                if not self._packed.startswith(b"\x1f\x8b"):
                    return 0
                self._member = zlib.decompressobj(31)
            data = self._member.decompress(self._packed, min(len(buffer), _BLOCK))
            if self._member.eof:
                self._packed, self._member = self._member.unused_data, None
            elif not data and not self._packed:
                raise EOFError
            else:
                self._packed = self._member.unconsumed_tail
            if data:
                buffer[: len(data)] = data
                return len(data)


@contextlib.contextmanager
def opened(path):
    """Yield (the file's bytes, unpacked where they are gzip's; whether they were).

    Faults become `BadFile`.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadFile(path, "not a regular file", "put the NIfTI file itself there")
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield io.BufferedReader(_Unpacked(file)) if packed else file, packed
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise pointer_fault(path, os.readlink(path)) from error
        raise BadFile(path, "missing", "add the file, or take the case out") from error
    except EOFError as error:
        raise BadFile(path, "truncated gzip", COPY_AGAIN) from error
    except zlib.error as error:
        raise BadFile(path, f"damaged gzip ({error})", COPY_AGAIN) from error
    except OSError as error:
        raise BadFile(
            path, f"unreadable ({error.strerror or error})", "make it readable"
        ) from error


def pointer_fault(path, content):
    """The fault of what stands in a file's place where it was not fetched."""
    if "git-lfs" in content:
        return BadFile(path, "a pointer of Git LFS, not the file itself", "run 'git lfs pull'")
    if "annex/objects" in content:
        fault = "a pointer of git-annex, not the file itself"
        return BadFile(path, fault, "run 'git annex get' (or 'datalad get') on it")
    return BadFile(path, f"a link to {content}, which is missing", "put the file itself there")


def require_plausible_size(path, promised, packed):
    """Hold the bytes that a header promises against the file's size, before memory is asked for."""
    size = os.path.getsize(path)
    most = size * (_DEFLATE_RATIO if packed else 1)
    if promised > most:
        fault = f"header promises {promised:,} bytes, the file of {size:,} cannot hold them"
        raise BadFile(path, f"truncated, or {fault}", COPY_AGAIN)
    if promised > max(_MODEST_BYTES, size * _MAX_RATIO):
        fault = f"{size:,} bytes that unpack to {promised:,}, as a decompression bomb does"
        raise BadFile(path, fault, "save it in a smaller voxel type, such as uint8 for labels")
