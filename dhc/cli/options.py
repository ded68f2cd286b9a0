"""Options that several verbs share, declared once so that they read the same everywhere."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from dhc.errors import UsageError

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON on standard output, with nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Shapes = Annotated[
    list[str],
    typer.Option(
        "--shape",
        metavar="x=1x3x224x224",
        help="Shape of an input; may be repeated. Letters name sizes that stay open (x=Nx3x224x224). "
        "The name may be left out where the model has one input.",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=1024, help="Number of threads. Default: all CPUs of the process.")
]
Cpu = Annotated[
    str | None,
    typer.Option(
        "--cpu",
        help="CPU to generate code for: host, x86-64, x86-64-v2, x86-64-v3, x86-64-v4, aarch64. "
        "Default: the environment's DHC_CPU, else host.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="fp32, or how the weights of convolutions and matrix products are stored: bf16, fp16. bf16 also "
        "multiplies in bf16 where the processor does. Sums stay in fp32.",
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="BYTES",
        help="Most memory for the values of a run, such as 800M or 4G; larger models run patch by patch.",
    ),
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX model, or IR text (- for standard input).")]
Runnable = Annotated[str, typer.Argument(metavar="FILE", help="An artifact, an ONNX model, or IR text.")]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--input",
        "-i",
        metavar="x=FILE",
        help="Value of an input: .npy, .npz, .png, .jpg, .dcm, or the word random. Repeat it for further inputs; "
        "several images of one input make a batch. The name may be left out where the model has one input.",
    ),
]
Preprocessing = Annotated[
    str,
    typer.Option("--pre", metavar="NAME", help="What happens to the values of images; `dhc run --pre list` explains."),
]
PrintAfter = Annotated[
    list[str],
    typer.Option("--print-after", metavar="PASS", help="Print the IR after this pass, or after all, on stderr."),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check the graph after every pass.")]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="Convolutions as plain sums, not by the faster methods that round differently."),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Neither read nor write the cache of kernels and artifacts on disk.")
]


def parse_bytes(text: str | None) -> int | None:
    """A number of bytes such as ``800M`` or ``1.5G`` (powers of 1024); None for none.

    Raises:
        UsageError: it is no such number.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = 0 if found is None else int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))
    if size <= 0:
        raise UsageError(f"{text!r} is no number of bytes", hint="write for example --max-memory 800M, or 4G")
    return size
