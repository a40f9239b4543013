"""A GPU without memory left: one clear error, and the process goes on. The driver is real, its memory is limited."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

HERE = Path(__file__).parent
FULL = r"device webgpu: its memory is full \(.*\); close conversations, shorten the prompt, or use the CPU"


def real_vulkan() -> str:
    """Where the loader finds the library: asked in a process of its own."""
    script = "import ctypes, re; ctypes.CDLL('libvulkan.so.1'); print(re.search(r'/\\S*libvulkan\\.so\\S*', open('/proc/self/maps').read())[0])"  # noqa: E501
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stands before Linux's Vulkan loader")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_full_device_is_told_and_goes_on(webgpu: str, endless: Path, tmp_path: Path) -> None:
    library = tmp_path / "libvulkan.so.1"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-o",
        str(library),
        str(HERE / "limited_vulkan.c"),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    environment = {**os.environ, "REAL_VULKAN": real_vulkan(), "LD_LIBRARY_PATH": str(tmp_path)}
    script = f"import sys; sys.path.append({str(ROOT)!r}); sys.argv[0] = ''; from tests.runtime.devices.full_device import *; main(Path(sys.argv[1]))"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(endless)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert re.fullmatch(f"OutOfMemoryError: {FULL}", told["load"])
    assert len(told["growing"]) == 1 and re.fullmatch(FULL, told["growing"][0])
    for later in ("loaded again", "beside it", "afterwards", "without a limit"):
        assert told[later] == told["expected"], later
