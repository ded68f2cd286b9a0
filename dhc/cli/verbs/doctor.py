"""``dhc doctor``: versions, devices and drivers, the kernel cache, and what is missing for what."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dhc.cli.options import AsJson, Debug
from dhc.cli.output import Output, format_bytes

_PACKAGES = (
    "numpy",
    "numba",
    "llvmlite",
    "onnx",
    "safetensors",
    "networkx",
    "pydantic",
    "typer",
    "rich",
    "onnxruntime",
)


def doctor(
    clear_cache: Annotated[
        bool, typer.Option("--clear-cache", help="Remove all kernels and artifacts from the cache.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show versions, devices, drivers, the kernel cache and what each extra would bring."""
    from concurrent.futures import ThreadPoolExecutor

    from dhc.cli.probes import probe

    out = Output(as_json)
    with out.progress() as progress, ThreadPoolExecutor(3) as pool:
        progress("looking for devices")
        waiting = [pool.submit(probe, kind) for kind in ("opencl", "cuda", "pynq")]
        data: dict[str, Any] = {"versions": _versions(), "cpu": _cpu()}
        data["cache"] = _cache(clear_cache)
        data["devices"] = {found.kind: _probe_data(found) for found in (future.result() for future in waiting)}
    data["extras"] = _extras()
    data["targets"] = _targets()
    _show(out, data)
    missing = [extra for extra in data["extras"] if extra["missing"]]
    out.end(data, missing[0]["command"] if missing and missing[0]["name"] == "imaging" else "dhc demo")


def _versions() -> dict[str, str | None]:
    from dhc_runtime import __version__ as runtime_version

    from dhc import __version__
    from dhc.cli.extras import installed_version

    versions: dict[str, str | None] = {"dhc": __version__, "dhc-runtime": runtime_version}
    versions["python"] = platform.python_version()
    versions.update({name: installed_version(name) for name in _PACKAGES})
    return versions


def _cpu() -> dict[str, Any]:
    from dhc_runtime.cpu_features import host_features

    from dhc.cli.compiling import available_cpus

    data: dict[str, Any] = {
        "model": _cpu_model(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpus": os.cpu_count(),
        "available": available_cpus(),
    }
    try:
        from dhc.backends.cpu.target import host_target, required_features

        target = host_target()
        data["target"] = {
            "cpu": target.cpu,
            "triple": target.triple,
            "vector_bits": target.vector_bits,
            "vector_registers": target.vector_registers,
            "fma": target.fma,
            "l1_bytes": target.l1_bytes,
            "l2_bytes": target.l2_bytes,
            "features": required_features(target),
        }
        lacking = sorted(set(required_features(target)) - set(host_features()))
        data["problem"] = f"the runtime does not see {', '.join(lacking)}" if lacking else None
    except Exception as error:  # a broken llvmlite must not keep the rest from being shown
        data["target"], data["problem"] = None, f"{type(error).__name__}: {error}"
    return data


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cache(clear: bool) -> dict[str, Any]:
    from dhc.backends.cpu.cache import default_folder

    folder = default_folder()
    if folder is None:
        nothing = {"entries": 0, "bytes": 0, "artifacts": 0, "artifact_bytes": 0, "removed": 0}
        return {"folder": None, "writable": False, **nothing}
    removed = 0
    entries = sorted(folder.glob("??/*.o")) if folder.is_dir() else []
    if clear:
        for path in entries:
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
        entries = [path for path in entries if path.exists()]
    size = 0
    for path in entries:
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    artifacts, held = _artifacts(folder, clear)
    return {
        "folder": str(folder),
        "entries": len(entries),
        "bytes": size,
        "artifacts": artifacts,
        "artifact_bytes": held,
        "writable": _writable(folder),
        "removed": removed,
    }


def _artifacts(folder: Path, clear: bool) -> tuple[int, int]:
    """How many artifacts the cache holds, and their bytes."""
    from dhc.artifact_cache import ArtifactCache

    cache = ArtifactCache(folder / "artifacts")
    if clear:
        cache.clear()
    sizes = []
    for path in cache.folder.glob("*.dhc"):
        with contextlib.suppress(OSError):
            sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes)


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that exists, may be written."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _probe_data(found: Any) -> dict[str, Any]:
    return {"devices": found.devices, "version": found.version, "problem": found.problem, "remedy": found.remedy}


def _targets() -> list[str]:
    from dhc.backends.registry import backend_names

    return backend_names()


def _extras() -> list[dict[str, Any]]:
    from dhc.cli.extras import EXTRAS

    return [
        {"name": extra.name, "brings": extra.brings, "missing": extra.missing, "command": extra.command}
        for extra in EXTRAS
    ]


def _show(out: Output, data: dict[str, Any]) -> None:
    out.fields([(name, version or "not installed") for name, version in data["versions"].items()])
    out.line(f"in {sys.prefix}")
    out.line()
    cpu = data["cpu"]
    out.line(f"{cpu['model']}, {cpu['available']} of {cpu['cpus']} CPUs usable, {cpu['system']} {cpu['machine']}")
    target = cpu["target"]
    if target is not None:
        fma = "FMA" if target["fma"] else "no FMA"
        caches = f"L1 {format_bytes(target['l1_bytes'])}, L2 {format_bytes(target['l2_bytes'])}"
        vectors = f"{target['vector_registers']} vectors of {target['vector_bits']} bits"
        out.line(f"--cpu host is {target['cpu']}: {vectors}, {fma}, {caches}")
    if cpu["problem"]:
        out.line(f"CPU problem: {cpu['problem']}", "red")
    cache = data["cache"]
    if cache["folder"] is None:
        out.line("kernel cache: off (DHC_CACHE_DIR is empty)")
    else:
        state = "writable" if cache["writable"] else "NOT writable: set DHC_CACHE_DIR to a folder that is"
        held = f"{cache['entries']} kernels, {format_bytes(cache['bytes'])}"
        if cache["artifacts"]:
            held += f"; {cache['artifacts']} artifacts, {format_bytes(cache['artifact_bytes'])}"
        out.line(f"kernel cache: {cache['folder']}, {held}, {state}")
        if cache["removed"]:
            out.line(f"removed {cache['removed']} kernels")
    rows = [["cpu", "always", "", ""]]
    for kind, found in data["devices"].items():
        rows.append([kind, "; ".join(found["devices"]) or "none", found["problem"], found["remedy"]])
    out.table(["devices", "found", "problem", "remedy"], rows)
    version, targets = data["versions"]["dhc"], ", ".join(data["targets"])
    out.line(f"dhc {version} compiles for the targets {targets}; other devices are planned")
    rows = [
        [extra["name"], "installed" if not extra["missing"] else f"missing {', '.join(extra['missing'])}",
         extra["brings"], extra["command"] if extra["missing"] else ""]
        for extra in data["extras"]
    ]  # fmt: skip
    out.table(["extra", "state", "brings", "install with"], rows)
