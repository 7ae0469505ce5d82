"""Builds streamd/engine/tensorrt/kernels.ptx from kernels.cu, so that target machines need no compiler.

    build_kernels.py            compile
    build_kernels.py --check    exit 1 if the committed PTX does not match the source; needs no compiler

The compiler is nvcc, or NVRTC (a 20 MB wheel: `pip install nvidia-cuda-nvrtc-cu11`), whichever yields PTX that every
driver since CUDA 12.0 loads: CUDA 13's own does not.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "streamd" / "engine" / "tensorrt"
SOURCE, TARGET = FOLDER / "kernels.cu", FOLDER / "kernels.ptx"
ARCHITECTURES = ("compute_60", "compute_75")
"""Oldest first: PTX is compiled for the actual GPU by the driver, so an old one costs nothing here."""
MAX_ISA = (8, 0)
"""PTX ISA of CUDA 12.0."""
_HEADER = re.compile(r"// source-sha256: ([0-9a-f]{64})\n// body-sha256: ([0-9a-f]{64})\n")


class BuildError(Exception):
    """One line that says what to do."""


def digest(text: str) -> str:
    """Hex SHA-256 of a text, whatever its line endings."""
    return hashlib.sha256(text.replace("\r\n", "\n").encode()).hexdigest()


def check() -> None:
    """Raises BuildError unless TARGET was made from SOURCE and not edited since."""
    if not TARGET.exists():
        raise BuildError(f"{TARGET.name} is missing; run tools/build_kernels.py")
    text = TARGET.read_text(encoding="utf-8").replace("\r\n", "\n")
    match = _HEADER.search(text)
    if match is None:
        raise BuildError(f"{TARGET.name} has no header; run tools/build_kernels.py")
    if match[1] != digest(SOURCE.read_text(encoding="utf-8")):
        raise BuildError(f"{TARGET.name} was built from another {SOURCE.name}; run tools/build_kernels.py")
    if match[2] != digest(text[match.end() :]):
        raise BuildError(f"{TARGET.name} was changed after it was built; run tools/build_kernels.py")


def nvrtc_libraries(given: str | None) -> Iterator[Path | str]:
    """Possible paths of NVRTC: the given one, those in NVIDIA's wheels, then the loader's search path."""
    if given:
        yield Path(given)
        return
    for package in ("nvidia.cuda_nvrtc", "nvidia.cu13", "nvidia.cu12"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            yield from sorted(Path(folder).glob("lib/libnvrtc.so.*"))
    found = ctypes.util.find_library("nvrtc")
    if found:
        yield found


def with_nvrtc(library: Path | str, architecture: str) -> tuple[str, str]:
    """(PTX, the compiler's name)."""
    nvrtc = ctypes.CDLL(str(library))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    program = ctypes.c_void_p()
    source = SOURCE.read_bytes()

    def call(name: str, *args: object) -> None:
        status = getattr(nvrtc, name)(*args)
        if status:
            raise BuildError(f"{library}: {name}: {nvrtc.nvrtcGetErrorString(status).decode()}{log()}")

    def text(size_name: str, name: str) -> str:
        size = ctypes.c_size_t()
        if getattr(nvrtc, size_name)(program, ctypes.byref(size)) or size.value < 2:
            return ""
        buffer = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, name)(program, buffer)
        return buffer.value.decode()

    def log() -> str:
        said = text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog") if program.value else ""
        return f"\n{said}" if said.strip() else ""

    call("nvrtcCreateProgram", ctypes.byref(program), source, SOURCE.name.encode(), 0, None, None)
    try:
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++11"]
        call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
        return text("nvrtcGetPTXSize", "nvrtcGetPTX"), f"NVRTC {major.value}.{minor.value}"
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def with_nvcc(architecture: str) -> tuple[str, str]:
    """(PTX, the compiler's name)."""
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\S+),", version)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.ptx"
        done = subprocess.run(
            ["nvcc", "-ptx", f"-arch={architecture}", "-std=c++11", "-o", str(out), str(SOURCE)],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise BuildError(f"nvcc: {(done.stderr or done.stdout).strip()}")
        return out.read_text(encoding="utf-8"), f"nvcc {release[1] if release else ''}".strip()


def isa(ptx: str) -> tuple[int, int]:
    """The PTX version that a driver must support."""
    match = re.search(r"^\.version (\d+)\.(\d+)", ptx, re.MULTILINE)
    if match is None:
        raise BuildError("the compiler's output holds no .version")
    return int(match[1]), int(match[2])


def compile_ptx(nvrtc: str | None) -> tuple[str, str]:
    """(PTX, the compiler's name) of the first compiler and architecture that older drivers can load."""
    tried: list[str] = []
    compilers = [] if nvrtc or shutil.which("nvcc") is None else [with_nvcc]
    libraries = list(nvrtc_libraries(nvrtc))
    for architecture in ARCHITECTURES:
        attempts = [(c, (architecture,)) for c in compilers] + [(with_nvrtc, (p, architecture)) for p in libraries]
        for compiler, args in attempts:
            try:
                ptx, name = compiler(*args)
            except (BuildError, OSError) as error:
                tried.append(str(error))
                continue
            if isa(ptx) <= MAX_ISA:
                return ptx, f"{name}, {architecture}"
            tried.append(f"{name} writes PTX {isa(ptx)[0]}.{isa(ptx)[1]}, which only newer drivers load")
    reasons = "\n  ".join(tried) or "no nvcc and no NVRTC"
    raise BuildError(f"no compiler fits; pip install nvidia-cuda-nvrtc-cu11, or --nvrtc PATH. Tried:\n  {reasons}")


def build(nvrtc: str | None) -> str:
    """Writes TARGET atomically; returns the compiler's name."""
    ptx, compiler = compile_ptx(nvrtc)
    # The compiler's own banner names its build; without it the same compiler writes the same file everywhere.
    body = ptx.replace("\r\n", "\n").rstrip("\0\n")
    body = body[body.index(".version") :] + "\n"
    source = digest(SOURCE.read_text(encoding="utf-8"))
    header = (
        f"// Built from {SOURCE.name} by tools/build_kernels.py with {compiler}. Do not edit.\n"
        f"// source-sha256: {source}\n// body-sha256: {digest(body)}\n"
    )
    temporary = TARGET.with_name(f".{TARGET.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(header + body, encoding="utf-8")
        temporary.replace(TARGET)
    finally:
        temporary.unlink(missing_ok=True)
    return compiler


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compile nothing; compare the recorded hashes")
    parser.add_argument("--nvrtc", metavar="PATH", help="the NVRTC library to compile with")
    args = parser.parse_args()
    try:
        if args.check:
            check()
            print(f"{TARGET.name} is up to date")
        else:
            print(f"{TARGET.name} built with {build(args.nvrtc)}")
    except BuildError as error:
        print(f"build_kernels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
