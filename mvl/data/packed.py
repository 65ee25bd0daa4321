"""The bytes of a file that somebody else made: packed or not, cut off, lying, or not there."""

import contextlib
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from typing import IO

from mvl.errors import DataError

COPY_AGAIN = "copy or download the file again"
#: Above these bytes, a file that unpacks to more than `_MAX_RATIO` times its size is taken for a
#: decompression bomb. Images pack about twofold, a label of one small lesion up to a thousandfold.
_MODEST_BYTES, _MAX_RATIO = 512 << 20, 200
#: Deflate cannot pack more tightly than this (1032 to 1, rounded up).
_DEFLATE_RATIO = 1040


class BadFile(DataError):
    """A file that cannot be used: what is wrong with it, and what to do."""

    def __init__(self, path, fault, remedy):
        super().__init__(f"{path}: {fault}; {remedy}")
        self.fault, self.remedy = fault, remedy


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[tuple[IO[bytes], bool]]:
    """Yield (the file's bytes, unpacked where they are gzip's; whether they were)."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadFile(path, "not a regular file", "put the NIfTI file itself there")
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield gzip.GzipFile(fileobj=file) if packed else file, packed
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise pointer_fault(path, os.readlink(path)) from error
        raise BadFile(path, "missing", "add the file, or take the case out") from error
    except EOFError as error:
        raise BadFile(path, "truncated gzip", COPY_AGAIN) from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise BadFile(path, f"damaged gzip ({error})", COPY_AGAIN) from error
    except OSError as error:
        fault = f"unreadable ({error.strerror or error})"
        raise BadFile(path, fault, "make it readable") from error


def pointer_fault(path: str | os.PathLike, content: str) -> BadFile:
    """The fault of what is in a file's place where it was not fetched."""
    if "git-lfs" in content:
        return BadFile(path, "a pointer of Git LFS, not the file itself", "run 'git lfs pull'")
    if "annex/objects" in content:
        fault = "a pointer of git-annex, not the file itself"
        return BadFile(path, fault, "run 'git annex get' (or 'datalad get') on it")
    return BadFile(path, f"a link to {content}, which is missing", "put the file itself there")


def require_plausible_size(path: str | os.PathLike, promised: int, packed: bool) -> None:
    """Compare the bytes that a header promises with the file's size."""
    size = os.path.getsize(path)
    if promised > size * (_DEFLATE_RATIO if packed else 1):
        fault = f"header promises {promised:,} bytes, the file of {size:,} cannot hold them"
        raise BadFile(path, f"truncated, or {fault}", COPY_AGAIN)
    if promised > max(_MODEST_BYTES, size * _MAX_RATIO):
        fault = f"{size:,} bytes that unpack to {promised:,}, as a decompression bomb does"
        remedy = "save it unpacked, as .nii, or in a smaller voxel type, such as uint8 for labels"
        raise BadFile(path, fault, remedy)
