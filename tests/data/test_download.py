"""From the address to the folder that a loader reads, with interruptions, and without a network."""

import dataclasses
import functools
import hashlib
import io
import random
import zipfile
from pathlib import Path

import pytest

from nerftrain.cli import main
from nerftrain.data import archives as unpacking
from nerftrain.data import download, remote
from nerftrain.data.datasets import Archive
from nerftrain.errors import RunError, UserError

SCENES = ("lego", "ship")


def zipped(extra: dict[str, bytes] | None = None) -> bytes:
    chance = random.Random(0)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for scene in SCENES:
            archive.writestr(f"nerf_synthetic/{scene}/transforms_train.json", "{}")
            for index in range(5):
                name = f"nerf_synthetic/{scene}/train/r_{index}.png"
                archive.writestr(name, chance.randbytes(40_000))
        archive.writestr("nerf_synthetic/ship/large.bin", chance.randbytes(3_000_000))
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return target.getvalue()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.0)


@pytest.fixture
def archive(file_server) -> Archive:
    """An archive without a known hash: only what is wanted travels."""
    file_server.files["nerf.zip"] = zipped()
    return Archive(
        file_name="nerf.zip",
        urls=(file_server.url("nerf.zip"),),
        page="https://example.org/nerf",
        group="blender",
        scenes=SCENES,
        inside="nerf_synthetic/",
        mark="transforms_train.json",
        elsewhere=("nerf_synthetic",),
    )


@pytest.fixture
def hashed(archive, file_server) -> Archive:
    """The same with a hash: it travels whole."""
    content = file_server.files["nerf.zip"]
    return dataclasses.replace(
        archive, sha256=hashlib.sha256(content).hexdigest(), size=len(content)
    )


def get(archive: Archive, root: Path, *names: str) -> str:
    lines: list[str] = []
    download.get(names or ("lego",), root, lines.append, [archive])
    return "\n".join(lines)


