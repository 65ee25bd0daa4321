"""The decathlon's own archives: fetched, resumed, checked by MD5 and unpacked inside one folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from ssl import SSLError

from mvl.data.task_folder import data_root
from mvl.data.tasks import TASKS, read_task
from mvl.errors import DataError, MvlError
from mvl.files import writing
from mvl.locks import locked
from mvl.progress import Progress, track

#: Seconds without an answer after which the network counts as gone.
_TIMEOUT = 30
#: Bytes that are read at once; progress counts them.
_BLOCK = 1 << 20


def download(task_name: str, root: str | Path | None = None, progress: bool = True) -> Path:
    """Fetch and unpack one of the decathlon's ten tasks; returns its folder, at once if it exists.

    The archive grows in the folder `.Task….download` below `root` (see `data_root`). An
    interrupted download goes on from there, and counts only if its MD5 is right. The task folder
    appears by a rename, whole or not at all.

    Raises:
        DataError: no such task, no network, a wrong MD5, a damaged archive, a folder that is in
            the way or cannot be written, or another process that downloads the same.
    """
    if task_name not in TASKS:
        raise DataError(f"no download of {task_name!r}; there are {', '.join(TASKS)}")
    root = data_root(root)
    folder, staging = root / task_name, root / f".{task_name}.download"
    try:
        with writing(folder, "make room or choose another root", DataError):
            if not _is_there(folder):
                with locked(staging, f"downloading {task_name}"):
                    if not _is_there(folder):  # another process may have ended meanwhile
                        url, md5 = _published(task_name)
                        _fetch(url, staging / "archive.tar", folder, progress)
                        _require_md5(staging / "archive.tar", md5, url)
                        _unpack(staging / "archive.tar", folder, staging / "unpacked", progress)
            shutil.rmtree(staging, ignore_errors=True)  # also of a process that was killed here
    except DataError:
        raise
    except MvlError as error:
        raise DataError(f"{error} (or choose another root)") from error
    return folder


def _published(task_name):
    """URL and MD5 of a task's archive, as MONAI lists them."""
    from monai.apps import DecathlonDataset  # takes 5 s to import

    return DecathlonDataset.resource[task_name], DecathlonDataset.md5[task_name]


def _is_there(folder):
    """Whether a whole task folder exists; a `DataError` if something else has its name."""
    if (folder / "dataset.json").is_file():
        if read_task(folder).synthetic:
            raise DataError(f"{folder} holds a synthetic phantom; move it away, or choose a root")
        return True
    if os.path.lexists(folder):
        raise DataError(f"{folder} exists without a dataset.json; move it away, or choose a root")
    return False


def _fetch(url, archive, folder, progress):
    """Bring `archive` to the whole of what `url` serves, from where it stopped."""
    have = archive.stat().st_size if archive.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            # A server that does not resume sends the whole, from the start.
            have = have if response.status == 206 else 0
            total = have + int(response.headers.get("Content-Length", "0"))
            bar = Progress("downloading", -(-total // _BLOCK), "MiB", progress and total > 0)
            with bar, open(archive, "ab") as file:
                file.truncate(have)
                bar.skip(have // _BLOCK)
                while block := response.read(_BLOCK):
                    file.write(block)
                    bar.step()
                have = file.tell()
        if have == total:
            return
        reason = f"it broke off after {have:,} of {total:,} bytes"
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return  # nothing is missing; the MD5 decides
        reason = f"the server answers {error}"
    except urllib.error.URLError as error:
        reason = error.reason
    except (
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
        SSLError,
        ValueError,
    ) as error:
        reason = f"it broke off ({error})"
    raise DataError(
        f"cannot download {url}: {reason}; run the command again to go on where it stopped, or, "
        f"without network, put the folder {folder.name} into {folder.parent} or set MVL_DATA_ROOT "
        f"to the folder that holds it, or use a synthetic one: mvl data phantom {folder.name}"
    )


def _require_md5(archive, md5, url):
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        archive.unlink()
        raise DataError(
            f"{url} has MD5 {found}, expected {md5}; the download was deleted: try again, and "
            "distrust the source if it happens twice"
        )


def _unpack(archive, folder, unpacked, progress):
    """Unpack, then rename the task folder to its place; a `DataError` if the archive is damaged."""
    shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed here
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in track(tar.getmembers(), "unpacking", "file", show=progress):
                if not PurePosixPath(member.name).name.startswith("._"):  # macOS's shadow files
                    # The filter refuses devices, and whatever leads out of the folder.
                    tar.extract(member, unpacked, filter="data")
    except tarfile.TarError as error:
        raise DataError(f"the archive of {folder.name} cannot be unpacked: {error}") from error
    if not (unpacked / folder.name / "dataset.json").is_file():
        raise DataError(f"the archive of {folder.name} has no {folder.name}/dataset.json")
    (unpacked / folder.name).rename(folder)
