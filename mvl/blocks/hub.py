"""Single tensors of a model on the Hugging Face hub, by byte ranges.

huggingface_hub fetches and keeps the small files, resolves a branch to its commit, and sends the
user's token. It has changed its HTTP client twice, so no exception of a client is named here.
Where a server ignores ranges, its range reader takes a whole file; so ranges are read here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import torch

from mvl.blocks.checkpoints import CONFIG, Checkpoint, FolderCheckpoint, read_tensor
from mvl.errors import BlockError, MvlError
from mvl.files import read_object

#: A commit's hash on the hub.
_COMMIT = "[0-9a-f]{40}"
#: Attempts at one place of a transfer before it is given up, and the wait between them.
_ATTEMPTS = 5
_WAIT_SECONDS = 1.0
_TIMEOUT_SECONDS = 30


class Unreachable(BlockError):
    """The hub or the network does not serve; that may pass by itself."""


class Absent(BlockError):
    """The hub's model has no such file."""


def endpoint() -> str:
    """The hub's address; huggingface_hub reads HF_ENDPOINT when it is imported, mvl at each use."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


@contextlib.contextmanager
def _in_words(address: str) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP client raise into one sentence.

    No other error is attached, since it may hold an address with a signature.
    """
    from huggingface_hub import errors

    try:
        yield
        return
    except MvlError:
        raise
    except Exception as raised:
        # Where the cache cannot serve either, the cause says why the hub was not read.
        local = isinstance(raised, errors.LocalEntryNotFoundError)
        error = (raised.__cause__ or raised) if local else raised
        status = getattr(getattr(error, "response", None), "status_code", None)
    page = f"https://huggingface.co/{address.removeprefix('hub:').partition('@')[0]}"
    host, kind = urlsplit(endpoint()).hostname, BlockError
    unknown = isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError)
    if isinstance(error, errors.HFValidationError):
        text = " does not name a model as OWNER/NAME[@REVISION]"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        kind, text = Unreachable, " cannot be reached: HF_HUB_OFFLINE is set"
    elif isinstance(error, errors.GatedRepoError) or (status in (401, 403) and not unknown):
        text = f" may not be read ({status}): accept its licence at {page}, then log in with "
        text += "`hf auth login` or set HF_TOKEN to a token that may read it"
    elif unknown:
        text = ": there is no such model or revision, or it is private and needs `hf auth login`"
    elif status == 404:
        kind, text = Absent, " has no such file"
    elif status:
        kind, text = Unreachable, f": {host} answered {status}; try again later"
    else:
        reason = type(error).__name__
        kind, text = Unreachable, f": {host} cannot be reached, or is not a hub ({reason})"
    raise kind(f"{address}{text}") from None


def download(repository: str, name: str, revision: str | None = None) -> Path:
    """Path of a small file in Hugging Face's cache, from the hub unless that is up to date.

    Raises:
        BlockError: no access, no such model, or no network and no copy; `Absent`, no such file.
    """
    from huggingface_hub import constants, hf_hub_download

    with _in_words(f"hub:{repository}" + (f"@{revision}" if revision else "")):
        cache = os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE
        options = {"library_name": "mvl", "endpoint": endpoint(), "cache_dir": cache}
        return Path(hf_hub_download(repository, name, revision=revision, **options))


def open_hub(source: str, cache: Path) -> Checkpoint:
    """The checkpoint of "hub:OWNER/NAME[@REVISION]"; a branch is resolved to its commit.

    A block of a named commit that `cache` keeps needs no network. Nor does a model that
    `hf download` has left whole in Hugging Face's cache, which is then read there.
    """
    repository, _, revision = source.removeprefix("hub:").partition("@")
    stem = f"{repository.replace('/', '--')}@"
    if re.fullmatch(_COMMIT, revision):
        for path in sorted(cache.glob(f"{stem}{revision}/layer*/{CONFIG}")):
            config = read_object(path, BlockError)
            return HubCheckpoint(source, revision, cache / f"{stem}{revision}", config)
    try:
        path = download(repository, CONFIG, revision or None)
    except Unreachable as error:
        kept = sorted(path.name.removeprefix(stem) for path in cache.glob(f"{stem}*"))
        remedy = "use package:, path: or random: without network"
        if kept:
            remedy = f"in the cache are hub:{repository}@" + ", @".join(kept)
        raise Unreachable(f"{error}; {remedy}") from None
    except Absent:
        return HubCheckpoint(source, revision or "main", cache, None)
    commit = path.parent.name
    with contextlib.suppress(BlockError):
        whole = FolderCheckpoint(source, path.parent, commit)
        if all((path.parent / file).is_file() for file in whole.names().values()):
            return whole
    return HubCheckpoint(source, commit, cache / f"{stem}{commit}", read_object(path, BlockError))


