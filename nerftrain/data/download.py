"""Bringing public scenes into the data root; free of torch.

An archive whose hash is known is fetched whole, so that the hash can be checked. Of any other only
the files of the wanted scenes travel, by ranges, each checked by its CRC-32; where the server gives
no ranges it is fetched whole as well.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from nerftrain.data.archives import DamagedArchiveError, Member, opened, select, unpack
from nerftrain.data.datasets import ARCHIVES, DOWNLOADS, Archive, look_up
from nerftrain.data.remote import NoRangesError, RemoteError, RemoteFile
from nerftrain.data.transfer import fetch, gigabytes, hash_of, remove_if_empty
from nerftrain.errors import RunError, UserError

Say = Callable[[str], None]


def get(names: Sequence[str], root: Path, say: Say, archives: Sequence[Archive] = ARCHIVES) -> None:
    """Bring the scenes that names mean into the data root, unless they are there.

    Args:
        names: of scene presets or groups.
        root: the data root; made where there is none.
        say: takes a line for the user.
        archives: where to look the names up.

    Raises:
        UserError: a name means nothing, or the data root cannot take the scenes.
        RunError: the scenes cannot be had from where they should be.
    """
    wanted = look_up(names, archives)
    try:
        for archive in archives:
            scenes = [entry.scene for entry in wanted if entry.archive == archive]
            missing = [scene for scene in scenes if not _is_there(archive, scene, root, say)]
            if missing:
                _bring(archive, missing, root, say)
    except OSError as error:
        where = error.filename or root
        raise UserError(
            f"{where} cannot be written ({error.strerror or error}): give another data_root="
        ) from error


def _is_there(archive: Archive, scene: str, root: Path, say: Say) -> bool:
    if found := archive.find(scene, root):
        say(f"{found} is there already")
        return True
    folder = archive.folder(scene, root)
    if folder.exists():
        raise UserError(
            f"{folder} is there but has no {archive.mark}: move or remove it, then try again"
        )
    return False


def _bring(archive: Archive, scenes: list[str], root: Path, say: Say) -> None:
    path = root / DOWNLOADS / archive.file_name
    fetched = False
    try:
        if not path.exists():
            if archive.sha256 is None and _pick(archive, scenes, root, say):
                return
            known = f" ({gigabytes(archive.size)})" if archive.size else ""
            say(f"fetching {archive.file_name}{known} from {archive.urls[0]}")
            fetch(archive.urls, path, archive.size, archive.sha256)
            fetched = True
    except RemoteError as error:
        raise RunError(f"{error}; {by_hand(archive, scenes, root)}") from error
    if not fetched:
        _check_file(archive, path)
    try:
        with opened(path, archive.file_name) as members:
            _unpack_scenes(archive, scenes, root, members, keep=False, say=say)
    except DamagedArchiveError as error:
        raise RunError(f"{error}: remove {path} and try again") from error
    if not fetched or any(not archive.find(scene, root) for scene in archive.scenes):
        say(f"{path} is kept for its other scenes: remove it when none is wanted")
    else:
        path.unlink()
        remove_if_empty(path.parent)


def _pick(archive: Archive, scenes: list[str], root: Path, say: Say) -> bool:
    """Fetch only the files of the scenes, from the first address that gives ranges."""
    reasons = []
    for url in archive.urls:
        try:
            with RemoteFile(url, archive.size) as remote:
                whole = gigabytes(remote.size)
                say(f"fetching {', '.join(scenes)} out of {archive.file_name} ({whole}) at {url}")
                # zipfile expects reads to be as long as it asks for.
                buffered = io.BufferedReader(remote, 1 << 20)
                with opened(buffered, url) as members:
                    _unpack_scenes(archive, scenes, root, members, keep=True, say=say)
                return True
        except NoRangesError:
            continue
        except RemoteError as error:
            reasons.append(str(error))
        except DamagedArchiveError as error:
            reasons.append(str(error))
    if len(reasons) == len(archive.urls):
        raise RemoteError("; ".join(reasons))
    return False


def _unpack_scenes(
    archive: Archive,
    scenes: Sequence[str],
    root: Path,
    members: Sequence[Member],
    keep: bool,
    say: Say,
) -> None:
    for scene in scenes:
        files = select(members, f"{archive.inside}{scene}/")
        if not files:
            raise RunError(
                f"{archive.file_name} has no {archive.inside}{scene}: it is laid out otherwise by "
                f"now, see {archive.page}"
            )
        folder = archive.folder(scene, root)
        unpack(files, folder, keep)
        say(f"{folder}: {len(files)} files, {gigabytes(sum(m.size for m in files.values()))}")


def _check_file(archive: Archive, path: Path) -> None:
    """Check an archive that the user has put there, or that an earlier command has kept."""
    size = path.stat().st_size
    wrong_size = archive.size is not None and size != archive.size
    if wrong_size or (archive.sha256 is not None and hash_of(path) != archive.sha256):
        what = f"has {size} bytes, not {archive.size}" if wrong_size else "has another SHA-256"
        raise UserError(f"{path} {what}: it is another file or damaged; remove it and try again")


def by_hand(archive: Archive, scenes: Sequence[str], root: Path) -> str:
    """Say what to put where without a network."""
    folder = archive.folder(scenes[0], root)
    return (
        f"try again, or bring the file of {archive.urls[0]} from elsewhere as "
        f"{root / DOWNLOADS / archive.file_name} and repeat the command, or put the scene into "
        f"{folder} (about the dataset: {archive.page})"
    )
