"""Running COLMAP's steps in processes, and reading how far they are off COLMAP's database.

Free of torch.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from nerftrain.errors import RunError, UserError

_TICK = 0.3  # seconds between two looks at how far a step is

Watch = Callable[[str], None]  # takes what a step reports, and "" each so often


def run_step(job: dict[str, Any], log: Path, watch: Watch) -> Any:
    """Run a step of `colmap_steps` and return what it gives; an interruption ends it at once.

    Args:
        job: what the step is asked for.
        log: takes in what COLMAP says.
        watch: takes each word that the step reports, and "" several times a second.

    Raises:
        RunError: the step failed.
    """
    command = [sys.executable, "-m", "nerftrain.data.colmap_steps"]
    with (
        log.open("wb") as noise,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        last = ""
        try:
            child.stdin.write(json.dumps(job).encode() + b"\n")
            child.stdin.flush()
            last = _follow(child.stdout, watch)
        except BrokenPipeError:  # it ended before it had read its job
            pass
        except BaseException:
            child.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        status = child.wait()
    if status != 0:
        raise RunError(_failure(job["step"], status, log))
    return json.loads(last)


def _follow(stream: IO[bytes], watch: Watch) -> str:
    """Pass on all lines that a process writes, and return the last one."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line.decode("utf-8", "replace").strip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    last = ""
    while True:
        try:
            line = lines.get(timeout=_TICK)
        except queue.Empty:
            watch("")
            continue
        watch("")
        if line is None:
            return last
        last = line
        watch(line)


def _failure(step: str, status: int, log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    said = [line.strip() for line in text.splitlines() if line.strip()] or ["without a word"]
    reason = said[-1][-300:]
    if status < 0:
        with contextlib.suppress(ValueError):
            reason = f"ended by {signal.Signals(-status).name}, perhaps for want of memory"
    return (
        f"COLMAP stopped ({step}: {reason}); what it says is in {log}; features and matches so far "
        "are kept, the same command goes on"
    )


@dataclass(frozen=True)
class Entry:
    """An image in the database."""

    camera: int
    size: tuple[int, int]  # width, height
    has_features: bool


@dataclass(frozen=True)
class Database:
    """COLMAP's database, which may not be there yet; only read."""

    path: Path

    def count(self, table: str) -> int:
        """Count the rows of a table."""
        return self._query(f"SELECT COUNT(*) FROM {table}", [(0,)])[0][0]

    def images(self) -> dict[str, Entry]:
        """Read which images there are.

        Raises:
            UserError: the file is no database.
        """
        rows = self._query(
            "SELECT name, camera_id, width, height, EXISTS("
            "SELECT 1 FROM keypoints JOIN descriptors USING (image_id) "
            "WHERE keypoints.image_id = images.image_id) "
            "FROM images JOIN cameras USING (camera_id)",
            [],
        )
        return {
            name: Entry(camera, (width, height), bool(has_features))
            for name, camera, width, height, has_features in rows
        }

    def keypoints(self, name: str) -> np.ndarray:
        """Read where an image has features, [N, 2] pixels from the top left corner."""
        rows = self._query(
            "SELECT rows, cols, data FROM keypoints JOIN images USING (image_id) WHERE name = ?",
            [],
            (name,),
        )
        found = [np.frombuffer(data, np.float32).reshape(n, k)[:, :2] for n, k, data in rows if n]
        return found[0] if found else np.zeros((0, 2), np.float32)

    def _query(self, text: str, otherwise: list[Any], values: tuple[str, ...] = ()) -> list[Any]:
        """Read rows; where the file or the table has not been made, or is busy: otherwise."""
        try:
            connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
            with contextlib.closing(connection):
                return connection.execute(text, values).fetchall()
        except sqlite3.OperationalError:
            return otherwise
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path} is damaged or no database of COLMAP's ({error}): remove it"
            ) from error
