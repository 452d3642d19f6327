"""COLMAP's steps, each run by ``python -m nerftrain.data.colmap_steps`` in a process of its own.

COLMAP cannot be interrupted and talks on stderr. A process can be ended at any moment, and what it
says goes where its caller wants. It imports no more than pycolmap, so that it starts at once.

On stdin comes one line, the job as JSON, and then nothing: where stdin ends, the caller is gone. On
stdout go the words of `REPORTS` as it proceeds, and last a line of JSON.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

REPORTS = STARTED, PLACED = "started", "placed"  # a model with its first two images; one more image
OVERLAP = 10  # each image is paired with so many that follow it, and with the 2^i-th, i < OVERLAP
_MAX_SIDE = 1600  # pixels: of larger images a smaller copy is searched for features
_MAX_SIDE_AROUND = 3200  # of panoramas, which have 360 degrees on it
_BLOCK = 10  # images: blocks of pairs are kept or lost whole, and counted whole
# Ceres' own default. COLMAP's is 0, and most of its time goes to steps that change nothing: with 40
# photographs of bonsai twice the time for the same points and the same error.
_TOLERANCE = 1e-6
_SEED = 0
# Of a fisheye whose EXIF does not tell: 150 degrees over the diagonal. Any guess from half of it to
# two and a half times as much led to the same lens.
_FISHEYE_ANGLE = math.radians(150)
_FOCAL_FACTOR = 1.2  # COLMAP's own guess for other lenses, in longer sides

Report = Callable[[str], None]
Job = dict[str, Any]


def main() -> None:
    """Do the job that stdin names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller's to answer
    report = _reporter()
    job = json.loads(sys.stdin.buffer.readline())
    import pycolmap

    # Not before: on Windows a thread that reads stdin lets numpy's import wait for ever.
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    pycolmap.set_random_seed(_SEED)  # without it RANSAC differs from run to run
    report(json.dumps(_STEPS[job["step"]](pycolmap, job, report)))
    os._exit(0)  # nothing is left to be done, and the thread that waits would be in the way


def _reporter() -> Report:
    """Keep stdout for reports: what else is printed goes to stderr."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(line: str) -> None:
        stream.write(f"{line}\n")
        stream.flush()

    return report


def _end_with_the_caller() -> None:
    # Not sys.stdin, whose lock would be held at the end.
    while os.read(0, 1):
        pass
    os._exit(1)


def _extract(pycolmap: ModuleType, job: Job, _: Report) -> None:
    """Find the features of batches of images: all of a batch share a camera."""
    model = job["camera_model"]
    if Path(job["database"]).exists():
        _change_cameras(pycolmap, job["database"], model)
    features = pycolmap.FeatureExtractionOptions()
    features.max_image_size = _MAX_SIDE_AROUND if _kind(model) == "panorama" else _MAX_SIDE
    for batch in job["batches"]:
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = model
        if batch["masks"] is not None:
            reader.mask_path = batch["masks"]
        if batch["camera_id"] is not None:
            reader.existing_camera_id = batch["camera_id"]
        pycolmap.extract_features(
            job["database"],
            batch["folder"],
            batch["names"],
            camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=reader,
            extraction_options=features,
        )
    if Path(job["database"]).exists():
        _vouch_for_fisheyes(pycolmap, job["database"])


def _change_cameras(pycolmap: ModuleType, path: str, model: str) -> None:
    """Turn the cameras of an earlier run into another model: features and matches do not mind."""
    database = pycolmap.Database.open(path)
    for old in database.read_all_cameras():
        if old.model.name != model:
            wanted = pycolmap.CameraModelId.__members__[model]
            focal, known = _FOCAL_FACTOR * max(old.width, old.height), False
            before, after = _kind(old.model.name), _kind(model)
            if before != after:
                # What was found to agree with a lens of one kind need not with one of another.
                database.clear_two_view_geometries()
            # Asked for a panorama's focal length, COLMAP 4.2 ends the process.
            if before != "panorama" and (before == after or not _is_vouched(old)):
                focal, known = old.mean_focal_length(), old.has_prior_focal_length
            new = pycolmap.Camera.create_from_model_id(
                old.camera_id, wanted, focal, old.width, old.height
            )
            new.has_prior_focal_length = known
            database.update_camera(new)
    database.close()


def _vouch_for_fisheyes(pycolmap: ModuleType, path: str) -> None:
    """Give fisheyes a focal length that counts as known where it is not.

    Without one COLMAP looks for a fundamental matrix, which only pinholes have, and finds no pair.
    """
    database = pycolmap.Database.open(path)
    for camera in database.read_all_cameras():
        if _kind(camera.model.name) == "fisheye" and not camera.has_prior_focal_length:
            focal = _fisheye_focal(camera)
            new = pycolmap.Camera.create_from_model_id(
                camera.camera_id, camera.model, focal, camera.width, camera.height
            )
            new.has_prior_focal_length = True
            database.update_camera(new)
    database.close()


def _kind(model: str) -> str:
    if model.endswith("FISHEYE"):
        return "fisheye"
    return "panorama" if model == "EQUIRECTANGULAR" else "pinhole"


def _is_vouched(camera: Any) -> bool:
    """Tell whether a camera's focal length is our own guess."""
    is_fisheye = _kind(camera.model.name) == "fisheye"
    return is_fisheye and math.isclose(camera.mean_focal_length(), _fisheye_focal(camera))


