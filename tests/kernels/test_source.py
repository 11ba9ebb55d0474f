"""Every kernel compiles for every architecture that we name, with nvcc, and with NVRTC where that is installed."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvgate.kernels import cupy_device, source
from kvgate.kernels.device import DeviceError, NoDevice
from tests.kernels.on_cpu import kernels_of

ARCHITECTURES = ["80", "90a", "100"]
ROOT = Path(__file__).parents[2]


def nvcc() -> str:
    found = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(found).exists():
        pytest.skip("nvcc is not installed")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", source.names())
def test_every_kernel_compiles_with_nvcc(name: str, architecture: str, tmp_path: Path) -> None:
    options = [option for option in source.OPTIONS if not option.startswith("--std")]
    made = tmp_path / "made.cubin"
    command = [nvcc(), f"-arch=sm_{architecture}", "-std=c++17", *options, "-Werror", "all-warnings", "-cubin"]
    subprocess.run([*command, "-o", str(made), str(source.FOLDER / name)], check=True, timeout=200)
    symbols = made.read_bytes()
    for kernel in kernels_of(name):
        assert b".text." + kernel.encode() in symbols


def nvrtc() -> Any:
    """NVRTC from the package nvidia-cuda-nvrtc, which needs no GPU."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for found in sorted(Path(folder).glob("cu*/lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(found))
    pytest.skip("nvidia-cuda-nvrtc is not installed")


@pytest.mark.parametrize("name", source.names())
def test_every_kernel_compiles_with_nvrtc_and_no_header(name: str) -> None:
    library = nvrtc()
    program = ctypes.c_void_p()
    text = source.text(name).encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), 0, None, None) == 0
    options = ["--gpu-architecture=sm_90", *source.OPTIONS]
    listed = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCompileProgram(program, len(options), listed)
    nbytes = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(nbytes))
    log = ctypes.create_string_buffer(nbytes.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    library.nvrtcGetCUBINSize(program, ctypes.byref(nbytes))
    made = ctypes.create_string_buffer(nbytes.value)
    library.nvrtcGetCUBIN(program, made)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    for kernel in kernels_of(name):
        assert b".text." + kernel.encode() in made.raw


@pytest.mark.parametrize("name", source.names())
def test_the_text_of_a_kernel_needs_no_file(name: str) -> None:
    text = source.text(name)
    assert "#include" not in text
    assert text.count("struct Divider {") == 1


def test_the_struct_of_a_batch_of_copies_is_the_drivers(tmp_path: Path) -> None:
    folders = [Path(nvcc()).resolve().parents[1] / "include", Path("/usr/local/cuda/include")]
    header = next((folder / "cuda.h" for folder in folders if (folder / "cuda.h").exists()), None)
    if header is None:
        pytest.skip("cuda.h is not installed")
    program = tmp_path / "sizes.c"
    program.write_text(
        "#include <cuda.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        'int main(void) { printf("%zu %zu %d %d", sizeof(CUmemcpyAttributes), offsetof(CUmemcpyAttributes, flags),'
        " CU_MEMCPY_SRC_ACCESS_ORDER_STREAM, CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE); return 0; }\n"
    )
    subprocess.run(["gcc", f"-I{header.parent}", "-o", str(tmp_path / "sizes"), str(program)], check=True)
    told = subprocess.run([str(tmp_path / "sizes")], capture_output=True, text=True, check=True).stdout
    ours = cupy_device.CopyAttributes
    assert told == f"{ctypes.sizeof(ours)} {ours.flags.offset} 1 1"


class TestBinaries:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("KVGATE_KERNEL_CACHE", str(tmp_path / "cache"))
        self.compiled: list[str] = []
        return tmp_path / "cache"

    def compile_text(self, text: str) -> bytes:
        self.compiled.append(text)
        return b"binary"

    def get(self, architecture: str = "90", compiler: str = "nvrtc 13.0") -> bytes:
        return source.binary("paged_copy.cu", architecture, compiler, self.compile_text)

    def test_the_second_process_compiles_nothing(self) -> None:
        assert self.get() == self.get() == b"binary"
        assert self.compiled == [source.text("paged_copy.cu")]

    def test_another_architecture_and_another_compiler_are_other_binaries(self) -> None:
        self.get()
        self.get(architecture="80")
        self.get(compiler="nvrtc 13.1")
        assert len(self.compiled) == 3

    def test_other_options_are_another_binary(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.get()
        monkeypatch.setattr(source, "OPTIONS", ("--std=c++17",))
        self.get()
        assert len(self.compiled) == 2

    @pytest.mark.parametrize("damage", [b"", b"x", bytes(38)])
    def test_a_damaged_file_is_compiled_anew(self, folder: Path, damage: bytes) -> None:
        self.get()
        (file,) = folder.iterdir()
        file.write_bytes(damage)
        assert self.get() == self.get() == b"binary"
        assert len(self.compiled) == 2

    def test_a_folder_that_cannot_be_is_done_without(self, folder: Path) -> None:
        folder.write_text("a file")
        assert self.get() == b"binary"


class RefusingNvrtc:
    """The foreign edge: what CuPy's door to NVRTC does with a source that NVRTC refuses."""

    def __init__(self) -> None:
        self.open = 0

    class NVRTCError(RuntimeError):
        pass

    def getVersion(self) -> tuple[int, int]:
        return (13, 0)

    def createProgram(self, text: str, name: str, headers: tuple[str, ...], names: tuple[str, ...]) -> int:
        self.open += 1
        return 1

    def compileProgram(self, program: int, options: tuple[str, ...]) -> None:
        raise self.NVRTCError("NVRTC_ERROR_COMPILATION")

    def getProgramLog(self, program: int) -> str:
        return "error: expected a ;"

    def destroyProgram(self, program: int) -> None:
        self.open -= 1


def test_what_the_compiler_says_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVGATE_KERNEL_CACHE", str(tmp_path))
    refusing = RefusingNvrtc()
    with pytest.raises(DeviceError, match=r"paged_copy.cu for sm_90: NVRTC_ERROR_COMPILATION: error: expected a ;"):
        cupy_device.compiled(refusing, "paged_copy.cu", "90")
    assert not refusing.open


def test_without_cupy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(NoDevice, match=r"kvgate\[gpu\]"):
        cupy_device.CupyDevice()


def test_without_a_gpu_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class CUDARuntimeError(RuntimeError):
        pass

    def get_device_count() -> int:
        raise CUDARuntimeError("cudaErrorNoDevice")

    runtime = SimpleNamespace(getDeviceCount=get_device_count, CUDARuntimeError=CUDARuntimeError)
    function = SimpleNamespace(Module=None)
    package = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, driver=None, nvrtc=None, function=function))
    monkeypatch.setitem(sys.modules, "cupy", package)
    with pytest.raises(NoDevice, match="there is no GPU here that CUDA can use: cudaErrorNoDevice"):
        cupy_device.CupyDevice()


def test_the_wheel_has_the_sources(tmp_path: Path) -> None:
    copied = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", ".cache", "tests", "docs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copied, symlinks=True, ignore=ignored)
    environment = {**os.environ, "PYTHONPATH": ""}
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=copied, env=environment, capture_output=True, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = {path.name for path in source.FOLDER.iterdir() if path.is_file()}
    assert {f"kvgate/kernels/csrc/{name}" for name in files} <= inside
    assert "paged_copy.cu" in files
