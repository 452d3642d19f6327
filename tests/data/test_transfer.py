"""What arrives is what the server has, however often it breaks off; what is not is refused."""

import dataclasses
import hashlib
import json
import random

import pytest

from nerftrain.data import remote, transfer
from nerftrain.data.remote import RemoteError
from nerftrain.data.transfer import fetch, part_of
from nerftrain.errors import UserError

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    monkeypatch.setattr(remote, "TIMEOUT", 5.0)


@pytest.fixture
def server(file_server):
    file_server.files["a.zip"] = CONTENT
    return file_server


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def get(server, path, size=None, hashed=None, urls=("a.zip",)) -> None:
    fetch([server.url(url) for url in urls], path, size, hashed)


def left(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def stop_after(monkeypatch, num_bytes: int, chunk: int = 10_000) -> None:
    """Press Ctrl-C when so many bytes have arrived."""
    update, arrived = transfer.tqdm.update, []

    def interrupt(bar, count=1):
        update(bar, count)
        arrived.append(count)
        if sum(arrived) >= num_bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "CHUNK", chunk)
    monkeypatch.setattr(transfer.tqdm, "update", interrupt)


def test_a_file_arrives_whole(server, tmp_path):
    get(server, tmp_path / "sub" / "a.zip", len(CONTENT), sha256(CONTENT))
    assert (tmp_path / "sub" / "a.zip").read_bytes() == CONTENT
    assert left(tmp_path / "sub") == ["a.zip"]


@pytest.mark.parametrize("cuts", [[1], [100_000], [50_000, 0, 0, 120_000, 1]])
def test_a_connection_that_breaks_off_is_gone_on_with(server, tmp_path, cuts):
    server.cuts = cuts
    get(server, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.sent == len(CONTENT)  # no byte twice


# One that is less than a file buffers before it writes, on any Python.
@pytest.mark.parametrize(("stop", "chunk"), [(100_000, 10_000), (1_000, 500)])
def test_a_stopped_fetch_goes_on_and_ends_with_the_same_bytes(
    server, tmp_path, monkeypatch, stop, chunk
):
    with monkeypatch.context() as patch:
        stop_after(patch, stop, chunk)
        with pytest.raises(KeyboardInterrupt):
            get(server, tmp_path / "a.zip")
    assert left(tmp_path) == ["a.zip.origin", "a.zip.part"]
    arrived = part_of(tmp_path / "a.zip").stat().st_size
    assert stop <= arrived < len(CONTENT)
    server.requests.clear()
    get(server, tmp_path / "a.zip", hashed=sha256(CONTENT))
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.requests == [f"bytes={arrived}-"]


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.ranges, server.cuts = False, [100_000, 250_000]
    get(server, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.sent == 350_000 + len(CONTENT)


@pytest.mark.parametrize("length", [300_000, 200_000, 50_000, 400_000])
def test_a_file_that_changed_meanwhile_starts_anew(server, tmp_path, length):
    server.cuts, server.statuses = [100_000], [200, 404]
    with pytest.raises(RemoteError):
        get(server, tmp_path / "a.zip")
    server.files["a.zip"] = changed = random.Random(1).randbytes(length)
    get(server, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == changed


def test_a_part_that_nothing_is_known_of_starts_anew(server, tmp_path):
    part_of(tmp_path / "a.zip").write_bytes(b"something else")
    get(server, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_complete_part_needs_no_further_byte(server, tmp_path):
    with pytest.raises(RemoteError):
        get(server, tmp_path / "a.zip", hashed="0" * 64)
    assert left(tmp_path) == []
    get(server, tmp_path / "a.zip")
    (tmp_path / "a.zip").rename(part_of(tmp_path / "a.zip"))
    url = server.url("a.zip")
    origin = remote.origin_of(url, remote.open_range(url, None, None))
    (tmp_path / "a.zip.origin").write_text(json.dumps(dataclasses.asdict(origin)))
    server.requests.clear()
    get(server, tmp_path / "a.zip")
    assert server.requests == []


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[1:] + CONTENT[:1]])
def test_another_file_than_the_expected_one_is_refused_and_removed(server, tmp_path, content):
    server.files["a.zip"] = content
    with pytest.raises(RemoteError, match="SHA-256"):
        get(server, tmp_path / "a.zip", hashed=sha256(CONTENT))
    assert left(tmp_path) == []


def test_another_size_than_the_expected_one_is_refused_before_it_travels(server, tmp_path):
    with pytest.raises(RemoteError, match="offers 300000 bytes where 299999"):
        get(server, tmp_path / "a.zip", size=299_999)
    assert left(tmp_path) == []


def test_a_server_that_does_not_say_the_size_is_held_to_the_expected_one(server, tmp_path):
    server.says_length = False
    get(server, tmp_path / "a.zip", size=len(CONTENT))
    with pytest.raises(RemoteError, match="offers 300000 bytes"):
        get(server, tmp_path / "b.zip", size=1)


def test_what_is_not_there_names_its_address_and_leaves_nothing(server, tmp_path):
    with pytest.raises(RemoteError, match=r"/b\.zip answers 404"):
        get(server, tmp_path / "sub" / "b.zip", urls=("b.zip",))
    assert left(tmp_path) == []


def test_a_web_page_is_not_taken_for_the_file(server, tmp_path):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(RemoteError, match="web page"):
        get(server, tmp_path / "a.zip")
    assert left(tmp_path) == []


def test_a_server_out_of_order_is_tried_again_and_then_named(server, tmp_path):
    server.statuses = [503, 429]
    get(server, tmp_path / "a.zip")
    server.statuses = [503] * remote.ATTEMPTS
    with pytest.raises(RemoteError, match="answers 503"):
        get(server, tmp_path / "b.zip", urls=("a.zip",))


def test_no_network_names_the_address(tmp_path):
    with pytest.raises(RemoteError, match=r"http://127\.0\.0\.1:9/a\.zip cannot be reached"):
        fetch(["http://127.0.0.1:9/a.zip"], tmp_path / "a.zip", None, None)


def test_a_mirror_stands_in_and_goes_on_where_a_hash_will_tell(server, tmp_path):
    server.files["mirror.zip"] = CONTENT
    get(server, tmp_path / "first.zip", urls=("missing.zip", "mirror.zip"))
    assert (tmp_path / "first.zip").read_bytes() == CONTENT
    server.cuts, server.statuses, server.sent = [100_000], [200, 404], 0
    get(server, tmp_path / "a.zip", hashed=sha256(CONTENT), urls=("a.zip", "mirror.zip"))
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_a_full_disk_is_told_before_anything_travels(server, tmp_path, monkeypatch):
    usage = transfer.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="make room"):
        get(server, tmp_path / "a.zip")
    assert left(tmp_path) == []


def test_two_processes_do_not_write_one_part(server, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with part_of(tmp_path / "a.zip").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            get(server, tmp_path / "a.zip")
        assert left(tmp_path) == ["a.zip.part"]  # which is the other's
    get(server, tmp_path / "a.zip")
