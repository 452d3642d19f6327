"""Where the photographs of a capture without cameras are, and where its cameras are to be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nerftrain.data.capture_formats import CAPTURES
from nerftrain.data.formats import SPLIT_FOLDERS
from nerftrain.data.frames_of_video import VIDEO_SUFFIXES
from nerftrain.errors import UserError
from nerftrain.paths import as_override, check_reach
from nerftrain.scenes.images import Picture, open_image, read_header
from nerftrain.scenes.photos import check_alpha, photo_folder, photo_names

# What cameras and phones write, too, but nothing here reads.
_UNREAD = (
    ".avif",
    ".jxl",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".raf",
    ".rw2",
    ".orf",
)
_LEAST = 3  # photographs, of which depth can be told with any certainty
_EXIF, _MODEL, _FOCAL_LENGTH = 0x8769, 0x0110, 0x920A  # EXIF 2.32, tables 3, 4 and 7


@dataclass(frozen=True)
class Place:
    """What is posed, and where it goes."""

    images: Path  # the folder of photographs; of a film: where its frames go
    out: Path  # the scene's folder
    video: Path | None
    nested: bool = False  # whether photographs in folders of that folder count


@dataclass(frozen=True)
class Photograph:
    """One file, and what tells whose camera's it is."""

    name: str  # of the file in the folder of photographs, as COLMAP writes it
    picture: Picture
    lens: tuple[str, ...]  # photographs that agree in this share one camera

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.picture.width, self.picture.height


def find_place(source: Path, out: Path | None, nested: bool = False) -> Place:
    """Find the photographs that a path means, and the scene's folder if none is given.

    Args:
        source: their folder, or a film.
        out: the scene's folder.
        nested: take photographs in folders of the source, too, however deep.

    Raises:
        UserError: there are none.
    """
    # Absolute, so that "." has a name and a parent; links stay as the user sees them.
    source = Path(os.path.abspath(source))
    folder = Path(os.path.abspath(out)) if out is not None else None
    check_reach(source)
    if nested:
        return _nested_place(source, folder or source)
    if source.is_dir():
        images = photo_folder(source)
        if images is None:
            raise UserError(_no_photographs(source))
        return Place(images, folder or (images.parent if images.name == "images" else images), None)
    if not source.exists():
        raise UserError(f"data pose: {source} does not exist: give photographs or a film")
    if source.suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(
            f"data pose: {source} is neither a folder of photographs nor a film "
            f"({' '.join(VIDEO_SUFFIXES)})"
        )
    folder = folder or source.with_suffix("")
    return Place(folder / "images", folder, source)


def _nested_place(source: Path, out: Path) -> Place:
    if not source.is_dir():
        raise UserError(f"--nested needs a folder of photographs, which {source} is not")
    if not _nested_names(source):
        raise UserError(f"data pose: {source} holds no photographs, nor do folders in it")
    if out == source and (source / "images").is_dir():
        # There training would look for all of them.
        raise UserError(f"{source} has a folder images among others: give another one by --out")
    return Place(source, out, None, nested=True)


def _nested_names(folder: Path) -> list[str]:
    """List the photographs below a folder by their paths from there."""
    names = []
    for place, folders, _ in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        below = Path(place).relative_to(folder)
        names += [(below / name).as_posix() for name in photo_names(Path(place))]
    return sorted(names)


def what_is_unread(folder: Path) -> str | None:
    """Tell of photographs in a folder that are of a kind that is not read, and what helps.

    Those that lie there as JPEG or the like, too, are not meant.
    """
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    read = {os.path.splitext(name)[0] for name in photo_names(folder)}
    unread = [
        name
        for name in names
        if name[0] != "."
        and os.path.splitext(name)[1].lower() in _UNREAD
        and os.path.splitext(name)[0] not in read
    ]
    if not unread:
        return None
    kind, plural = os.path.splitext(unread[0])[1], "s" if len(unread) != 1 else ""
    return (
        f"{len(unread)} photograph{plural} of a kind that is not read, such as {unread[0]}: make "
        f"JPEGs of them, magick mogrify -format jpg *{kind}, or by what shows them"
    )


