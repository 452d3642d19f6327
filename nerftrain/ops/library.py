"""Compile csrc/ with ninja on first use and load it.

Without a compiler the torch references serve. The cache is keyed by everything that decides the
outcome (sources, flags, compiler, torch, architectures) and a finished library is moved into place
at once, so processes that build at the same time all succeed and no lock can be left behind.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from nerftrain.errors import UserError
from nerftrain.ops import toolkit
from nerftrain.paths import cache_dir, data_dir

Mode = Literal["auto", "native", "reference"]
CpuIsa = Literal["auto", "portable", "avx2", "avx512", "avx512_bf16", "amx"]
# How many numbers an operand holds (csrc/cpu/isa.h).
CPU_ISA: dict[CpuIsa, int] = {
    "auto": 0,
    "portable": 4,
    "avx2": 8,
    "avx512": 16,
    "avx512_bf16": 32,
    "amx": 64,
}

# Contraction to fused multiply-add would make the CPU's results differ from the references;
# -ffast-math would turn denormals off for the whole process.
CPU_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",  # else gcc makes no vectors of loops that choose between numbers
    "-fno-unswitch-loops",  # a copy of a loop per choice: no faster, and most of the compilation
    "-Wall",
)
# -Xptxas=-v: what each kernel takes of a GPU, for cuda_report.
CUDA_FLAGS = ("-std=c++20", "-O3", "-Xcompiler", "-fPIC", "-DUSE_CUDA", "-t", "0", "-Xptxas=-v")
# Kernels for one instruction set of x86 lie in files of their own and are chosen at run time.
ISA_FLAGS = {
    "_avx2": "-mavx2 -mfma -mf16c -ffp-contract=fast",
    "_avx512": "-mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma -mf16c -mprefer-vector-width=512 "
    "-ffp-contract=fast",
    "_avx512bf16": "-mavx512f -mavx512vl -mavx512bw -mavx512dq -mavx512bf16 -mfma "
    "-mprefer-vector-width=512 -ffp-contract=fast",
    "_amx": "-mavx512f -mavx512vl -mavx512bw -mavx512dq -mavx512bf16 -mamx-tile -mamx-bf16 -mfma "
    "-mprefer-vector-width=512 -ffp-contract=fast",
}
# Which samples a ray has must not depend on the instruction set.
EXACT_KERNELS = ("march",)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000ULL"
# Sources that include PyTorch's headers are compiled in so many files: reading them takes longest,
# and nvcc reads them anew for each architecture.
NUM_UNITS = {"cpu": 3, "cuda": 4}
ALL_ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# What the sources tell apart. PTX for these is what all later GPUs' code is made of, so that the
# longer part of compiling is done once for several.
PTX_ARCHITECTURES = (75, 80, 90)

# What compilers say of faults for which there is a remedy.
REMEDIES = (
    (
        r"(unrecognized|invalid|not supported).*c\+\+20|c\+\+20.*(unrecognized|not supported with)",
        "the C++ compiler does not know C++20: install g++ 10, clang 14 or a newer one, or name "
        "one in CXX",
    ),
    (
        r"'c\+\+20' is not defined for option",
        "this nvcc does not know C++20: pip install 'nerftrain[cuda]', or set CUDA_HOME to a "
        "toolkit of CUDA 12 or newer",
    ),
    (
        r"gcc versions later than (?P<newest>\d+) are not supported",
        "nvcc takes no g++ newer than {newest}: install g++-{newest} and set CXX=g++-{newest}",
    ),
    (
        r"unsupported clang version! clang version must be less than (?P<newer>\d+)",
        "nvcc takes no clang as new as {newer}: install an older one or g++, and name it in CXX",
    ),
)

_logger = logging.getLogger(__name__)
_mode: Mode = "auto"
_half_precision = True
_loading = threading.RLock()
_fakes: dict[str, Callable[..., Any]] = {}


class BuildError(Exception):
    """A failure to compile: one line with the cause and the fix.

    `log` holds the compiler's own words.
    """

    def __init__(self, message: str, log: str = "") -> None:
        """Keep the compiler's words beside the line."""
        super().__init__(message)
        self.log = log


def set_mode(mode: Mode) -> None:
    """Choose between compiled ops and references.

    Where compiled ops are not to be had, `auto` falls back with one warning and `native` raises
    UserError.
    """
    global _mode
    _mode = mode


@contextmanager
def mode(temporary: Mode) -> Iterator[None]:
    """Choose so for a while."""
    before = _mode
    set_mode(temporary)
    try:
        yield
    finally:
        set_mode(before)