class HubCheckpoint(FolderCheckpoint):
    """One commit of a model on the hub."""

    def __init__(self, source: str, commit: str, cache: Path, config: dict | None) -> None:
        self.repository = source.removeprefix("hub:").partition("@")[0]
        self._versions = {}
        super().__init__(source, Path(source), commit, config=config, cache=cache)

    def read(
        self, names: Iterable[str], dtype: torch.dtype, partial: BinaryIO | None = None
    ) -> dict[str, torch.Tensor]:
        entries = self.entries(names)
        ordered = sorted(entries.items(), key=lambda item: (item[1].file, item[1].start))
        about = repr((self.revision, ordered, sorted(self._versions.items()))).encode()
        mark = hashlib.sha256(about).hexdigest().encode()
        partial.seek(0)
        if partial.read(len(mark)) != mark:  # new, or of another version of the files
            partial.truncate(0)
            partial.write(mark)
        have = partial.seek(0, os.SEEK_END) - len(mark)
        for _, entry in ordered:
            done = min(have, entry.bytes)
            have -= done
            for chunk in self._bytes(entry.file, entry.start + done, entry.start + entry.bytes):
                partial.write(chunk)
        partial.seek(len(mark))
        return {name: read_tensor(partial, entry).to(dtype) for name, entry in ordered}

    def _json(self, name: str) -> dict | None:
        with contextlib.suppress(Absent):
            return read_object(download(self.repository, name, self.revision), BlockError)

    def _exists(self, pattern: str) -> bool:
        """Whether there is a file of this name; the hub's files are not listed for a pattern."""
        from huggingface_hub import HfApi

        if "*" in pattern:
            return False
        with contextlib.suppress(Absent), _in_words(self.source):
            hub = HfApi(endpoint=endpoint(), library_name="mvl")
            return hub.file_exists(self.repository, pattern, revision=self.revision)
        return False

    def _size(self, file: str) -> int:
        if file not in self._versions:
            with self._range(file, 0, 8):
                pass
        return self._versions[file][1]

    def _check(self, file: str) -> None:
        """The whole file would be needed; what is read of it is checked when it comes."""

    def _bytes(self, file: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes `start` to `stop` in pieces; a broken connection goes on where it broke."""
        failures = 0
        while start < stop:
            with contextlib.suppress(Unreachable), self._range(file, start, stop) as response:
                for chunk in response.iter_bytes():
                    yield chunk[: stop - start]
                    start, failures = start + len(chunk), 0
            if start < stop:
                failures += 1
                if failures == _ATTEMPTS:
                    raise BlockError(
                        f"{self.address}/{file}: the connection broke {_ATTEMPTS} times at byte "
                        f"{start}; run it again, it goes on there"
                    )
                time.sleep(_WAIT_SECONDS * 2 ** (failures - 1))

    @contextlib.contextmanager
    def _range(self, file: str, start: int, stop: int) -> Iterator:
        """The answer to a request of bytes `start` to `stop`, refused before its body comes."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        address = f"{self.address}/{file}"
        with _in_words(self.source):
            url = hf_hub_url(self.repository, file, revision=self.revision, endpoint=endpoint())
            headers = build_hf_headers(library_name="mvl") | {
                "Accept-Encoding": "identity",
                "Range": f"bytes={start}-{stop - 1}",
            }
            options = {"headers": headers, "follow_redirects": True, "timeout": _TIMEOUT_SECONDS}
            with get_session().stream("GET", url, **options) as response:
                hf_raise_for_status(response)
                said = response.headers.get("Content-Range") or ""
                span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", said)
                if response.status_code != 206 or not span or int(span[1]) != start:
                    raise BlockError(
                        f"{address}: the server ignores byte ranges and would send the whole file; "
                        "download the model and use path:FOLDER"
                    )
                # The hub's own answer names commit and ETag; a store elsewhere has others.
                first = (*response.history, response)[0].headers
                tag = first.get("X-Linked-ETag") or first.get("ETag") or ""
                version = (tag.removeprefix("W/").strip('"'), int(span[2]))
                same = version == self._versions.setdefault(file, version)
                if not same or (first.get("X-Repo-Commit") or self.revision) != self.revision:
                    raise BlockError(f"{address} changed on the hub while it was read")
                yield response
