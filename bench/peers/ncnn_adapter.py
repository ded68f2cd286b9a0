"""ncnn from its wheel, float32 storage and arithmetic, converted by pnnx (which ncnn's documents recommend)."""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np

from bench.peers import Arrays, PeerError, Run, converted, is_current
from bench.peers.tools import run_tool, tool
from bench.signature import Signature

NAME = "ncnn"


def version() -> str:
    tool("pnnx")
    return installed("ncnn")


def prepare(model: Path, signature: Signature) -> Path:
    path = converted(model, "param")
    if not is_current(path, model):
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # pnnx writes many files beside the model
            local = Path(folder) / model.name
            local.symlink_to(model.resolve())
            made = local.with_name(f"{model.stem}.ncnn.param")
            sizes = ",".join(str(list(shape)).replace(" ", "") + "f32" for shape in signature.inputs.values())
            run_tool([tool("pnnx"), local, "fp16=0", f"inputshape={sizes}"], made)
            shutil.move(made.with_suffix(".bin"), path.with_suffix(".bin"))
            shutil.move(made, path)
    return path


def load(prepared: Path, threads: int, signature: Signature) -> Run:
    import ncnn

    lines = prepared.read_text(encoding="utf-8").splitlines()[2:]
    unknown = sorted({line.split()[0] for line in lines if "." in line.split()[0]})
    if unknown:
        raise PeerError(f"pnnx knows no ncnn layer for {', '.join(unknown)}")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(prepared)) or net.load_model(str(prepared.with_suffix(".bin"))):
        raise PeerError("load_param or load_model failed")
    names = sorted((n for n in net.output_names()), key=lambda n: int(n.removeprefix("out")))
    if len(names) != len(signature.outputs):
        raise PeerError(f"the conversion has {len(names)} outputs instead of {len(signature.outputs)}")

    def run(given: Arrays) -> list[np.ndarray]:
        extractor = net.create_extractor()
        for position, array in enumerate(given.values()):
            # ncnn has no batch axis; signals in the order time, batch, features have it in the middle.
            array = array[0] if array.shape[0] == 1 else array[:, 0]
            if extractor.input(f"in{position}", ncnn.Mat(np.ascontiguousarray(array))):
                raise PeerError("an input is refused")
        results = []
        for name in names:
            status, made = extractor.extract(name)
            if status:
                raise PeerError(f"extract returns {status}")
            results.append(np.array(made)[None])
        return results

    return run


def warm_import() -> None:
    import ncnn  # noqa: F401
