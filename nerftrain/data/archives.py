"""Unpacking zip and tar archives of strangers: all names are checked before a byte lands.

Free of torch. A scene appears under its name when all of it is there, and not before.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from nerftrain.data.remote import CHUNK
from nerftrain.data.transfer import check_room, progress_bar, remove_if_empty
from nerftrain.errors import RunError, UserError

# What file managers leave in archives.
_LITTER = re.compile(r"(^|/)(__MACOSX|\.DS_Store|Thumbs\.db|\._[^/]*)(/|$)")
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError)


class DamagedArchiveError(RunError):
    """An archive that does not hold what its table of contents says."""


@dataclass(frozen=True)
class Member:
    """A file or folder in an archive."""

    name: str  # with slashes, as checked by check_names
    kind: str  # "file", "folder" or what it is that is not unpacked
    size: int  # bytes, unpacked
    crc: int | None  # CRC-32 of a zip's member
    open: Callable[[], IO[bytes]]


@contextlib.contextmanager
def opened(file: Path | IO[bytes], name: str) -> Iterator[list[Member]]:
    """Read the table of contents of a zip or tar archive, checked.

    Args:
        file: the archive; tar archives by path only.
        name: what errors call it.

    Raises:
        UserError: it is no archive, or holds what could land elsewhere.
        DamagedArchiveError: while it is open, a member turns out to be damaged.
    """
    try:
        if isinstance(file, Path) and not zipfile.is_zipfile(file):
            with tarfile.open(file) as archive:
                members = list(_tar_members(archive))
                check_names(members, name)
                yield members
        else:
            with zipfile.ZipFile(file) as archive:
                members = list(_zip_members(archive))
                check_names(members, name)
                yield members
    except _DAMAGED as error:
        raise DamagedArchiveError(
            f"{name} is damaged or no zip or tar archive ({error})"
        ) from error
    except (NotImplementedError, RuntimeError) as error:  # another compression, a password
        raise UserError(f"{name} cannot be unpacked ({error}): unpack it by other means") from error


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        kind = "folder" if info.is_dir() else _kind(mode) if stat.S_IFMT(mode) else "file"
        # orig_filename: the other one has been cut at a zero byte.
        name = info.orig_filename.replace("\\", "/")
        yield Member(name, kind, info.file_size, info.CRC, lambda info=info: archive.open(info))


def _kind(mode: int) -> str:
    names = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a link"}
    return names.get(stat.S_IFMT(mode), "a device")


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive.getmembers():
        kind = "file" if info.isreg() else "folder" if info.isdir() else "a device"
        kind = "a link" if info.issym() or info.islnk() else kind
        name = info.name.replace("\\", "/")
        yield Member(name, kind, info.size, None, lambda info=info: _tar_open(archive, info))


def _tar_open(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None  # of a regular file
    return file


def check_names(members: Sequence[Member], archive: str) -> None:
    """Refuse an archive in which any member could land, or point, outside its folder.

    Links are refused altogether: no public dataset needs them, and a chain of harmless ones can
    lead anywhere.

    Raises:
        UserError: it has such a member.
    """
    for member in members:
        path = PurePosixPath(member.name)
        outside = path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", member.name)
        if outside or "\0" in member.name:
            raise UserError(
                f"{archive} holds the path {member.name!r}, which leads out of its folder: it was "
                "not unpacked; get it from its publisher"
            )
        if member.kind not in ("file", "folder"):
            raise UserError(
                f"{archive} holds {member.kind} ({member.name!r}): it was not unpacked; get it "
                "from its publisher, or unpack it by hand"
            )


def select(members: Sequence[Member], prefix: str) -> dict[str, Member]:
    """Choose the files below a folder of an archive: path relative to that folder -> member."""
    files = (member for member in members if member.kind == "file")
    found = {}
    for member in files:
        name = PurePosixPath(member.name).as_posix()  # without ./ and doubled slashes
        if name.startswith(prefix) and not _LITTER.search(name):
            found[name[len(prefix) :]] = member
    return found


def unpack(files: dict[str, Member], folder: Path, keep: bool) -> None:
    """Write the files of a scene, then show them as a folder.

    Args:
        files: what to write, path relative to the folder -> member.
        folder: where they appear, all at once; it must not be there.
        keep: keep what is written when it ends early, and go on from there the next time.

    Raises:
        UserError: there is no room.
        DamagedArchiveError: a file is not what the archive says it is.
    """
    # In a folder of its own, so that nothing takes what is half there for a scene.
    unfinished = folder.parent / ".part" / folder.name
    if not keep:
        shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        missing = {name: m for name, m in files.items() if not _is_there(unfinished / name, m)}
        check_room(unfinished, sum(member.size for member in missing.values()))
        total = sum(member.size for member in files.values())
        with progress_bar(folder.name, total) as bar:
            bar.update(total - sum(member.size for member in missing.values()))
            for name, member in missing.items():
                _write(member, unfinished / name, bar)
    except BaseException:
        if not keep:
            shutil.rmtree(unfinished, ignore_errors=True)
            remove_if_empty(unfinished.parent)
        raise
    unfinished.rename(folder)
    remove_if_empty(unfinished.parent)


def _write(member: Member, path: Path, bar: tqdm) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with member.open() as source, path.open("wb") as target:
            while block := source.read(CHUNK):
                target.write(block)
                bar.update(len(block))
    except BaseException:  # among them a CRC-32 that does not fit, found at the end
        path.unlink(missing_ok=True)
        raise


def _is_there(path: Path, member: Member) -> bool:
    """Tell whether a file has been written before, by its size and its CRC-32."""
    if member.crc is None or not path.is_file() or path.stat().st_size != member.size:
        return False
    crc = 0
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            crc = zlib.crc32(block, crc)
    return crc == member.crc
