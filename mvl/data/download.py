"""The decathlon's own archives: fetched, resumed, checked by MD5 and unpacked inside one folder."""

import contextlib
import hashlib
import http.client
import os
import shutil
import ssl
import tarfile
import urllib.error
import urllib.request
from pathlib import PurePosixPath

from mvl.data.task_folder import data_root
from mvl.data.tasks import TASKS, read_task
from mvl.errors import DataError
from mvl.locks import acquired
from mvl.progress import Progress, track

#: Seconds without an answer after which the network counts as gone.
_TIMEOUT = 30
#: Bytes read at once; progress counts them.
_BLOCK = 1 << 20


def download(task_name, root=None, progress=True):
    """Fetch and unpack one of the decathlon's ten tasks.

    The archive grows beside its place as `.Task….tar.part`; an interrupted download goes on
    from there, and what was fetched counts only if its MD5 is right. The archive is unpacked to
    a folder beside the task folder, which appears by a rename, whole or not at all.

    Args:
        task_name: one of `mvl.data.tasks.TASKS`.
        root: see `mvl.data.task_folder.data_root`.
        progress: show progress bars.

    Returns:
        `Path` of the task folder; at once if it is there already.

    Raises:
        DataError: no such task, no network, a wrong MD5, an archive that is not as it should
            be, a folder that is in the way or cannot be written.
    """
    if task_name not in TASKS:
        raise DataError(f"no download of {task_name!r}; there are {', '.join(TASKS)}")
    root = data_root(root)
    folder, part = root / task_name, root / f".{task_name}.tar.part"
    if _is_there(folder):
        if part.exists():  # of a download that was killed at its very end, or is just ending
            with contextlib.suppress(OSError, DataError), _alone(part):
                shutil.rmtree(_beside(folder), ignore_errors=True)
                part.unlink()
        return folder
    url, md5 = _published(task_name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(part):
            if not _is_there(folder):  # another process may have ended since the first look
                _fetch(url, part, progress)
                _require_md5(part, md5, url, progress)
                _unpack(part, folder, progress)
            part.unlink()
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror or error}; make room or choose another root"
        ) from error
    return folder


def _published(task_name):
    """URL and MD5 of a task's archive, as MONAI lists them."""
    from monai.apps import DecathlonDataset  # takes 5 s to import

    return DecathlonDataset.resource[task_name], DecathlonDataset.md5[task_name]


def _is_there(folder):
    """Whether a task folder is there, whole.

    Raises:
        DataError: something else is in its place.
    """
    if (folder / "dataset.json").is_file():
        if read_task(folder).synthetic:
            raise DataError(f"{folder} holds a synthetic phantom; move it away, or choose a root")
        return True
    if os.path.lexists(folder):
        raise DataError(f"{folder} exists without a dataset.json; move it away, or choose a root")
    return False


@contextlib.contextmanager
def _alone(part):
    """Hold `part` (made where it is missing) against other processes; who holds it may remove it.

    Raises:
        DataError: another process holds it.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(acquired(part))
        except BlockingIOError as error:
            reason = error.strerror
            raise DataError(f"another process is downloading {part}: {reason}") from error
        yield


def _fetch(url, part, progress):
    """Bring `part` to the whole of what `url` serves, from where it stopped.

    Raises:
        DataError: no network, or the connection broke off.
    """
    have = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            # A server that does not resume sends the whole, from the start.
            have = have if response.status == 206 else 0
            length = response.headers.get("Content-Length", "0")
            if not length.isdecimal():
                reason = f"the server gives its length as {length!r}"
                raise DataError(_offline(part, url, reason))
            total = have + int(length)
            with _progress("downloading", total, progress) as bar, open(part, "ab") as file:
                file.truncate(have)
                bar.skip(have // _BLOCK)
                while block := response.read(_BLOCK):
                    file.write(block)
                    have += len(block)
                    bar.step()
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return  # nothing is missing; the MD5 decides
        raise DataError(_offline(part, url, f"the server answers {error}")) from error
    except urllib.error.URLError as error:
        raise DataError(_offline(part, url, error.reason)) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise DataError(_offline(part, url, f"it broke off ({error})")) from error
    if have < total:
        raise DataError(_offline(part, url, f"it broke off after {have:,} of {total:,} bytes"))


def _offline(part, url, reason):
    task_name = part.name.strip(".").removesuffix(".tar.part")
    return (
        f"cannot download {url}: {reason}; run the command again to go on where it stopped, or, "
        f"without network, put the folder {task_name} into {part.parent} or set MVL_DATA_ROOT to "
        f"the folder that holds it, or use a synthetic one: mvl data phantom {task_name}"
    )


def _progress(what, size, show):
    return Progress(what, -(-size // _BLOCK), "MiB", show and size > 0)


def _require_md5(part, md5, url, progress):
    digest = hashlib.md5(usedforsecurity=False)
    bar = _progress("checking MD5", part.stat().st_size, progress)
    with bar, open(part, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.step()
    if digest.hexdigest() != md5:
        part.unlink()
        raise DataError(
            f"{url} has MD5 {digest.hexdigest()}, expected {md5}; the download was thrown away: "
            "try again, and distrust the source if it happens twice"
        )


def _beside(folder):
    """Where an archive is unpacked."""
    return folder.with_name(f".{folder.name}.unpacking")


def _unpack(archive, folder, progress):
    """Unpack to a folder beside `folder`, then rename.

    Raises:
        DataError: a member other than a plain file or folder below the task's name, or no
            dataset.json; nothing is left behind.
    """
    beside = _beside(folder)
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed here
    try:
        beside.mkdir()
        # "r:" takes uncompressed archives alone, so that nothing can swell.
        with tarfile.open(archive, "r:") as tar:
            members = tar.getmembers()
            for member in track(members, "unpacking", "file", show=progress):
                path = PurePosixPath(member.name)
                if path.name.startswith("._"):
                    continue  # macOS's shadow files
                inside = path.parts[:1] == (folder.name,) and ".." not in path.parts
                plain = member.isdir() or (member.isreg() and not member.issparse())
                if not (inside and plain):
                    raise DataError(
                        f"the archive of {folder.name} has a member {member.name!r} that is not a "
                        f"plain file inside {folder.name}; nothing was unpacked"
                    )
                tar.extract(member, beside, filter="data")
        if not (beside / folder.name / "dataset.json").is_file():
            raise DataError(f"the archive of {folder.name} has no {folder.name}/dataset.json")
        (beside / folder.name).rename(folder)
    except tarfile.TarError as error:
        raise DataError(f"the archive of {folder.name} is not a sound tar: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
