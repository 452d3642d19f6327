"""Whether torch, the CUDA compiler, the driver and the GPUs go together; if not, a line that helps.

What is run is `nvcc --version`, `nvcc --list-gpu-arch` and `nvidia-smi`; a program that is not
there, or says something else, is no fault.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence

import torch

Version = tuple[int, int]

NEWER_DRIVER = "update the NVIDIA driver"
OTHER_TORCH = "https://pytorch.org/get-started/locally"


def has_gpu() -> bool:
    """Tell whether there is a GPU that torch can compute on."""
    return torch.cuda.is_available() and gpu_fault() is None


def gpu_fault() -> str | None:
    """Say why torch cannot use the NVIDIA GPU that is there, and what helps.

    None where it can, and where there is none.
    """
    if torch.version.hip is not None:
        return None
    if torch.cuda.is_available():
        capability, known = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
        return kernels_misfit(torch.cuda.get_device_name(), capability, known)
    if torch.version.cuda is None and "GPU" in _said("nvidia-smi", "-L"):
        return (
            "there is an NVIDIA GPU but this torch has no CUDA. Install one that has: "
            f"{OTHER_TORCH}"
        )
    return torch_misfit(torch.version.cuda, driver_cuda())


def kernels_misfit(name: str, capability: Version, known: Sequence[str]) -> str | None:
    """Say why a torch with kernels for these architectures (`sm_90`, `compute_90`) has none for it.

    Machine code runs on GPUs of the same major version and no older minor one, PTX on any that is
    not older; what is for `sm_90a` runs on that alone.
    """
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)(a?)f?", each) for each in known]
    for kind, major, minor, alone in [match.groups() for match in found if match]:
        version = (int(major), int(minor))
        serves_newer = not alone and (kind == "compute" or version[0] == capability[0])
        if version == capability or (serves_newer and version < capability):
            return None
    if not any(found):  # who lists nothing is given a try
        return None
    return (
        f"this torch (CUDA {torch.version.cuda}) has no kernels for {name} "
        f"(sm_{capability[0]}{capability[1]}), it has {', '.join(known)}: install one that has "
        f"({OTHER_TORCH})"
    )


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
