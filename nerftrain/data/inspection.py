"""Looking a dataset over before hours are spent on it: what it is, and all its faults."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from nerftrain.data import phones
from nerftrain.data.capture_formats import CAPTURES
from nerftrain.data.drawing import Frustum, Print, camera_plot, choose, contact_sheet, thumbnail
from nerftrain.data.formats import SPLIT_FOLDERS, Faults, Format, Offer, View
from nerftrain.errors import UserError
from nerftrain.lens import COEFFICIENTS, as_pinholes
from nerftrain.paths import as_override, check_reach
from nerftrain.scenes.images import decode
from nerftrain.scenes.photos import photo_folder
from nerftrain.scenes.world import move, normalization
from nerftrain.schema import Plan, suggestion
from nerftrain.types import Cameras

_LOADED = 2 << 30  # bytes of pixels up to which a scene is loaded at its full size

FORMATS = (*SPLIT_FOLDERS, *CAPTURES)  # the likeliest first

PlanOf = Callable[[str], Plan]  # the preset of a kind of scene -> how it is loaded


@dataclass
class Inspection:
    """What a folder turned out to be."""

    folder: Path
    kind: Format
    others: list[str]  # kinds that it could be read as too
    downscale: float  # the least that its images have been shrunk by already
    offers: list[Offer]
    views: list[View] = field(repr=False)
    faults: list[str]
    notes: list[str]  # what training would warn of
    pictures: list[Path]  # that were written

    def lines(self) -> list[str]:
        """Describe all but the faults, for the screen."""
        lines = [f"{self.folder}", f"  format   {self.kind.words} (scene={self.kind.kind})"]
        if self.others:
            lines.append(f"  also     {', '.join(self.others)}: look at it by --kind")
        lines += _split_lines(self.views)
        lines += _camera_lines(self.views)
        lines += [f"  {o.key:<8} {o.words}, which {o.override} takes" for o in self.offers]
        lines += [f"  warning  {note}" for note in self.notes]
        lines += [f"  wrote    {path}" for path in self.pictures]
        if self.faults:
            count = len(self.faults)
            lines.append(f"  {count} fault{'s' if count > 1 else ''}, one in a line below")
        else:
            lines.append(
                f"  no fault; train it: nerftrain scene={self.kind.kind} "
                + as_override("scene.root", self.folder)
                + (f" scene.downscale={self.downscale:g}" if self.downscale > 1 else "")
                + "".join(f" {offer.override}" for offer in self.offers)
            )
        return lines


def inspect(folder: Path, out: Path, plan_of: PlanOf, kind: str | None = None) -> Inspection:
    """Read a scene's folder, find all faults that training would hit, and draw what is there.

    Args:
        folder: of any supported kind.
        out: where contact_sheet.png and cameras.png are written.
        plan_of: gives the preset of a kind of scene.
        kind: which to read it as, where it could be several.

    Raises:
        UserError: it is no scene, or the pictures cannot be written.
    """
    found = _recognise(folder, kind)
    chosen = found[0]
    plan = plan_of(chosen.kind)
    factors = chosen.factors(folder)
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, _warnings() as notes:
        faults = Faults(pool)
        views = chosen.gather(folder, faults, plan.values.get("test_every", 0))
        prints = _decode_all(views, faults)
        offers = chosen.offers(folder, views) if views else []
        if not faults.lines:  # what has not been thought of here, training itself finds
            faults.attempt(_load(plan, folder, views, factors, offers).build)
    extent = plan.values.get("extent", 1.0)  # captures are brought into +-1
    title = f"{folder.resolve().name}: {chosen.words}"
    return Inspection(
        folder=folder,
        kind=chosen,
        others=[other.kind for other in found[1:]],
        downscale=factors[0],
        offers=offers,
        views=views,
        faults=list(faults.lines),
        notes=list(dict.fromkeys(notes)),
        pictures=_draw(title, views, prints, chosen, extent, out) if views else [],
    )


def _kinds(folder: Path) -> list[Format]:
    return [kind for kind in FORMATS if kind.is_marked(folder)]


def _recognise(folder: Path, kind: str | None) -> list[Format]:
    check_reach(folder)
    if not folder.is_dir():
        what = "is a file: give its folder" if folder.is_file() else "does not exist"
        raise UserError(f"data check: {folder} {what}")
    kinds = [entry.kind for entry in FORMATS]
    if kind is not None and kind not in kinds:
        raise UserError(f"--kind {kind}: no such kind of scene; {suggestion(kind, kinds)}")
    try:
        found = _kinds(folder)
        entries = sorted(os.listdir(folder))
        below = [path for depth in ("*/", "*/*/") for path in sorted(folder.glob(depth))]
        inside = [path for path in below if path.is_dir() and _kinds(path)]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})") from error
    if kind is not None:
        found = [entry for entry in found if entry.kind == kind]
    if found:
        return found
    looked_for = " or ".join(dict.fromkeys(f.mark for f in FORMATS if kind in (None, f.kind)))
    there = ", ".join(entries[:5]) + (f" and {len(entries) - 5} more" if entries[5:] else "")
    scenes = ", ".join(str(path) for path in inside[:3])
    remedy = f"; scenes in it: {scenes}" if scenes else ""
    if not remedy and (app := phones.mark_of(folder)) is not None:
        take = shlex.join(["nerftrain", "data", "phone", str(folder)])
        remedy = f"; take the cameras of {app} by {take}"
    if not remedy and photo_folder(folder) is not None:
        pose = shlex.join(["nerftrain", "data", "pose", str(folder)])
        remedy = f"; find the cameras of its photographs by {pose}"
    raise UserError(
        f"{folder} is no scene{f' of kind {kind}' if kind else ''}: looked for {looked_for}; found "
        f"{there or 'nothing'}{remedy}"
    )


@contextmanager
def _warnings():
    """Gather what the project warns of, in place of showing it."""
    notes: list[str] = []

    class Gather(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    logger, handler = logging.getLogger("nerftrain"), Gather(logging.WARNING)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def _load(
    plan: Plan,
    folder: Path,
    views: Sequence[View],
    factors: Sequence[float],
    offers: Sequence[Offer],
) -> Plan:
    """Fit the preset to the folder, taking smaller images where memory may not hold the largest."""
    pictures = [view.picture for view in views if view.picture is not None]
    num_bytes = sum(4 * picture.width * picture.height for picture in pictures)
    needed = max(1.0, (num_bytes / _LOADED) ** 0.5) * factors[0]
    downscale = next((factor for factor in factors if factor >= needed), needed)
    changes = {"root": str(folder), "downscale": downscale}
    changes |= {offer.key: offer.value for offer in offers}
    return replace(plan, values={**plan.values, **changes})


def _decode_all(views: Sequence[View], faults: Faults) -> list[Print]:
    """Decode every image, and keep those that the contact sheet shows."""
    splits = {split: [v for v in views if v.split == split] for split in _split_names(views)}
    shown = choose({split: len(members) for split, members in splits.items()})
    kept = {id(splits[split][i]) for split, indices in shown.items() for i in indices}

    def read(view: View):
        assert view.picture is not None
        pixels = decode(view.picture)
        return thumbnail(pixels) if id(view) in kept else None

    readable = [view if view.picture is not None else None for view in views]
    with tqdm(total=len(views), desc="decoding images", disable=None, leave=False) as bar:
        images = faults.attempt_all(read, readable, bar.update)
    by_view = {id(view): image for view, image in zip(views, images, strict=True)}
    return [
        Print(split, _caption(splits[split][i]), by_view[id(splits[split][i])])
        for split, indices in shown.items()
        for i in indices
    ]


def _split_names(views: Sequence[View]) -> list[str]:
    there = {view.split for view in views}
    return [split for split in ("train", "test", "val", "") if split in there]


def _caption(view: View) -> str:
    time = "" if view.time is None else f"  t={view.time:.2f}"
    return view.name.removeprefix("./") + time


def _draw(
    title: str,
    views: Sequence[View],
    prints: Sequence[Print],
    kind: Format,
    extent: float,
    out: Path,
) -> list[Path]:
    sheet = contact_sheet(f"{title}; {len(prints)} of {len(views)} images", prints)
    poses = torch.stack([view.pose for view in views])
    place = "the dataset's coordinates"
    if kind.is_capture:
        try:
            poses = move(poses, normalization(poses, center=True, up=True, scale=True))
            place = "upright, what they look at in the middle"
        except UserError:  # all in one point, which is among the faults
            place = "the dataset's coordinates: they could not be placed"
    frusta = [Frustum(v.split, p, _corners(v)) for v, p in zip(views, poses, strict=True)]
    plot = camera_plot(f"{title}; {place}", frusta, extent)
    try:
        out.mkdir(parents=True, exist_ok=True)
        sheet.save(out / "contact_sheet.png")
        plot.save(out / "cameras.png")
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}): give another folder by --out"
        ) from error
    return [out / "contact_sheet.png", out / "cameras.png"]


def _corners(view: View) -> tuple[float, float, float, float]:
    if view.camera is None:
        return -0.35, 0.35, 0.35, -0.35
    camera = as_pinholes(view.camera)  # what sees all around has no corners
    fx, fy, cx, cy = camera.intrinsics[0].tolist()
    width, height = int(camera.widths[0]), int(camera.heights[0])
    return -cx / fx, (width - cx) / fx, cy / fy, (cy - height) / fy


# Words


def _split_lines(views: Sequence[View]) -> list[str]:
    lines = []
    for split in _split_names(views):
        members = [view for view in views if view.split == split]
        pictures = [view.picture for view in members if view.picture is not None]
        sizes = Counter("{}x{}".format(*picture.shown) for picture in pictures)
        parts = [f"{len(members)} cameras", f"{len(pictures)} images"]
        parts += [f"{count} of {size}" if len(sizes) > 1 else size for size, count in sizes.items()]
        alpha = sum(picture.mode == "RGBA" for picture in pictures)
        parts.append({0: "no alpha", len(pictures): "alpha"}.get(alpha, f"{alpha} with alpha"))
        times = [view.time for view in members if view.time is not None]
        if times:
            parts.append(f"{len(set(times))} times in {min(times):g}..{max(times):g}")
        lines.append(f"  {split or 'no split':<8} {', '.join(parts)}")
    return lines


def _camera_lines(views: Sequence[View]) -> list[str]:
    cameras = [view.camera for view in views if view.camera is not None]
    lenses = Counter(_lens(camera) for camera in cameras)
    lines = []
    for lens, count in lenses.most_common(4):
        lines.append(f"  lens     {lens} ({count})")
    if len(lenses) > 4:
        lines.append(f"           and {len(lenses) - 4} more lenses")
    if views:
        positions = torch.stack([view.pose[:, 3] for view in views])
        spans = [
            f"{axis} {low:.3g}..{high:.3g}"
            for axis, low, high in zip(
                "xyz", positions.amin(0).tolist(), positions.amax(0).tolist(), strict=True
            )
        ]
        lines.append(f"  cameras  {', '.join(spans)} in the dataset's coordinates")
    return lines


def _lens(camera: Cameras) -> str:
    """Describe a camera's lens: fx fy cx cy and, where it bends, k1 k2 p1 p2 k3 k4."""
    if camera.projection == "equirectangular":
        return "equirectangular, a panorama"
    text = _named(("fx", "fy", "cx", "cy"), _rounded(camera.intrinsics[0]))
    text = f"fisheye, {text}" if camera.projection == "fisheye" else text
    if camera.distortion is None or not camera.distortion.any():
        return f"{text}, no distortion"
    return f"{text} {_named(COEFFICIENTS, _rounded(camera.distortion[0], 5))}"


def _named(names: Sequence[str], values: Sequence[float]) -> str:
    return " ".join(f"{name} {value:g}" for name, value in zip(names, values, strict=False))


def _rounded(values: torch.Tensor, digits: int = 2) -> tuple[float, ...]:
    return tuple(round(value, digits) for value in values.tolist())
