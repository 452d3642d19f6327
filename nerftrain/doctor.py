"""What this machine is and what of nerftrain works on it; each fault comes with its remedy."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from nerftrain import __version__
from nerftrain.errors import UserError
from nerftrain.ops import toolkit
from nerftrain.paths import cache_dir

# Of a processor's flags, those for which nerftrain or torch has code of its own.
SIMD_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
)
OPTIONAL_PACKAGES = {
    "tinycudann": "fused CUDA networks; not needed: pip install "
    "git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch",
    "lpips": "the LPIPS figure: pip install 'nerftrain[lpips]'",
    "viser": "nerftrain view: pip install 'nerftrain[view]'",
    "trimesh": "nerftrain export: pip install 'nerftrain[export]'",
    "skimage": "meshes of nerftrain export: the same",
    "xatlas": "textures of meshes: pip install 'nerftrain[texture]'",
    "fast_simplification": "meshes of fewer triangles: the same",
    "wandb": "logger=wandb: pip install 'nerftrain[wandb]'",
    "pillow_heif": "HEIF, telephones' photographs: pip install 'nerftrain[heif]'",
    "pycolmap": "COLMAP scenes and nerftrain data pose: pip install pycolmap",
}
# A file that gives a folder away as a scene of a kind.
SCENE_MARKS = {
    "transforms_train.json": "blender or dnerf",
    "transforms.json": "transforms",
    "sparse/0": "colmap",
}

Row = tuple[str, str]


class Trial(NamedTuple):
    """What became of a device's compiled ops when they were held to torch."""

    num_agreeing: int = 0  # families of ops
    wrong: Mapping[str, str] = MappingProxyType({})  # families, and what is wrong with them
    missing: str | None = None  # why there are none
    march: str | None = None  # how long one takes


def report() -> str:
    """Return the state of this machine, section by section, faults last with their remedies."""
    sections: dict[str, Callable[[], Iterator[Row]]] = {
        "Python": _python_rows,
        "Processor": _processor_rows,
        "GPU": _gpu_rows,
        "Native ops": _native_rows,
        "Optional packages": _optional_rows,
        "Folders": _folder_rows,
    }
    lines = []
    for title, rows in sections.items():
        lines += [title, *(f"  {name:<14} {text}" for name, text in rows()), ""]
    found = list(faults())
    lines += ["Faults", *(f"  ! {fault}" for fault in found)] if found else ["No faults found."]
    return "\n".join(lines)


def prebuild() -> str:
    """Compile all ops for the CPU and every GPU architecture; say where they are and what they use.

    Raises UserError where they cannot be compiled.
    """
    from nerftrain.ops import cuda_report, library

    try:
        cpu, cuda = library.build("cpu"), library.build("cuda", library.ALL_ARCHITECTURES)
    except library.BuildError as error:
        raise UserError(str(error)) from error
    return f"{cuda_report.table(cuda_report.of_library(cuda))}\n\n{cpu}\n{cuda}"


def faults() -> Iterator[str]:
    """Yield what does not work, each in a line that ends with the remedy."""
    if fault := toolkit.gpu_fault():
        yield fault
    for device in _devices():
        _, wrong, missing, _ = native_trial(device)
        if missing:
            yield f"there are no compiled {device} ops, slow torch references serve: {missing}"
        if wrong:
            what = "; ".join(f"{name}: {outcome}" for name, outcome in wrong.items())
            yield (
                f"the compiled {device} ops err ({what}): remove {cache_dir() / 'ops'} and try "
                f"again; runtime=reference trains without them, slowly"
            )
    yield from _folder_faults()


def _folder_faults() -> Iterator[str]:
    cache = cache_dir()
    if cache.parent == Path(tempfile.gettempdir()) and cache.name.startswith("nerftrain-"):
        yield (
            "the user's cache cannot be written, so the ops are compiled anew by every process: "
            "set NERFTRAIN_CACHE to a folder that can"
        )
    root = os.environ.get("NERFTRAIN_DATA")
    if root and not Path(root).is_dir():
        yield f"NERFTRAIN_DATA is {root}, no folder: set it to the one that holds your scenes"
    elif root and not find_scenes(Path(root)):
        yield f"NERFTRAIN_DATA is {root}, without a scene: set it to the folder above the scenes'"


def find_scenes(root: Path) -> dict[str, str]:
    """Return the scenes at most two folders below a root: path relative to it, and kind."""
    folders = [root, *root.glob("*/"), *root.glob("*/*/")]
    found = {}
    for folder in sorted(folders):
        kinds = [kind for mark, kind in SCENE_MARKS.items() if (folder / mark).exists()]
        if kinds and folder.is_dir():
            found[str(folder.relative_to(root))] = kinds[0]
    return found


