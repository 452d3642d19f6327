"""What posing has found, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nerftrain.data.posing_place import Place
from nerftrain.paths import as_override

DATABASE = "colmap.db"
_SHARE = 0.5  # of the photographs; below it the user is warned
# By so much of each other no camera's focal lengths along x and y differ. Of bonsai's photographs
# they came 0.1 % apart where COLMAP was right, 7 to 21 % where it was wrong.
_UNLIKE = 0.03


@dataclass
class Posed:
    """What was found, and where it is."""

    place: Place
    photographs: list[str]
    models: list[dict[str, Any]]  # as colmap_steps describes them, that which was kept first
    advice: str
    keys: str  # what training needs besides the folder
    seconds: float

    def lines(self) -> list[str]:
        """Describe it for the screen."""
        best, total = self.models[0], len(self.photographs)
        lines = [
            f"{self.place.out}",
            f"  cameras  {len(best['names'])} of {total} photographs, {best['points']} points, "
            f"mean reprojection error {best['error']:.2f} pixels",
            *map(_lens_line, best["cameras"][:3]),
        ]
        if len(best["cameras"]) > 3:
            lines.append(f"           and {len(best['cameras']) - 3} more lenses")
        if out := self.left_out():
            more = f" and {len(out) - 5} more" if len(out) > 5 else ""
            lines.append(f"  left out {', '.join(out[:5])}{more}")
        if others := self._dropped():
            lines.append(
                f"  dropped  smaller models that do not hang together with this one, of "
                f"{', '.join(map(str, others))} more photographs"
            )
        lines.append(f"  kept     {DATABASE}, features and matches: remove it when all is well")
        lines.append(f"  {self.seconds:.0f} seconds")
        root = as_override("scene.root", self.place.out)
        lines.append(f"train it: nerftrain scene=colmap {root}{self.keys}")
        return lines

    def left_out(self) -> list[str]:
        """Name the photographs that have no camera."""
        placed = set(self.models[0]["names"])
        return [name for name in self.photographs if name not in placed]

    def _dropped(self) -> list[int]:
        """Count what each of the other models has placed that this one has not."""
        left_out = set(self.left_out())
        counts = (len(left_out.intersection(model["names"])) for model in self.models[1:])
        return [count for count in counts if count]

    def warnings(self) -> list[str]:
        """Say what is wrong with it, though it can be trained."""
        placed, total = len(self.models[0]["names"]), len(self.photographs)
        found = []
        if placed < _SHARE * total:
            found.append(
                f"only {placed} of {total} photographs have found their cameras: {self.advice}"
            )
        for camera in self.models[0]["cameras"]:
            fx, fy = (camera["numbers"].get(name, 1.0) for name in ("fx", "fy"))
            if abs(fx / fy - 1) > _UNLIKE:
                found.append(
                    f"a lens has unlike focal lengths, fx {fx:.4g} and fy {fy:.4g}, as no camera "
                    f"has unless its images were stretched: cameras may be wrong; {self.advice}"
                )
                break
        return found


def _lens_line(camera: dict[str, Any]) -> str:
    numbers = " ".join(f"{name} {value:.5g}" for name, value in camera["numbers"].items())
    return f"  lens     {camera['model']} {camera['size']} {numbers} ({camera['n']})"
