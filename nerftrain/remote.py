"""Files on public servers: fetched whole, going on where a fetch was cut off, or read in places.

Free of torch. What a server will not do is a ``RemoteError``; the caller knows the remedy.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO

from tqdm import tqdm

from nerftrain import __version__
from nerftrain.errors import UserError

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3  # in a row that bring no byte
PAUSE = 1.0  # seconds before the next attempt
CHUNK = 1 << 20  # bytes
_BROKEN = (OSError, http.client.HTTPException)  # URLError is an OSError


class RemoteError(Exception):
    """A server that gives no file, or not the one that is expected; names the address."""


class NoRangesError(RemoteError):
    """A server that gives a file whole or not at all."""


@dataclass(frozen=True)
class Origin:
    """What tells a file on a server from what stood there before."""

    url: str
    etag: str | None
    modified: str | None
    size: int | None  # bytes of the whole file

    def is_state_of(self, other: Origin) -> bool:
        """Tell whether both are the same bytes, as far as the server lets one know."""
        return self == other and self.size is not None


def part_of(path: Path) -> Path:
    """Name the file that a fetch writes until it is complete."""
    return path.with_name(path.name + ".part")


# Whole files


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
    try:
        _fetch_part(urls, part, record, size, sha256)
    except BaseException:
        if part.stat().st_size == 0:  # nothing that could be gone on with
            part.unlink()
            record.unlink(missing_ok=True)
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


def _fetch_part(
    urls: Sequence[str], part: Path, record: Path, size: int | None, sha256: str | None
) -> None:
    with part.open("ab") as file:
        _lock(file, part)
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
                if failures == ATTEMPTS:
                    raise RemoteError(f"{self.url} {reason}")
                time.sleep(PAUSE)
        self._check_size(Origin(self.url, None, None, self._length()))

    def _take(self, bar: tqdm) -> tuple[int | None, str]:
        """Take in what one connection gives: the size of the whole, and why it ended early."""
        try:
            response, origin = self._open()
        except ConnectionError as error:
            return None, _reason(error)
        if response is None:  # all of it is there
            return origin.size, ""
        bar.total, bar.n = origin.size, self._length()
        self._check_room(origin)
        reason = "ended before the file did"
        with response:
            while True:
                try:
                    block = response.read(CHUNK)
                except _BROKEN as error:
                    return origin.size, _reason(error)
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
            response = open_range(self.url, f"bytes={length}-", known)
            now = origin_of(self.url, response)
            starts = (response.headers.get("Content-Range") or "").startswith(f"bytes {length}-")
            if response.status == 206 and starts and self._fits(now, known):
                self._check_size(now)
                return response, now
            response.close()
        response = open_range(self.url, None, None)
        now = origin_of(self.url, response)
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


# Requests


def open_range(url: str, wanted: str | None, known: Origin | None) -> http.client.HTTPResponse:
    """Ask for a file, or for a range of its bytes if it is still the known one.

    Raises:
        RemoteError: the server gives no file.
        ConnectionError: it cannot be reached, or is out of order; another attempt may help.
    """
    headers = {"User-Agent": f"nerftrain/{__version__}", "Accept-Encoding": "identity"}
    if wanted:
        headers["Range"] = wanted
        if known and (validator := _validator(known)):
            headers["If-Range"] = validator
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and wanted:  # no such range: the file has become shorter
            return open_range(url, None, None)
        if error.code >= 500 or error.code == 429:
            raise ConnectionError(f"answers {error.code} ({error.reason})") from error
        raise RemoteError(f"{url} answers {error.code} ({error.reason})") from error
    except _BROKEN as error:
        raise ConnectionError(_reason(error)) from error
    # Google Drive and Dropbox answer so when they have a question or a limit is reached.
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise RemoteError(f"{url} answers with a web page (a download limit?) and not the file")
    return response


def origin_of(url: str, response: http.client.HTTPResponse) -> Origin:
    """Read what a response says of the whole file."""
    headers = response.headers
    return Origin(url, headers.get("ETag"), headers.get("Last-Modified"), _whole_size(headers))


def _whole_size(headers: Message) -> int | None:
    if ranged := re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("Content-Range") or ""):
        return int(ranged[1])
    length = headers.get("Content-Length") or ""
    return int(length) if length.isdigit() and not headers.get("Content-Range") else None


def _validator(origin: Origin) -> str | None:
    """Choose what If-Range may hold: weak tags do not promise the same bytes."""
    weak = origin.etag is None or origin.etag.startswith("W/")
    return origin.modified if weak else origin.etag


def _reason(error: BaseException) -> str:
    cause = getattr(error, "reason", error)
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return text if text.startswith(("answers", "cannot")) else f"cannot be reached ({text})"


# Reading in places


class RemoteFile(io.RawIOBase):
    """A file on a server that is read where it is needed, each run of bytes by one request.

    Raises:
        RemoteError: the server gives no ranges, or its file changes or is not the expected one.
    """

    def __init__(self, url: str, size: int | None = None) -> None:
        """Ask the server for the file's size and for a range of it."""
        super().__init__()
        self.url = url
        self._response: http.client.HTTPResponse | None = None
        self._position = self._response_position = 0
        try:
            response = self._connect(0)
        except ConnectionError as error:
            raise RemoteError(f"{url} {_reason(error)}") from error
        self._origin = origin_of(url, response)
        self._response = response
        if self._origin.size is None:
            raise RemoteError(f"{url} does not say how long its file is")
        if size not in (None, self._origin.size):
            self.close()
            raise RemoteError(
                f"{url} offers {self._origin.size} bytes where {size} were expected: it is another "
                "file by now"
            )

    @property
    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self._origin.size or 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be read from any place."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place without asking the server for it yet."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read up to the length of a buffer, going on over broken connections."""
        failures = 0
        while self._position < self.size and len(buffer):
            try:
                response = self._at_position()
                count = response.readinto(buffer)
                reason = "ended before the file did"
            except _BROKEN as error:
                count, reason = 0, _reason(error)
            if count:
                self._position += count
                self._response_position += count
                return count
            self._disconnect()
            failures += 1
            if failures == ATTEMPTS:
                raise RemoteError(f"{self.url} {reason}")
            time.sleep(PAUSE)
        return 0

    def close(self) -> None:
        """Leave the server alone."""
        self._disconnect()
        super().close()

    def _at_position(self) -> http.client.HTTPResponse:
        gap = self._position - self._response_position
        if self._response is not None and 0 < gap <= CHUNK:  # cheaper than another request
            self._response_position += len(self._response.read(gap))
        if self._response is None or self._position != self._response_position:
            self._disconnect()
            response = self._connect(self._position)
            if not origin_of(self.url, response).is_state_of(self._origin):
                response.close()
                raise RemoteError(f"{self.url} has changed meanwhile")
            self._response, self._response_position = response, self._position
        return self._response

    def _connect(self, position: int) -> http.client.HTTPResponse:
        response = open_range(self.url, f"bytes={position}-", None)
        if response.status != 206:
            response.close()
            raise NoRangesError(f"{self.url} gives no parts of its file")
        return response

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
