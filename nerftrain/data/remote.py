"""Files on public servers: asked for by ranges, and read in places without fetching the rest.

Free of torch. What a server will not do is a ``RemoteError``; the caller knows the remedy.
"""

from __future__ import annotations

import http.client
import io
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message

from nerftrain import __version__

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3  # in a row that bring no byte
PAUSE = 1.0  # seconds before the next attempt
CHUNK = 1 << 20  # bytes
BROKEN = (
    OSError,
    http.client.HTTPException,
)  # what a bad connection raises; URLError is the former


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
    except BROKEN as error:
        raise ConnectionError(reason_of(error)) from error
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


def reason_of(error: BaseException) -> str:
    """Say why a server could not be read from, in half a sentence."""
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
            raise RemoteError(f"{url} {reason_of(error)}") from error
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
            except BROKEN as error:
                count, reason = 0, reason_of(error)
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
