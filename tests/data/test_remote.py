"""A file on a server reads like the file itself, or is refused."""

import io
import random

import pytest

from nerftrain.data import remote
from nerftrain.data.remote import NoRangesError, RemoteError, RemoteFile

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    monkeypatch.setattr(remote, "TIMEOUT", 5.0)


@pytest.fixture
def server(file_server):
    file_server.files["a.zip"] = CONTENT
    return file_server


def test_a_remote_file_reads_like_the_file_itself(server):
    server.cuts = [70_000, 3]
    local, chance = io.BytesIO(CONTENT), random.Random(2)
    with RemoteFile(server.url("a.zip"), len(CONTENT)) as raw:
        remote_file = io.BufferedReader(raw, 5000)
        for _ in range(40):
            place, count = chance.randrange(len(CONTENT) + 10), chance.randrange(20_000)
            assert remote_file.seek(place) == local.seek(place)
            assert remote_file.read(count) == local.read(count)
        assert remote_file.seek(-100, io.SEEK_END) == len(CONTENT) - 100
        assert remote_file.read() == CONTENT[-100:]


def test_reading_on_takes_one_request(server):
    with RemoteFile(server.url("a.zip")) as raw:
        assert io.BufferedReader(raw, 5000).read() == CONTENT
    assert server.requests == ["bytes=0-"]


def test_a_server_without_ranges_cannot_be_read_in_places(server):
    server.ranges = False
    with pytest.raises(NoRangesError):
        RemoteFile(server.url("a.zip"))


def test_a_remote_file_of_another_size_or_that_changes_is_refused(server):
    with pytest.raises(RemoteError, match="were expected"):
        RemoteFile(server.url("a.zip"), 5)
    with RemoteFile(server.url("a.zip")) as raw:
        server.files["a.zip"] = CONTENT[::-1]
        raw.seek(0, io.SEEK_END)
        raw.seek(5)
        raw._disconnect()
        with pytest.raises(RemoteError, match="changed meanwhile"):
            raw.read(10)
