"""Nothing leaves the folder that an archive is unpacked into, and nothing half is shown."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from nerftrain.data import archives
from nerftrain.data.archives import DamagedArchiveError, opened, select, unpack
from nerftrain.errors import UserError

FILES = {
    "nerf/lego/transforms_train.json": b"{}",
    "nerf/lego/train/r_0.png": b"pixels" * 1000,
    "nerf/lego/train/r_1.png": b"more pixels" * 1000,
    "nerf/legoland/r_0.png": b"another scene",
    "__MACOSX/nerf/lego/._r_0.png": b"litter",
    "nerf/lego/train/.DS_Store": b"litter",
}
SCENE = {"transforms_train.json", "train/r_0.png", "train/r_1.png"}


def write_zip(path: Path, files: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], types: dict[str, bytes] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = (types or {}).get(name, tarfile.REGTYPE)
            if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = content.decode()
                info.size = 0
            archive.addfile(info, io.BytesIO(content))
    return path


def unpack_lego(archive: Path, folder: Path, keep: bool = False) -> None:
    with opened(archive, archive.name) as members:
        unpack(select(members, "nerf/lego/"), folder, keep)


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


@pytest.fixture(params=["zip", "tar"])
def archive(request, tmp_path) -> Path:
    write = write_zip if request.param == "zip" else write_tar
    return write(tmp_path / f"a.{request.param}", FILES)


def test_the_wanted_scene_and_no_more_is_unpacked(archive, tmp_path):
    unpack_lego(archive, tmp_path / "out" / "lego")
    assert files_below(tmp_path / "out") == {f"lego/{name}" for name in SCENE}
    expected = FILES["nerf/lego/train/r_1.png"]
    assert (tmp_path / "out" / "lego" / "train" / "r_1.png").read_bytes() == expected
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lego"]


def refused(archive: Path, folder: Path) -> str:
    """The text of the error; nothing may have been written anywhere."""
    before = files_below(folder)
    with pytest.raises(UserError) as caught:
        unpack_lego(archive, folder / "sub" / "lego")
    assert files_below(folder) == before
    assert not (folder / "sub").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


ESCAPES = [
    "../evil",
    "nerf/lego/../../../evil",
    "/etc/evil",
    "nerf/lego/..",
    "..\\evil",
    "nerf\\lego\\..\\..\\..\\evil",
    "C:\\evil",
    "c:evil",
    "\\\\server\\evil",
]


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("name", ESCAPES)
def test_a_path_that_escapes_is_refused(tmp_path, write, name):
    text = refused(write(tmp_path / "a.archive", FILES | {name: b"evil"}), tmp_path)
    assert "leads out of its folder" in text
    assert "a.archive" in text


def test_a_name_cut_by_a_zero_byte_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", FILES | {"nerf/lego/xx.png": b"evil"})
    path.write_bytes(path.read_bytes().replace(b"nerf/lego/xx.png", b"nerf/lego/x\0.png"))
    assert "leads out" in refused(path, tmp_path)


@pytest.mark.parametrize(
    ("mode", "what"),
    [(stat.S_IFLNK, "a link"), (stat.S_IFCHR, "a device"), (stat.S_IFIFO, "a device")],
)
def test_links_and_devices_in_a_zip_are_refused(tmp_path, mode, what):
    name = "nerf/lego/train"
    path = write_zip(tmp_path / "a.zip", {name: b"/etc"}, {name: mode | 0o777})
    assert what in refused(path, tmp_path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.BLKTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    name = "nerf/lego/train"
    path = write_tar(tmp_path / "a.tar", {name: b"/etc"}, {name: kind})
    assert "was not unpacked" in refused(path, tmp_path)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(b"more pixels")
    content[place : place + 4] = b"less"
    path.write_bytes(content)


def test_a_damaged_file_leaves_nothing(tmp_path):
    path = write_zip(tmp_path / "a.zip", FILES)
    damage(path)
    with pytest.raises(DamagedArchiveError, match=r"a\.zip is damaged"):
        unpack_lego(path, tmp_path / "out" / "lego")
    assert files_below(tmp_path / "out") == set()


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100])
def test_what_is_no_archive_is_told(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DamagedArchiveError, match="damaged or no zip or tar"):
        unpack_lego(tmp_path / "a.zip", tmp_path / "lego")


def test_a_cut_off_archive_is_told(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DamagedArchiveError):
        unpack_lego(archive, tmp_path / "out" / "lego")
    assert files_below(tmp_path / "out") == set()


def test_a_zip_with_a_password_is_told(tmp_path):
    path = write_zip(tmp_path / "a.zip", FILES)
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + place] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack_lego(path, tmp_path / "out" / "lego")


def stop_after_files(monkeypatch, count: int) -> None:
    write, written = archives._write, []

    def interrupt(*arguments):
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(arguments)
        write(*arguments)

    monkeypatch.setattr(archives, "_write", interrupt)


def test_an_interruption_leaves_nothing(archive, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after_files(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            unpack_lego(archive, tmp_path / "out" / "lego")
    assert list((tmp_path / "out").iterdir()) == []
    unpack_lego(archive, tmp_path / "out" / "lego")
    assert files_below(tmp_path / "out" / "lego") == SCENE


def test_what_is_kept_of_an_interruption_is_no_scene_and_is_not_written_again(
    tmp_path, monkeypatch
):
    path = write_zip(tmp_path / "a.zip", FILES)
    with monkeypatch.context() as patch:
        stop_after_files(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            unpack_lego(path, tmp_path / "out" / "lego", keep=True)
    assert not (tmp_path / "out" / "lego").exists()
    kept = tmp_path / "out" / ".part" / "lego"
    assert files_below(kept) == {"transforms_train.json", "train/r_0.png"}
    (kept / "train" / "r_0.png").write_bytes(b"PIXELS" * 1000)  # the size alone is right
    written = []
    write = archives._write
    monkeypatch.setattr(archives, "_write", lambda *a: (written.append(a[1].name), write(*a)))
    unpack_lego(path, tmp_path / "out" / "lego", keep=True)
    assert written == ["r_0.png", "r_1.png"]
    assert files_below(tmp_path / "out") == {f"lego/{name}" for name in SCENE}
    content = (tmp_path / "out" / "lego" / "train" / "r_0.png").read_bytes()
    assert content == FILES["nerf/lego/train/r_0.png"]


def test_a_full_disk_is_told_before_anything_is_written(archive, tmp_path, monkeypatch):
    usage = archives.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("nerftrain.data.transfer.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="make room"):
        unpack_lego(archive, tmp_path / "out" / "lego")
    assert files_below(tmp_path / "out") == set()
