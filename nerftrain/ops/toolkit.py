"""Whether the CUDA compiler, the driver and the GPUs go together; if not, one line with the remedy.

What is run is `nvcc --version`, `nvcc --list-gpu-arch` and `nvidia-smi`; a program that is not
there, or says something else, is no fault.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable

Version = tuple[int, int]

NEWER_DRIVER = "update the NVIDIA driver"
OTHER_TORCH = "https://pytorch.org/get-started/locally"


def driver_cuda() -> Version | None:
    """Return the newest CUDA that the driver serves."""
    return _version(r"CUDA Version:\s*(\d+)\.(\d+)", _said("nvidia-smi"))


def torch_misfit(torch_cuda: str | None, driver: Version | None) -> str | None:
    """Say why a torch built for some CUDA cannot use the driver.

    Within one major version any driver serves any torch.
    """
    wanted = _version(r"^(\d+)\.(\d+)", torch_cuda or "")
    if wanted is None or driver is None or wanted[0] <= driver[0]:
        return None
    return (
        f"this torch is built for CUDA {_text(wanted)}, the driver serves CUDA {_text(driver)} at "
        f"most: {NEWER_DRIVER}, or install a torch for CUDA {driver[0]} ({OTHER_TORCH})"
    )


def nvcc_misfit(nvcc: str, architectures: Iterable[int], driver: Version | None) -> str | None:
    """Say why what nvcc makes would not run on the GPUs of these architectures (80 for sm_80)."""
    release = _version(r"release (\d+)\.(\d+)", _said(nvcc, "--version"))
    name = f"{nvcc} (CUDA {_text(release)})" if release else nvcc
    if release and driver and release[0] > driver[0]:
        return (
            f"{name} is newer than the driver, which serves CUDA {_text(driver)} at most: "
            f"{NEWER_DRIVER}, or set CUDA_HOME to a toolkit of CUDA {driver[0]}"
        )
    known = [int(a) for a in re.findall(r"compute_(\d+)", _said(nvcc, "--list-gpu-arch"))]
    for architecture in architectures if known else ():
        if architecture in known:
            continue
        if architecture > max(known):
            remedy = "pip install 'nerftrain[cuda]', or set CUDA_HOME to a newer toolkit"
            return f"{name} is too old for this GPU (sm_{architecture}): {remedy}"
        remedy = "set CUDA_HOME to a toolkit that still knows it, or use runtime=cpu"
        return f"{name} does not know this GPU (sm_{architecture}): {remedy}"
    return None


def _said(*command: str) -> str:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=30, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout


def _version(pattern: str, text: str) -> Version | None:
    found = re.search(pattern, text)
    return (int(found[1]), int(found[2])) if found else None


def _text(version: Version) -> str:
    return ".".join(map(str, version))