def set_cpu_isa(name: CpuIsa) -> None:
    """Choose the instruction set of the CPU's kernels; `auto` is the best that the CPU has.

    Raises UserError where the CPU lacks it. Where compiled ops do not serve it has no effect.
    """
    if _mode == "reference" or _why_not("cpu"):
        return
    try:
        torch.ops.nerftrain.use_lanes(CPU_ISA[name])
    except RuntimeError as error:
        has = [known for known, lanes in CPU_ISA.items() if _cpu_has(lanes)]
        torch.ops.nerftrain.use_lanes(CPU_ISA["auto"])
        raise UserError(
            f"runtime.cpu_isa={name}: this CPU lacks it; choose {', '.join(has)}"
        ) from error


def _cpu_has(lanes: int) -> bool:
    try:
        torch.ops.nerftrain.use_lanes(lanes)
    except RuntimeError:
        return False
    return True


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what an op's outputs look like (shapes and types only), once the op exists."""

    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        _fakes[name] = function
        if hasattr(torch.ops.nerftrain, name):  # an op of another module has loaded the library
            torch.library.register_fake(f"nerftrain::{name}", function)
        return function

    return keep


def native(*tensors: torch.Tensor) -> bool:
    """Say whether compiled ops serve these tensors' device, compiling them if need be.

    Raises UserError where tensors of one call lie on different devices.
    """
    device = tensors[0].device
    for tensor in tensors[1:]:
        if tensor.device != device:
            raise UserError(
                f"tensors of one call lie on {device} and {tensor.device}: "
                f"move them with .to({device})"
            )
    if _mode == "reference":
        return False
    reason = _why_not(device.type)
    if reason is not None and _mode == "native":
        raise UserError(f"runtime.ops=native, but {reason}")
    return reason is None


def on_cpu(tensor: torch.Tensor) -> bool:
    """Say whether the CPU's kernels are those that serve, where there are any."""
    return tensor.device.type == "cpu"


def multiplies_bfloat16(tensor: torch.Tensor) -> bool:
    """Say whether the CPU's kernels in use multiply bfloat16 numbers, with sums in float32."""
    return on_cpu(tensor) and native(tensor) and torch.ops.nerftrain.use_lanes(-1) >= 32


def set_half_precision(allowed: bool) -> None:
    """Choose whether fields that have kernels for it run in half precision on a GPU."""
    global _half_precision
    _half_precision = allowed


def has_tensor_cores(tensor: torch.Tensor, since: tuple[int, int] = (7, 5)) -> bool:
    """Say whether fields on the device of a tensor run on tensor cores in half precision.

    `since` is the compute capability that kernels need.
    """
    if not _half_precision or on_cpu(tensor):
        return False
    return tensor.device.type != "cuda" or torch.cuda.get_device_capability(tensor.device) >= since


def _why_not(device_type: str) -> str | None:
    with _loading:  # or each thread that is among the first would compile for itself
        return _load(device_type)


# torch.compile calls it instead of tracing into the build: torch.compiler.assume_constant_result,
# which would import the compiler, a second, for those who do not compile.
_why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _load(device_type: str) -> str | None:
    """Build and load the library for a device; None, or why there is none (said once)."""
    if device_type not in ("cpu", "cuda"):
        return f"there are no compiled ops for {device_type}"
    if device_type == "cuda" and (reason := _load("cpu")):
        return reason
    try:
        torch.ops.load_library(build(device_type))
    except (BuildError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        _logger.warning(
            "the compiled ops are not available, torch references serve (slow): %s", reason
        )
        return reason
    if device_type == "cpu":
        for name, function in _fakes.items():
            torch.library.register_fake(f"nerftrain::{name}", function)
    return None


def build(device_type: str, architectures: tuple[int, ...] | None = None) -> Path:
    """Return the library for a device, compiled now unless the cache has it.

    What ptxas said of the CUDA kernels lies beside it (.log). Raises BuildError.
    """
    plan = _Plan(device_type, architectures)
    if (built := plan.built()) is not None:
        return built
    if plan.cuda and (reason := plan.misfit()):
        raise BuildError(reason)
    plan.target.parent.mkdir(parents=True, exist_ok=True)
    _say(
        f"nerftrain: compiling the {device_type.upper()} ops "
        f"(about {plan.seconds} s, once per machine) ..."
    )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=plan.target.parent, prefix=".build-") as folder:
        for name, text in plan.files().items():
            (Path(folder) / name).write_text(text)
        command = [_ninja(), "-C", folder]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise BuildError("ninja was not found: pip install ninja") from error
        if result.returncode:
            raise _build_error(device_type, result.stdout + result.stderr)
        if plan.cuda:  # first, so that no library is without it
            (Path(folder) / "log").write_text(result.stdout, encoding="utf-8")
            os.replace(Path(folder) / "log", plan.target.with_suffix(".log"))
        os.replace(Path(folder) / plan.target.name, plan.target)
    _say(f"nerftrain: compiled in {time.perf_counter() - started:.1f} s")
    return plan.target