def below(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


LEGO = sorted(
    ["blender/lego/transforms_train.json", *(f"blender/lego/train/r_{i}.png" for i in range(5))]
)


def test_only_the_wanted_scene_travels(archive, file_server, tmp_path):
    said = get(archive, tmp_path)
    assert below(tmp_path) == LEGO
    assert f"{tmp_path / 'blender' / 'lego'}: 6 files" in said
    # The others follow it in the archive: what a server has sent before it is told to stop counts.
    assert not any("large" in name for name in below(tmp_path))


def test_what_is_there_is_not_fetched_again(archive, file_server, tmp_path):
    get(archive, tmp_path)
    file_server.requests.clear()
    assert "is there already" in get(archive, tmp_path)
    assert file_server.requests == []
    (tmp_path / "blender").rename(tmp_path / "nerf_synthetic")
    assert "nerf_synthetic/lego is there already" in get(archive, tmp_path)


def test_a_folder_of_the_users_is_not_touched(archive, tmp_path):
    (tmp_path / "blender" / "lego").mkdir(parents=True)
    (tmp_path / "blender" / "lego" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="move or remove it"):
        get(archive, tmp_path)
    assert below(tmp_path) == ["blender/lego/notes.txt"]


def test_a_known_hash_is_checked_and_the_rest_kept_for_the_other_scenes(
    hashed, file_server, tmp_path
):
    assert "kept for its other scenes" in get(hashed, tmp_path)
    assert below(tmp_path) == sorted([*LEGO, "downloads/nerf.zip"])
    file_server.requests.clear()
    get(hashed, tmp_path, "ship")
    assert file_server.requests == []


def test_the_archive_goes_when_all_its_scenes_are_there(hashed, tmp_path):
    get(hashed, tmp_path, "blender")
    assert not (tmp_path / "downloads").exists()
    assert {name.split("/")[1] for name in below(tmp_path)} == set(SCENES)


def test_an_archive_with_another_hash_is_refused(hashed, file_server, tmp_path):
    file_server.files["nerf.zip"] = file_server.files["nerf.zip"][:-1] + b"\1"
    with pytest.raises(RunError, match="SHA-256") as caught:
        get(hashed, tmp_path)
    assert "\n" not in str(caught.value)
    assert below(tmp_path) == []


def test_an_archive_brought_by_hand_needs_no_network(hashed, file_server, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "nerf.zip").write_bytes(file_server.files["nerf.zip"])
    get(hashed, tmp_path)
    assert file_server.requests == []
    assert set(LEGO) <= set(below(tmp_path))


@pytest.mark.parametrize(("change", "text"), [(b"\1", "another SHA-256"), (b"", "bytes, not")])
def test_another_file_brought_by_hand_is_refused(hashed, file_server, tmp_path, change, text):
    (tmp_path / "downloads").mkdir()
    content = file_server.files["nerf.zip"][:-1] + change
    (tmp_path / "downloads" / "nerf.zip").write_bytes(content)
    with pytest.raises(UserError, match=text):
        get(hashed, tmp_path)


def test_a_server_without_ranges_gives_the_archive_whole(archive, file_server, tmp_path):
    file_server.ranges = False
    get(archive, tmp_path)
    assert set(LEGO) <= set(below(tmp_path))


@pytest.mark.parametrize("kind", ["archive", "hashed"])
def test_a_path_that_escapes_is_refused_and_nothing_is_unpacked(
    kind, request, file_server, tmp_path
):
    content = zipped({"nerf_synthetic/lego/../../../../evil.txt": b"evil"})
    archive = request.getfixturevalue(kind)
    file_server.files["nerf.zip"] = content
    if archive.sha256:
        digest = hashlib.sha256(content).hexdigest()
        archive = dataclasses.replace(archive, sha256=digest, size=len(content))
    with pytest.raises(UserError, match="leads out of its folder"):
        get(archive, tmp_path / "root")
    assert below(tmp_path) in ([], ["root/downloads/nerf.zip"])


def test_a_scene_that_moved_within_the_archive_is_told(archive, tmp_path):
    moved = dataclasses.replace(archive, inside="elsewhere/")
    with pytest.raises(RunError, match="has no elsewhere/lego"):
        get(moved, tmp_path)
    assert below(tmp_path) == []


def stop_at_file(monkeypatch, name: str) -> None:
    write = unpacking._write

    def interrupt(member, path, bar):
        if path.name == name:
            raise KeyboardInterrupt
        write(member, path, bar)

    monkeypatch.setattr(unpacking, "_write", interrupt)


@pytest.mark.parametrize("kind", ["archive", "hashed"])
def test_an_interruption_shows_no_scene_and_ends_with_the_same_files(
    kind, request, tmp_path, monkeypatch
):
    archive = request.getfixturevalue(kind)
    with monkeypatch.context() as patch:
        stop_at_file(patch, "r_3.png")
        with pytest.raises(KeyboardInterrupt):
            get(archive, tmp_path / "a")
    assert archive.find("lego", tmp_path / "a") is None
    get(archive, tmp_path / "a")
    get(archive, tmp_path / "b")
    assert below(tmp_path / "a") == below(tmp_path / "b")
    for name in LEGO:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_root_that_cannot_be_written_is_told(archive, tmp_path):
    (tmp_path / "root").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        get(archive, tmp_path / "root")


# The command line


@pytest.fixture
def cli(archive, monkeypatch):
    monkeypatch.delenv("NERFTRAIN_DATA", raising=False)
    whole = functools.partial(download.get, archives=[archive])
    monkeypatch.setattr(download, "get", whole)
    return lambda *arguments: main(["data", *arguments])


def test_the_data_root_comes_from_a_key_an_option_or_the_environment(cli, tmp_path, monkeypatch):
    assert cli("get", "lego", f"data_root={tmp_path / 'a'}") == 0
    assert cli("get", "lego", "--root", str(tmp_path / "b")) == 0
    monkeypatch.setenv("NERFTRAIN_DATA", str(tmp_path / "c"))
    assert cli("get", "lego") == 0
    assert below(tmp_path / "a") == below(tmp_path / "b") == below(tmp_path / "c") == LEGO


def one_line(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ([], "get, pose, phone, check"),
        (["got"], "did you mean data get?"),
        (["get"], "which scenes?"),
        (["get", "lego"], "data_root=PATH"),
        (["get", "lego", "root=x"], "only data_root=PATH"),
        (["get", "leggo", "data_root=x"], "did you mean lego?"),
        (["get", "lego", "--rot", "x"], "--help"),
    ],
)
def test_a_mistake_gets_one_line(cli, capsys, arguments, remedy):
    assert cli(*arguments) == 2
    assert remedy in one_line(capsys)


def test_without_a_network_one_line_says_what_to_put_where(
    cli, archive, file_server, tmp_path, capsys
):
    file_server.files.clear()
    assert cli("get", "lego", f"data_root={tmp_path}") == 1
    line = one_line(capsys)
    assert archive.urls[0] in line
    assert str(tmp_path / "downloads" / "nerf.zip") in line
    assert str(tmp_path / "blender" / "lego") in line
    assert below(tmp_path) == []


def test_an_interruption_says_how_to_go_on(cli, tmp_path, capsys, monkeypatch):
    stop_at_file(monkeypatch, "r_3.png")
    assert cli("get", "lego", f"data_root={tmp_path}") == 130
    err = capsys.readouterr().err
    assert f"nerftrain data get lego data_root={tmp_path}" in err


def test_fetching_loads_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from nerftrain.data import download; from nerftrain.cli import main;"
        "main(['data', '--help']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