@cache
def native_trial(device: str) -> Trial:
    """Try the compiled ops of ``cpu`` or ``cuda``, compiling them if need be.

    They are tried in a process of their own, which kernels that do not run here may end.
    """
    from nerftrain.ops.proof import AGREES, NO_OPS, TIMED

    command = [sys.executable, "-m", "nerftrain.ops.proof", device]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines, ended = result.stdout.splitlines(), f"ended the process, status {result.returncode}"
    if result.returncode and (result.returncode == NO_OPS or not lines):
        return Trial(missing=lines[-1] if lines else f"trying them {ended}")
    tried = dict(line.split(": ", 1) for line in lines)
    if result.returncode:
        tried[[*tried][-1]] = ended
    march = tried.pop(TIMED, None)
    wrong = {name: outcome for name, outcome in tried.items() if outcome != AGREES}
    return Trial(len(tried) - len(wrong), wrong, march=march)


def _python_rows() -> Iterator[Row]:
    yield "python", f"{platform.python_version()}, {platform.platform()}"
    yield "nerftrain", f"{__version__}, {Path(__file__).parent}"
    yield "torch", torch.__version__  # with what it was built for: +cpu, +cu132
    for package in ("hydra-core", "numpy"):
        yield package, _version(package) or "not installed"


def _processor_rows() -> Iterator[Row]:
    yield "model", cpu_model()
    yield "cores", f"{usable_cores()} usable of {os.cpu_count()}"
    yield "threads", f"{torch.get_num_threads()} in torch"
    yield "SIMD", " ".join(_simd_flags()) or "unknown"
    yield "SIMD of torch", torch.backends.cpu.get_cpu_capability()


def _gpu_rows() -> Iterator[Row]:
    yield "torch's CUDA", torch.version.cuda or "none, a CPU build"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{index}", f"{device.name}, sm_{device.major}{device.minor}, {memory}"
    if not torch.cuda.device_count():
        yield "devices", "none; training runs on the CPU"


def _native_rows() -> Iterator[Row]:
    yield from native_status().items()
    for device in _devices():
        num, wrong, missing, march = native_trial(device)
        held = f"{num} of {num + len(wrong)} families of ops agree with torch"
        yield f"{device} check", "there are none" if missing else held
        if march:
            yield f"{device} march", march


def _optional_rows() -> Iterator[Row]:
    for package, purpose in OPTIONAL_PACKAGES.items():
        yield package, "installed" if _importable(package) else f"not installed ({purpose})"


def _folder_rows() -> Iterator[Row]:
    yield "cache", str(cache_dir())
    root = os.environ.get("NERFTRAIN_DATA")
    yield "data root", root or "none (set NERFTRAIN_DATA, or data_root= on the command line)"
    for name, kind in find_scenes(Path(root)).items() if root and Path(root).is_dir() else ():
        yield "scene", f"{name} ({kind})"


def environment() -> dict[str, Any]:
    """Return what the figures of a run depend on besides its config; never fails."""
    return {
        "nerftrain": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "hydra": _version("hydra-core"),
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "gpu_driver": run_quietly(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        ),
        "native": native_status(),
    }


def native_status() -> dict[str, str]:
    """Return the state of the native ops, or why it is not known; never fails."""
    try:
        from nerftrain.ops import library

        return dict(library.status())
    except Exception as error:  # a broken native library must not cost a run its report
        return {"error": _one_line(error)}


def cpu_model() -> str:
    """Return the processor's name, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else []:
        if line.lower().startswith("model name"):
            return line.split(":", 1)[1].strip()
    apple = run_quietly("sysctl", "-n", "machdep.cpu.brand_string")
    return apple or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_quietly(*command: str) -> str | None:
    """Return what a command prints, or None where it is absent, fails or takes ten seconds."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _simd_flags() -> list[str]:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else []:
        if line.lower().startswith(("flags", "features")):
            return [flag for flag in SIMD_FLAGS if flag in line.split()]
    return []


def _devices() -> list[str]:
    return ["cpu", "cuda"] if toolkit.has_gpu() else ["cpu"]


def _importable(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout that this module runs from, marked where files differ."""
    root = Path(__file__).resolve().parents[1]
    # An installed package may lie within someone else's repository.
    if not (root / ".git").exists():
        return None
    commit = run_quietly("git", "-C", str(root), "rev-parse", "HEAD")
    changed = run_quietly("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if commit and changed else commit
