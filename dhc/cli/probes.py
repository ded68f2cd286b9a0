"""Looking for drivers and devices: each in a process of its own, because a broken driver may crash or hang."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

_TIMEOUT = 15.0

_OPENCL = """
import json, glob
found = {"icds": sorted(glob.glob("/etc/OpenCL/vendors/*.icd")), "devices": []}
try:
    import pyopencl
except ImportError as error:
    found["problem"] = "pyopencl is not installed"
    found["remedy"] = "pip install 'dhc[opencl]'"
else:
    found["version"] = pyopencl.VERSION_TEXT
    try:
        platforms = pyopencl.get_platforms()
    except pyopencl.Error as error:
        platforms = []
        found["problem"] = "no OpenCL platform: " + str(error)
    for platform in platforms:
        try:
            for device in platform.get_devices():
                where = platform.name.strip() + ", " + device.version.strip()
                found["devices"].append(device.name.strip() + " (" + where + ")")
        except pyopencl.Error as error:
            found["problem"] = platform.name + ": " + str(error)
    if not found["devices"]:
        found.setdefault("problem", "no OpenCL device")
        found["remedy"] = "install the vendor's OpenCL driver, or PoCL: pip install 'dhc[opencl]'"
print(json.dumps(found))
"""

_CUDA = """
import ctypes, json
from importlib.metadata import PackageNotFoundError, version
found = {"devices": []}
try:
    found["version"] = "numba-cuda " + version("numba-cuda")
except PackageNotFoundError:
    pass
try:
    driver = ctypes.CDLL("libcuda.so.1")
except OSError:
    found["problem"] = "no NVIDIA driver (libcuda.so.1)"
    found["remedy"] = "install the NVIDIA driver of this machine's GPU, if it has one"
else:
    status = driver.cuInit(0)
    number = ctypes.c_int(0)
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(number))
    if status != 0 or number.value == 0:
        found["problem"] = "the driver reports no usable GPU (error %d)" % status
        found["remedy"] = "see nvidia-smi; in a container, pass the GPU through"
    for index in range(number.value if status == 0 else 0):
        device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
        major, minor = ctypes.c_int(0), ctypes.c_int(0)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, 256, device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        found["devices"].append("%s (compute capability %d.%d)" % (name.value.decode(), major.value, minor.value))
    if found["devices"] and "version" not in found:
        found["problem"] = "numba-cuda is not installed"
        found["remedy"] = "pip install 'dhc[cuda]'"
print(json.dumps(found))
"""

_PYNQ = """
import json
found = {"devices": []}
try:
    import pynq
except ImportError:
    found["problem"] = "pynq is not installed"
    found["remedy"] = "run on the board: its PYNQ image brings pynq; compiling for it needs nothing more"
else:
    found["version"] = getattr(pynq, "__version__", "")
    try:
        found["devices"] = [str(device.name) for device in pynq.Device.devices]
    except Exception as error:
        found["problem"] = "no board: %s" % error
        found["remedy"] = "run on the board, as root"
print(json.dumps(found))
"""

_SCRIPTS = {"opencl": _OPENCL, "cuda": _CUDA, "pynq": _PYNQ}


@dataclass(frozen=True)
class Probe:
    """What was found of a kind of device.

    Attributes:
        kind: ``opencl``, ``cuda`` or ``pynq``.
        devices: names of usable devices.
        version: of the package that speaks to them.
        problem: why there is none, or what is missing; empty when all is well.
        remedy: what to do about it.
    """

    kind: str
    devices: list[str] = field(default_factory=list)
    version: str = ""
    problem: str = ""
    remedy: str = ""


def probe(kind: str, timeout: float = _TIMEOUT) -> Probe:
    """Looks for devices; always answers within the time, whatever the driver does."""
    return run_probe(kind, _SCRIPTS[kind], timeout)


def run_probe(kind: str, script: str, timeout: float) -> Probe:
    """Runs a script that prints JSON, in a process of its own."""
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter with a script of this file
            [sys.executable, "-P", "-c", script], capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Probe(kind, problem=f"the driver did not answer within {timeout:g} s", remedy="restart or reinstall it")
    except OSError as error:
        return Probe(kind, problem=f"no process could be started: {error.strerror}")
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"status {done.returncode}"]
        return Probe(kind, problem=f"looking for devices crashed: {last[0][:200]}", remedy="reinstall the driver")
    return _parsed(kind, done.stdout)


def _parsed(kind: str, output: bytes) -> Probe:
    try:
        # Drivers may write lines of their own before ours.
        found: dict[str, Any] = json.loads(output.decode(errors="replace").strip().splitlines()[-1])
    except (ValueError, IndexError):
        return Probe(kind, problem="looking for devices gave no answer")
    texts = {key: str(found.get(key, "")) for key in ("version", "problem", "remedy")}
    return Probe(kind, [str(name) for name in found.get("devices", [])], **texts)
