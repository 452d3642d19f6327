"""Fetching a whole file, going on where a fetch was cut off; and room for it on the disk.

Free of torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from nerftrain.data import remote
from nerftrain.data.remote import CHUNK, Origin, RemoteError
from nerftrain.errors import UserError


def part_of(path: Path) -> Path:
    """Name the file that a fetch writes until it is complete."""
    return path.with_name(path.name + ".part")


def fetch(urls: Sequence[str], path: Path, size: int | None, sha256: str | None) -> None:
    """Fetch a file from the first of its addresses that gives it, or the rest of it.

    What has arrived lies in ``path.part``, and beside it what it is a part of. A server that
    ignores ranges, or whose file has changed, starts it anew.

    Args:
        urls: addresses of the same bytes.
        path: where the complete file appears.
        size: in bytes, where it is known beforehand.
        sha256: in hexadecimal, where it is known.

    Raises:
        RemoteError: no address gives it, or it is not the file that was expected.
        UserError: there is no room, or another process is fetching it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, record = part_of(path), _record_of(path)
    with part.open("ab") as file:
        _lock(file, part)
        try:
            _fetch_from_any(urls, file, record, size, sha256)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk
                file.flush()
            if os.fstat(file.fileno()).st_size == 0:  # nothing that could be gone on with
                for path_left in (part, record):
                    path_left.unlink(missing_ok=True)
                remove_if_empty(path.parent)
            raise
    if sha256 and (found := hash_of(part)) != sha256:
        part.unlink()
        record.unlink()
        raise RemoteError(
            f"{path.name} arrived with the SHA-256 {found[:12]}... where {sha256[:12]}... was "
            "expected, and has been removed"
        )
    part.replace(path)
    record.unlink()


def _fetch_from_any(
    urls: Sequence[str], file: IO[bytes], record: Path, size: int | None, sha256: str | None
) -> None:
    known = _read_record(record)
    reasons = []
    # The one that it came from first: its file can be gone on with.
    for url in sorted(urls, key=lambda url: known is not None and url != known.url):
        try:
            _Fetch(url, file, record, size, sha256).run()
            return
        except RemoteError as error:
            reasons.append(str(error))
    raise RemoteError("; ".join(reasons))


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class _Fetch:
    """One address, and the file that takes in what it gives."""

    url: str
    file: IO[bytes]  # open to be appended to
    record: Path
    size: int | None
    sha256: str | None

    def run(self) -> None:
        """Take in the file to its end, opening it again where the connection breaks."""
        failures = 0
        with progress_bar(Path(self.record).stem, self.size) as bar:
            while True:
                before = self._length()
                whole, reason = self._take(bar)
                if whole is not None and self._length() == whole:
                    break
                failures = 0 if self._length() > before else failures + 1
                if failures == remote.ATTEMPTS:
                    raise RemoteError(f"{self.url} {reason}")
                time.sleep(remote.PAUSE)
        self._check_size(Origin(self.url, None, None, self._length()))

    def _take(self, bar: tqdm) -> tuple[int | None, str]:
        """Take in what one connection gives: the size of the whole, and why it ended early."""
        try:
            response, origin = self._open()
        except ConnectionError as error:
            return None, remote.reason_of(error)
        if response is None:  # all of it is there
            return origin.size, ""
        bar.total, bar.n = origin.size, self._length()
        self._check_room(origin)
        reason = "ended before the file did"
        with response:
            while True:
                try:
                    block = response.read(CHUNK)
                except remote.BROKEN as error:
                    return origin.size, remote.reason_of(error)
                if not block:
                    break
                self.file.write(block)
                bar.update(len(block))
        # A server that does not say how long its file is can only be believed.
        return origin.size or self._length(), reason

    def _open(self) -> tuple[http.client.HTTPResponse | None, Origin]:
        """Open the rest of the file where it can be gone on with, else all of it."""
        known, length = _read_record(self.record), self._length()
        if known and length and length == known.size and self._fits(known, known):
            return None, known
        if known and length:
            response = remote.open_range(self.url, f"bytes={length}-", known)
            now = remote.origin_of(self.url, response)
            starts = (response.headers.get("Content-Range") or "").startswith(f"bytes {length}-")
            if response.status == 206 and starts and self._fits(now, known):
                self._check_size(now)
                return response, now
            response.close()
        response = remote.open_range(self.url, None, None)
        now = remote.origin_of(self.url, response)
        self._check_size(now)
        self.file.truncate(0)
        self.record.write_text(json.dumps(asdict(now)), encoding="utf-8")
        return response, now

    def _fits(self, now: Origin, known: Origin) -> bool:
        # With a hash, the rest may come from a mirror: a mixture would not pass.
        mirrored = self.sha256 is not None and now.size == known.size and now.size is not None
        return now.is_state_of(known) or mirrored

    def _check_size(self, origin: Origin) -> None:
        if self.size is not None and origin.size not in (self.size, None):
            raise RemoteError(
                f"{self.url} offers {origin.size} bytes where {self.size} were expected: it is "
                "another file by now"
            )

    def _check_room(self, origin: Origin) -> None:
        check_room(self.record.parent, (origin.size or 0) - self._length())

    def _length(self) -> int:
        self.file.flush()
        return self.file.seek(0, io.SEEK_END)


def progress_bar(name: str, total: int | None) -> tqdm:
    """Make a bar that counts bytes, on a terminal only."""
    return tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=None, dynamic_ncols=True)


def check_room(folder: Path, num_bytes: int) -> None:
    """Check that a disk has room for so many bytes.

    Raises:
        UserError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            f"{folder} has room for {gigabytes(free)} where {gigabytes(num_bytes)} are needed: "
            "make room, or give another data_root="
        )


def remove_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing is."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def gigabytes(num_bytes: int) -> str:
    """Write a number of bytes for people."""
    return f"{tqdm.format_sizeof(num_bytes)}B" if num_bytes >= 1000 else f"{num_bytes} bytes"


def _record_of(path: Path) -> Path:
    return path.with_name(path.name + ".origin")


def _read_record(record: Path) -> Origin | None:
    try:
        return Origin(**json.loads(record.read_bytes()))
    except (OSError, ValueError, TypeError):  # never written, or cut off: nothing is known then
        return None


def _lock(file: IO[bytes], part: Path) -> None:
    """Keep other processes off the file until it is closed; a lock that no crash leaves behind."""
    try:
        import fcntl
    except ImportError:  # Windows keeps others from replacing an open file
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"{part} is being fetched by another process: wait for it") from error