def _no_photographs(folder: Path) -> str:
    for place in (folder, folder / "images"):
        if unread := what_is_unread(place):
            return f"data pose: {place} holds {unread}"
    seen = [path for path in folder.iterdir() if path.name[0] != "."]
    inside = sorted(path for path in seen if path.is_dir() and photo_folder(path))
    films = sorted(path for path in seen if path.suffix.lower() in VIDEO_SUFFIXES)
    would_work = [str(path) for path in (*inside, *films)][:3]
    if len(inside) > 1:
        would_work.append("all folders in it, --nested")
    return f"data pose: {folder} holds no photographs, nor does a folder images in it: " + (
        f"did you mean {' or '.join(would_work)}?" if would_work else "give a folder that does"
    )


def check_free(place: Place) -> None:
    """Check that there is no scene where one is to be written.

    Raises:
        UserError: there is one.
    """
    out, images = place.out, place.out / "images"
    elsewhere = "or give another folder by --out"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder by --out")
    for kind in (*CAPTURES, *SPLIT_FOLDERS):
        if out.is_dir() and kind.is_marked(out):
            root = as_override("scene.root", out)
            raise UserError(
                f"{out} has cameras already ({kind.mark}): train it, nerftrain scene={kind.kind} "
                f"{root}; to find others, move what is there away, {elsewhere}"
            )
    if (out / "sparse" / "0").exists():
        raise UserError(f"{out / 'sparse' / '0'} is there, but is no model: remove it, {elsewhere}")
    if _needs_link(place) and os.path.lexists(images) and not _same(images, place.images):
        raise UserError(f"{images} is there already, and is not {place.images}: {elsewhere[3:]}")


def link_photographs(place: Place) -> str:
    """Let the scene's folder lead to photographs elsewhere; they are not copied.

    Returns:
        What training has to be told of them: nothing, unless links cannot be made here.
    """
    link = place.out / "images"
    if _needs_link(place) and not os.path.lexists(link):
        try:
            link.symlink_to(place.images, target_is_directory=True)
        except OSError:  # file systems of other worlds, and Windows without the right to
            return f" {as_override('scene.images', place.images)}"
    return ""


def _needs_link(place: Place) -> bool:
    return place.images not in (place.out, place.out / "images")


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def read_photographs(place: Place) -> list[Photograph]:
    """Read the headers of photographs, sorted by name.

    Raises:
        UserError: they are too few, one is damaged, or some have alpha and others not.
    """
    folder = place.images
    names = _nested_names(folder) if place.nested else photo_names(folder)
    # COLMAP takes images as they are stored.
    pictures = [read_header(folder / name, heed_exif=True) for name in names]
    if len(pictures) < _LEAST:
        raise UserError(
            f"{folder} holds {len(pictures)} photograph{'s' if len(pictures) != 1 else ''}: at "
            f"least {_LEAST} are needed, and dozens for a scene that is seen from all around"
        )
    check_alpha(folder, pictures)
    pairs = zip(names, pictures, strict=True)
    return [Photograph(name, picture, _lens(name, picture)) for name, picture in pairs]


def _lens(name: str, picture: Picture) -> tuple[str, ...]:
    """Tell cameras apart: by folder, the size of images and, where files say so, model and zoom."""
    known = os.path.dirname(name), str(picture.width), str(picture.height)
    try:
        with open_image(picture.path) as image:
            exif = image.getexif()
            focal_length = exif.get_ifd(_EXIF).get(_FOCAL_LENGTH)
            return (*known, str(exif.get(_MODEL)), str(focal_length))
    except Exception:  # damaged EXIF raises whatever it hits; the image itself has been read
        return known


def check_same(known: Sequence[tuple[str, tuple[int, int]]], there: Sequence[Photograph]) -> None:
    """Check that what a database knows, names and sizes, is among the photographs.

    Raises:
        UserError: it is not, so that features would be of other images.
    """
    sizes = {photograph.name: photograph.size for photograph in there}
    others = [name for name, size in known if sizes.get(name) != size]
    if others:
        raise UserError(
            f"holds features of {len(others)} images that are not there, or of another size, such "
            f"as {others[0]}: remove it to begin anew"
        )
