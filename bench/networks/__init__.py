"""The suite: networks of medicine, written with dhc's graph API and stored as ONNX files.

`SUITE` maps a name to its network. `model_file` writes a network once into a cache folder and returns the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.networks import classification, generators, segmentation, signals, transformers, volumes
from bench.networks.net import Net


@dataclass(frozen=True)
class Network:
    """One network of the suite.

    Attributes:
        name: in tables and on the command line.
        build: writes its layers.
        published: millions of parameters where the architecture is a published one, else None.
    """

    name: str
    build: Callable[[Net], None]
    published: float | None = None

    def net(self) -> Net:
        """The network, built."""
        net = Net(self.name)
        self.build(net)
        return net


SUITE: dict[str, Network] = {
    network.name: network
    for network in (
        Network("bilstm_seizure", signals.bilstm_seizure),
        Network("caption_step", signals.caption_step),
        Network("dcgan_g64", generators.dcgan_g64, 3.577),
        Network("deeplab_v3", segmentation.deeplab_v3, 39.64),
        Network("densenet121", classification.densenet121, 7.979),
        Network("eeg_cnn1d", signals.eeg_cnn1d),
        Network("efficientnet_b0", classification.efficientnet_b0, 5.289),
        Network("meshnet3d", volumes.meshnet3d),
        Network("mobilenet_v2", classification.mobilenet_v2, 3.505),
        Network("monai_unet2d", segmentation.monai_unet2d),
        Network("monai_unet3d_64", segmentation.monai_unet3d_64, 4.806),
        Network("resnet18", classification.resnet18, 11.690),
        Network("resnet50", classification.resnet50, 25.557),
        Network("segresnet3d", volumes.segresnet3d, 1.176),
        Network("swinunetr2d", transformers.swinunetr2d),
        Network("unet_16_256", segmentation.unet_16_256),
        Network("unet_64_1024", segmentation.unet_64_1024, 31.04),
        Network("vgg16", classification.vgg16, 138.358),
        Network("vit_s16", transformers.vit_s16, 22.051),
        Network("vnet3d", volumes.vnet3d, 45.60),
    )
}


def model_file(name: str) -> Path:
    """The ONNX file of a network of the suite, written when this version of it is not there yet.

    ``DHC_BENCH_CACHE`` names the folder; default: ``dhc/bench`` of the user's cache folder.
    """
    path = cache_folder() / f"{name}.onnx"
    stamp = path.with_suffix(".version")
    if path.is_file() and stamp.is_file() and stamp.read_text() == _version():
        return path
    import dhc

    path.parent.mkdir(parents=True, exist_ok=True)
    dhc.save_onnx(SUITE[name].net().graph, path)
    stamp.write_text(_version())
    return path


def cache_folder() -> Path:
    """Where the files of networks lie, and what peers make of them."""
    named = os.environ.get("DHC_BENCH_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dhc" / "bench"


@cache
def _version() -> str:
    """Hash of the sources that decide what the files hold."""
    import dhc.frontend.onnx.export as export

    sources = [*Path(__file__).parent.glob("*.py"), *Path(export.__file__).parent.glob("*.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()


def random_inputs(shapes: dict[str, tuple[int, ...]], seed: int = 5) -> dict[str, np.ndarray[Any, Any]]:
    """Normal values for every input."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