def _fisheye_focal(camera: Any) -> float:
    return math.hypot(camera.width, camera.height) / _FISHEYE_ANGLE


def _match(pycolmap: ModuleType, job: Job, _: Report) -> None:
    """Match all pairs of images, or those of neighbours by name."""
    if job["pairs"] == "all":
        options = pycolmap.ExhaustivePairingOptions()
        options.block_size = _BLOCK
        pycolmap.match_exhaustive(job["database"], pairing_options=options)
        return
    options = pycolmap.SequentialPairingOptions()
    options.overlap = OVERLAP
    for quadratic in (False, True):  # the second alone would leave out most neighbours
        options.quadratic_overlap = quadratic
        pycolmap.match_sequential(job["database"], pairing_options=options)


def _map(pycolmap: ModuleType, job: Job, report: Report) -> list[dict[str, Any]]:
    """Place images one by one, write the largest model, and describe all, that one first."""
    options = pycolmap.IncrementalPipelineOptions()
    options.image_names = job["names"]
    options.ba_global_function_tolerance = _TOLERANCE
    options.random_seed = _SEED
    models = pycolmap.incremental_mapping(
        job["database"],
        job["folder"],
        job["work"],
        options,
        initial_image_pair_callback=lambda: report(STARTED),
        next_image_callback=lambda: report(PLACED),
    )
    ordered = sorted(models.values(), key=lambda model: model.num_reg_images(), reverse=True)
    if ordered:
        Path(job["model"]).mkdir()
        ordered[0].write(job["model"])
    return [_describe(model) for model in ordered]


def _describe(model: Any) -> dict[str, Any]:
    images = [model.image(i) for i in model.reg_image_ids()]
    cameras = []
    for camera in model.cameras.values():
        count = sum(image.camera_id == camera.camera_id for image in images)
        names = [name.strip() for name in camera.params_info.split(",")]
        numbers = dict(zip(names, map(float, camera.params), strict=True))
        size = f"{camera.width}x{camera.height}"
        cameras.append({"model": camera.model.name, "size": size, "n": count, "numbers": numbers})
    return {
        "names": sorted(image.name for image in images),
        "error": float(model.compute_mean_reprojection_error()),
        "points": int(model.num_points3D()),
        "cameras": [camera for camera in cameras if camera["n"]],
    }


_STEPS: dict[str, Callable[[ModuleType, Job, Report], Any]] = {
    "extract": _extract,
    "match": _match,
    "map": _map,
}

if __name__ == "__main__":
    main()
