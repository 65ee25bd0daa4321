"""Single tensors of a model on the Hugging Face hub, by byte ranges.

huggingface_hub fetches and keeps the small files, resolves a branch to its commit, sends the
user's token, and tries again where a connection breaks.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, errors, hf_hub_download, hf_hub_url, utils

from mvl.blocks.checkpoints import CONFIG, Absent, FolderCheckpoint
from mvl.errors import BlockError

#: Bytes that are asked for at once: what a broken connection costs at most.
PIECE = 16 << 20


@contextlib.contextmanager
def _in_words(source: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence.

    No query of an address is told, since it may be a signature; nor is the error attached.
    """
    try:
        yield
        return
    except Exception as raised:
        # Where there is no copy either, the cause says why the hub was not read.
        local = isinstance(raised, errors.LocalEntryNotFoundError)
        error = (raised.__cause__ or raised) if local else raised
        kind = Absent if isinstance(error, errors.EntryNotFoundError) else BlockError
        reason = re.sub(r"\?\S+", "", " ".join(f"{type(error).__name__}: {error}".split()))
    raise kind(f"{source} at {constants.ENDPOINT}: {reason}") from None


def download(repository: str, name: str, revision: str | None = None) -> Path:
    """Path of a small file in Hugging Face's cache, from the hub unless that is up to date.

    Raises `Absent` if there is no such file, else a `BlockError` if it cannot be had.
    """
    with _in_words(f"hub:{repository}" + (f"@{revision}" if revision else "")):
        return Path(hf_hub_download(repository, name, revision=revision))


def open_hub(source: str, cache: Path) -> FolderCheckpoint:
    """The checkpoint of "hub:OWNER/NAME[@REVISION]"; a branch is resolved to its commit.

    A model that `hf download` has left whole in Hugging Face's cache is read there.
    """
    repository, _, revision = source.removeprefix("hub:").partition("@")
    snapshot = download(repository, CONFIG, revision or None).parent
    with contextlib.suppress(BlockError):
        whole = FolderCheckpoint(source, snapshot, snapshot.name)
        if all((snapshot / file).is_file() for file in whole.names().values()):
            return whole
    return HubCheckpoint(source, repository, snapshot.name, cache)


class HubCheckpoint(FolderCheckpoint):
    """One commit of a model on the hub."""

    def __init__(self, source: str, repository: str, commit: str, cache: Path) -> None:
        self.repository, self.commit = repository, commit
        self.cache = cache / f"{repository.replace('/', '--')}@{commit}"
        super().__init__(source, Path(source), commit)

    def _path(self, name: str) -> Path:
        return download(self.repository, name, self.commit)

    def _check(self, file: str) -> None:
        """Ask for one byte: without ranges the answer is the whole file, which is not read."""
        with _in_words(self.source), utils.http_stream_backoff(**self._get(file, 0, 1)) as answer:
            utils.hf_raise_for_status(answer)
            ranges = answer.status_code == 206
        if not ranges:
            raise BlockError(f"{self.source}: the server of {file} does not send ranges of it")

    def _bytes(self, file: str, start: int, stop: int) -> bytearray:
        content = bytearray()
        while (first := start + len(content)) < stop:
            with _in_words(self.source):
                answer = utils.http_backoff(**self._get(file, first, min(first + PIECE, stop)))
                utils.hf_raise_for_status(answer)
            content += answer.content
        return content

    def _get(self, file: str, start: int, stop: int) -> dict:
        """A request for some bytes of a file."""
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
        url = hf_hub_url(self.repository, file, revision=self.commit)
        return {"method": "GET", "url": url, "headers": utils.build_hf_headers() | headers}