class _Plan:
    """What is to be compiled, with what, into which file."""

    def __init__(self, device_type: str, architectures: tuple[int, ...] | None) -> None:
        if sys.platform == "win32":  # PyTorch there is of another compiler's making
            raise BuildError("there are none for Windows: use WSL, the Windows Subsystem for Linux")
        self.cuda = device_type == "cuda"
        self.num_units = NUM_UNITS[device_type]
        self.seconds = 30 if self.cuda else 40
        self.csrc = data_dir("csrc")
        self.sources = sorted((self.csrc / device_type).glob("*.cu" if self.cuda else "*.cpp"))
        if not self.cuda:
            self.sources.append(self.csrc / "nerftrain.cpp")
        if not _is_x86():
            self.sources = [s for s in self.sources if not s.stem.endswith(tuple(ISA_FLAGS))]
        named = os.environ.get("CXX")
        if named and shutil.which(named) is None:
            raise BuildError(f"CXX={named} is no program: unset CXX, or name one compiler in it")
        if self.cuda and torch.version.hip is not None:
            raise BuildError("there are none for AMD's GPUs")
        self.compiler = find_nvcc() if self.cuda else find_cxx()
        if self.compiler is None:
            remedy = (
                "pip install 'nerftrain[cuda]'" if self.cuda else "install g++ or clang, or set CXX"
            )
            raise BuildError(f"no {'CUDA' if self.cuda else 'C++'} compiler was found: {remedy}")
        self.command = [str(self.compiler), *(_host_compiler() if self.cuda else [])]
        self.architectures = (architectures or _present_architectures()) if self.cuda else ()
        self.stem = f"nerftrain_{device_type}-{self._key()}"
        suffix = "".join(f"-sm{a}" for a in self.architectures)
        self.target = cache_dir() / "ops" / f"{self.stem}{suffix}.so"

    def built(self) -> Path | None:
        """Find a finished library for these architectures, be it for more of them."""
        for path in (self.target, *sorted(self.target.parent.glob(f"{self.stem}-sm*.so"))):
            names = {int(a) for a in re.findall(r"-sm(\d+)", path.name)}
            if path.exists() and names >= set(self.architectures):
                return path
        return None

    def misfit(self) -> str | None:
        """Say why what the CUDA compiler makes would not run here, if it would not."""
        return toolkit.nvcc_misfit(str(self.compiler), self.architectures, toolkit.driver_cuda())

    def _key(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(p for p in self.csrc.rglob("*") if p.is_file()):
            digest.update(str(path.relative_to(self.csrc)).encode() + path.read_bytes())
        flags = [self.command[1:], self._compile(), ISA_FLAGS, EXACT_KERNELS, self._link()]
        versions = [_version(str(self.compiler)), torch.__version__, platform.machine()]
        digest.update(repr(flags + versions).encode())
        return digest.hexdigest()[:16]

    def _compile(self) -> list[str]:
        include = Path(torch.__file__).parent / "include"
        flags = [*(CUDA_FLAGS if self.cuda else CPU_FLAGS), STABLE_ABI]
        for folder in (include, include / "torch" / "csrc" / "api" / "include"):
            flags += ["-isystem", str(folder)]
        return flags

    def _link(self) -> list[str]:
        folders = [Path(torch.__file__).parent / "lib"]
        # On a Mac torch's libraries are named by @rpath, which what links them has to fill in.
        paths = [f"-Wl,-rpath,{folders[0]}"] if sys.platform == "darwin" else []
        libraries = ["-ltorch", "-ltorch_cpu"]
        if self.cuda:
            # nvcc from pip keeps its runtime in lib, its own profile looks in lib64.
            folders.append(Path(str(self.compiler)).resolve().parent.parent / "lib")
            libraries = ["-ltorch_cuda", *libraries] if _has_libtorch_cuda() else libraries
        return ["-shared", *(f"-L{f}" for f in folders if f.is_dir()), *libraries, *paths]

    def files(self) -> dict[str, str]:
        """Write the build as ninja reads it, and the files that join sources."""
        kernels = (*ISA_FLAGS, "_portable")  # whose names are the same in each of their files
        alone = [source for source in self.sources if source.stem.endswith(kernels)]
        joined = [source for source in self.sources if source not in alone]
        num, suffix = self.num_units, joined[0].suffix
        units = {f"unit{k}{suffix}": joined[k::num] for k in range(num) if joined[k:]}
        texts = {
            name: "".join(f'#include "{source}"\n' for source in sources)
            for name, sources in units.items()
        }
        # The longest first: what is compiled last, compiles alone.
        return {"build.ninja": self._ninja([*map(Path, units), *alone]), **texts}

    def _ninja(self, sources: list[Path]) -> str:
        kinds = [f"-gencode=arch=compute_{_ptx_of(a)},code=sm_{a}" for a in self.architectures]
        compiler = str(self.compiler)
        call, options = _in_ninja(self.command), _in_ninja([*self._compile(), *kinds])
        lines = [
            f"rule compile\n  command = {call} {options} $isa -c $in -o $out",
            f"rule link\n  command = {call} $in -o $out {_in_ninja(self._link())}",
        ]
        objects = [f"{source.stem}.o" for source in sources]
        for target, source in zip(objects, sources, strict=True):
            isa = _isa_flags(source, compiler)
            lines.append(f"build {target}: compile {_escaped(source)}\n  isa = {isa}")
        lines.append(f"build {self.target.name}: link {' '.join(objects)}\n")
        return "\n".join(lines)


def find_cxx() -> str | None:
    """Return the C++ compiler: CXX, else the first of c++, g++, clang++ on PATH."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def find_nvcc() -> str | None:
    """Return nvcc: of CUDA_HOME, on PATH, in the usual place, or from pip (`nerftrain[cuda]`)."""
    folders = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates = [Path(f) / "bin" / "nvcc" for f in folders[:1] if f]
    candidates += [Path(p) for p in [shutil.which("nvcc")] if p] + [
        Path(str(folders[1])) / "bin" / "nvcc"
    ]
    for entry in sys.path:
        if entry.endswith("site-packages"):
            candidates += sorted(Path(entry).glob("nvidia/cu*/bin/nvcc"))
    return next((str(c) for c in candidates if c.exists()), None)


def status() -> dict[str, str]:
    """Describe compilers and libraries, a row per fact, for `nerftrain doctor`; builds nothing."""
    rows = {
        "C++ compiler": _described(find_cxx()),
        "CUDA compiler": _described(find_nvcc()),
        "ninja": _ninja(),
    }
    for device_type in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        try:
            plan = _Plan(device_type, None)
            built = plan.built()
            rows[f"{device_type} ops"] = (
                f"{built or plan.target} ({'built' if built else 'built on first use'})"
            )
        except BuildError as error:
            rows[f"{device_type} ops"] = f"not available: {error}"
    return rows


def _described(compiler: str | None) -> str:
    return f"{compiler} ({_version(compiler).splitlines()[0]})" if compiler else "none"


@cache
def _version(compiler: str) -> str:
    result = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown version"


def _ninja() -> str:
    # The one from pip is on PATH only where the virtual environment is activated.
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        return shutil.which("ninja") or "ninja"


def _present_architectures() -> tuple[int, ...]:
    if not torch.cuda.is_available():
        return ALL_ARCHITECTURES
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return tuple(sorted(major * 10 + minor for major, minor in found))


def _ptx_of(architecture: int) -> int:
    return max((a for a in PTX_ARCHITECTURES if a <= architecture), default=architecture)


def _has_libtorch_cuda() -> bool:
    return any((Path(torch.__file__).parent / "lib").glob("libtorch_cuda.*"))


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _isa_flags(source: Path, compiler: str) -> str:
    family, _, suffix = source.stem.rpartition("_")
    flags = ISA_FLAGS.get(f"_{suffix}", "")
    if suffix == "amx" and not _knows(compiler, flags):  # as those do not that came before AMX
        return ""
    return f"{flags} -ffp-contract=off" if flags and family in EXACT_KERNELS else flags


@cache
def _knows(compiler: str, flags: str) -> bool:
    command = [compiler, *flags.split(), "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _in_ninja(command: list[str]) -> str:
    return shlex.join(command).replace("$", "$$")


def _escaped(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _host_compiler() -> list[str]:
    """Tell nvcc which C++ compiler to call, where its own variables do not and g++ is not it."""
    of_nvcc = [os.environ.get(f"NVCC_{name}", "") for name in ("PREPEND_FLAGS", "APPEND_FLAGS")]
    if os.environ.get("NVCC_CCBIN") or re.search("-ccbin|--compiler-bindir", " ".join(of_nvcc)):
        return []
    compiler = os.environ.get("CXX") or (None if shutil.which("g++") else find_cxx())
    return ["-ccbin", compiler] if compiler else []


def _build_error(device_type: str, log: str) -> BuildError:
    what = f"compiling the {device_type.upper()} ops failed"
    for pattern, remedy in REMEDIES:
        if found := re.search(pattern, log, re.I):
            return BuildError(f"{what}: {remedy.format(**found.groupdict())}", log)
    causes = [
        line.strip()
        for line in log.splitlines()
        if re.search(r"\b(error|fatal|not found)\b", line, re.I)
    ]
    cause = causes[0] if causes else "the compiler failed"
    return BuildError(f"{what}: {cause} (see `nerftrain doctor`)", log)


def _say(line: str) -> None:
    # Before there is a run there is no log; a build of many seconds must not look like a hang.
    print(line, file=sys.stderr, flush=True)
