"""A run at Weights & Biases, for teams that compare runs in a browser: ``logger=wandb``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

from nerftrain import report
from nerftrain.errors import UserError
from nerftrain.video import to_uint8

_ID = "wandb/id.txt"  # in the run's folder: what goes on is the same run there, too


class WeightsAndBiases:
    """Scalars, images, the config and the final figures, sent to wandb or kept for ``wandb sync``.

    What is compared lies against ``step``; ``seconds`` of training is a figure that can be chosen
    in its place. A run that goes on from an earlier checkpoint has two values at the steps between.
    """

    def __init__(
        self,
        project: str,
        entity: str | None,
        group: str | None,
        name: str | None,
        tags: Sequence[str],
        mode: Literal["online", "offline"] | None,
    ) -> None:
        """Keep what the run will be filed under; nothing is sent before `open`.

        Args:
            project: that the run belongs to.
            entity: the user or team; None is wandb's own default.
            group: of runs that are shown together.
            name: None is the end of the path of the run's folder.
            tags: of the run.
            mode: ``offline`` keeps everything in the run's folder; None is what WANDB_MODE says,
                else ``online``.
        """
        self.filed_under = {"project": project, "entity": entity, "group": group, "mode": mode}
        self.name, self.tags = name, list(tags)
        self._run: Any = None

    def open(
        self, run_dir: Path, resumed_step: int | None = None, resumed_seconds: float = 0.0
    ) -> None:
        """Begin the run, or take it up where its folder says which it was.

        Raises:
            UserError: wandb is missing, or does not take the run.
        """
        del resumed_step, resumed_seconds  # steps are figures like others, and may come twice
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"logger=wandb needs wandb ({error}): pip install 'nerftrain[wandb]', or take "
                "logger=tensorboard"
            ) from error
        run_dir = Path(run_dir)
        known = run_dir / _ID
        run_id = known.read_text(encoding="utf-8").strip() if known.is_file() else None
        try:
            self._run = wandb.init(
                **self.filed_under,
                name=self.name or "/".join(run_dir.absolute().parts[-3:]),
                tags=self.tags,
                dir=str(run_dir),
                id=run_id,
                resume="allow",
                config=_config(run_dir),
                # The terminal shows this project's own lines, among them where the run is found.
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"logger=wandb: {str(error).strip('. ').partition('. ')[0]}: log in by wandb "
                "login, or keep the run on this machine by logger.mode=offline"
            ) from error
        self._run.define_metric("*", step_metric="step")
        if self._run.disabled:  # by WANDB_MODE
            return
        known.write_text(f"{self._run.id}\n", encoding="utf-8")
        folder = shlex.quote(str(Path(self._run.dir).parent))
        where = f"offline; wandb sync {folder} sends it" if self._run.offline else self._run.url
        report.say(f"Weights & Biases: {where}")

    def scalars(self, figures: Mapping[str, float | None], step: int, seconds: float) -> None:
        """Write figures against the step; those that are None are left out."""
        if self._run is not None:
            known = {tag: value for tag, value in figures.items() if value is not None}
            self._run.log({"step": step, "seconds": seconds, **known})

    def image(self, tag: str, image: Tensor, step: int) -> None:
        """Write an image [H, W, 3] in 0..1."""
        if self._run is not None:
            import wandb

            self._run.log({"step": step, tag: wandb.Image(to_uint8(image))})

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write the config, and the final figures as ``final/``."""
        if self._run is not None:
            figures = {f"final/{k}": v for k, v in metrics.items() if isinstance(v, int | float)}
            self._run.config.update(dict(config), allow_val_change=True)
            self._run.summary.update(figures)

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def _config(run_dir: Path) -> dict[str, Any]:
    """Read the config that the run's folder keeps; nothing where it keeps none."""
    path = run_dir / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
