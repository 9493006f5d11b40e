#!/usr/bin/env python3
"""Compiles the CUDA kernels to the PTX that the binary embeds, and checks them for each architecture. Needs no GPU.

    compile.py                 write host/infer/src/cuda/kernels.ptx anew
    compile.py --check         fail unless that file is what the sources give
    compile.py --hash          print the hash of the sources, which the file begins with
    compile.py --architectures compile for each architecture with ptxas; print registers, fail on spills

NVRTC and ptxas come from the PyPI packages below. They are looked for in the folder that MILLGATE_NVRTC names, then in
this Python's packages; `--install FOLDER` puts them there first (128 MB to fetch, 420 MB on disk).
"""

import argparse
import concurrent.futures
import ctypes
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile

PACKAGES = ["nvidia-cuda-nvrtc-cu12==12.8.93", "nvidia-cuda-nvcc-cu12==12.8.93"]
# The oldest architecture that the kernels run on; a driver compiles PTX for the GPU that it finds.
TARGET = "compute_80"
# NVRTC writes its own version; nothing newer than 8.0 is used, and drivers from CUDA 12.0 on read that.
PTX_VERSION = "8.0"
ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]

CUDA = pathlib.Path(__file__).resolve().parents[2] / "host/infer/src/cuda"
KERNELS, PTX = CUDA / "kernels", CUDA / "kernels.ptx"


def source_hash() -> str:
    """SHA-256 over the names and texts of the sources, in the order of their names, each ended by a zero byte."""
    digest = hashlib.sha256()
    for path in sorted(KERNELS.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def find(pattern: str) -> pathlib.Path:
    places = [pathlib.Path(os.environ["MILLGATE_NVRTC"])] if "MILLGATE_NVRTC" in os.environ else []
    places += [pathlib.Path(place) for place in sys.path if place.endswith("-packages")]
    for place in places:
        for found in sorted(place.glob(f"nvidia/{pattern}")):
            return found
    sys.exit(f"no {pattern.split('/')[-1]}: set MILLGATE_NVRTC to a folder that `{sys.argv[0]} --install FOLDER` filled")


def compile_ptx() -> str:
    nvrtc = ctypes.CDLL(str(find("cuda_nvrtc/lib/libnvrtc.so.12")))
    program = ctypes.c_void_p()

    def call(name: str, *arguments):
        code = getattr(nvrtc, name)(*arguments)
        if code != 0:
            size = ctypes.c_size_t()
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            sys.exit(f"{name} gave {code}\n{log.value.decode()}")

    source = (KERNELS / "kernels.cu").read_bytes()
    call("nvrtcCreateProgram", ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    options = [b"--gpu-architecture=" + TARGET.encode(), b"--std=c++17", b"--include-path=" + str(KERNELS).encode()]
    call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    call("nvrtcGetPTXSize", program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    call("nvrtcGetPTX", program, ptx)
    text = ptx.value.decode()
    compiler = re.search(r"Cuda compilation tools, release [\d.]+, V([\d.]+)", text)
    lines = [
        "// The kernels of `kernels/kernels.cu`. Written by tests/gpu/compile.py; do not edit.",
        f"// sources: sha256 {source_hash()}",
        f"// compiler: NVRTC {compiler.group(1) if compiler else 'unknown'}, {TARGET}",
    ]
    for line in text.splitlines():
        line = re.sub(r"^\.version .*", f".version {PTX_VERSION}", line.rstrip())
        if line and not line.startswith("//"):
            lines.append(line)
    return "\n".join(lines) + "\n"


def architectures(ptx: str) -> None:
    ptxas = find("cuda_nvcc/bin/ptxas")
    ptxas.chmod(ptxas.stat().st_mode | 0o100)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "kernels.ptx"
        source.write_text(ptx)

        def assemble(architecture: str):
            command = [ptxas, "-v", f"-arch={architecture}", source, "-o", f"{folder}/{architecture}"]
            return subprocess.run(command, capture_output=True, text=True)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            runs = list(pool.map(assemble, ARCHITECTURES))
    for architecture, run in zip(ARCHITECTURES, runs):
        if run.returncode != 0:
            print(f"{architecture}: ptxas failed\n{run.stderr}")
            failed = True
            continue
        kernel, registers, spilled = "?", {}, {}
        for line in run.stderr.splitlines():
            if match := re.search(r"Compiling entry function '(\w+)'", line):
                kernel = match.group(1)
            elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
                if any(int(n) for n in match.groups()):
                    spilled[kernel] = line.strip()
            elif match := re.search(r"Used (\d+) registers", line):
                registers[kernel] = int(match.group(1))
        most = sorted(registers, key=registers.get, reverse=True)[:4]
        most = ", ".join(f"{name} {registers[name]}" for name in most)
        print(f"{architecture}: {len(registers)} kernels, {len(spilled)} that spill; most registers: {most}")
        for name, line in spilled.items():
            print(f"  {name}: {line}")
        failed = failed or bool(spilled) or not registers
    if failed:
        sys.exit("the kernels do not compile cleanly for every architecture")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    parser.add_argument("--architectures", action="store_true", help="compile for each architecture, look for spills")
    parser.add_argument("--install", metavar="FOLDER", help="fetch NVRTC and ptxas into this folder first")
    parser.add_argument("--hash", action="store_true", help="print the sources' hash and nothing else")
    arguments = parser.parse_args()
    if arguments.hash:
        print(source_hash())
        return
    if arguments.install:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run(pip + ["--target", arguments.install] + PACKAGES, check=True)
        os.environ["MILLGATE_NVRTC"] = arguments.install
    ptx = compile_ptx()
    if arguments.check or arguments.architectures:
        if not PTX.exists() or PTX.read_text() != ptx:
            sys.exit(f"{PTX} is not what the sources give; run {sys.argv[0]} and commit the file")
        print(f"{PTX.name} is what the sources give")
    else:
        PTX.write_text(ptx)
        print(f"wrote {PTX} ({len(ptx)} bytes)")
    if arguments.architectures:
        architectures(ptx)


if __name__ == "__main__":
    main()
