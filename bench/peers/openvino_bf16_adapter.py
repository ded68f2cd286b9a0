"""OpenVINO in bf16: what it does by itself on processors that multiply bf16."""

from __future__ import annotations

from pathlib import Path

from bench.peers import Run, openvino_adapter
from bench.peers.openvino_adapter import prepare as prepare
from bench.peers.openvino_adapter import version as version
from bench.peers.openvino_adapter import warm_import as warm_import
from bench.signature import Signature

NAME = "openvino_bf16"


def load(prepared: Path, threads: int, signature: Signature) -> Run:
    return openvino_adapter.load(prepared, threads, signature, "bf16")
