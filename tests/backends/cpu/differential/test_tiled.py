"""Running patch by patch: the same results as of the whole, within the limit of memory, or a refusal that says why."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import dhc_runtime
from dhc_runtime.errors import ArtifactError, ResourceError, ShapeError, UnsupportedError, UsageError

import dhc
from dhc.backends.patches import cheapest, cut
from dhc.ir import Builder, Graph
from dhc.passes.base import run_passes
from dhc.passes.decompose import Decompose
from dhc.passes.locality import locality, with_space
from dhc.passes.pipelines import clean_up
from dhc.tiling import _arena, _tiled
from tests.backends.cpu.differential.running import assert_close


def _weights(b: Builder, rng: np.random.Generator, *shape: int) -> Any:
    return b.constant((rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), "f32")


def unet(*space: int, up: str = "transposed", labels: bool = False) -> Graph:
    """Two levels with a skip, in any number of dimensions: strides, pooling, dilation, upsampling, concatenation."""
    graph, rng, rank = Graph(f"unet_{up}"), np.random.default_rng(3), len(space)
    b = Builder(graph)

    def conv(x: Any, channels: int, size: int = 3, dilation: int = 1) -> Any:
        pad = (dilation * (size // 2),) * rank
        return b.conv(x, _weights(b, rng, channels, x.shape[1], *(size,) * rank), _weights(b, rng, channels),
                      pads_low=pad, pads_high=pad, dilations=(dilation,) * rank)  # fmt: skip

    x = graph.input("x", "f32", (1, 2, *space))
    top = b.relu(conv(x, 6))
    middle = b.max_pool(top, kernel=(2,) * rank, strides=(2,) * rank)
    deep = b.relu(conv(b.relu(conv(middle, 8)), 8, dilation=2))
    deep = b.avg_pool(deep, kernel=(3,) * rank, strides=(1,) * rank, pads_low=(1,) * rank, pads_high=(1,) * rank)
    if up == "transposed":
        back = b.conv_transpose(deep, _weights(b, rng, 8, 6, *(2,) * rank), strides=(2,) * rank)
    else:
        back = b.resize(conv(deep, 6, 1), shape=(1, 6, *space), mode=up)
    joined = b.concat(top, back, axis=1)
    scores = b.softmax(conv(joined, 4), axis=1)
    if labels:
        graph.output(scores, b.argmax(scores, axis=1), names=["scores", "labels"])
    else:
        graph.output(scores, names=["scores"])
    return graph


GRAPHS = {
    "2d": unet(96, 130),
    "nearest": unet(130, 96, up="nearest"),
    "linear": unet(200, 64, up="linear"),
    "1d": unet(400),
    "3d": unet(64, 34, 48),
}


def cut_in_pieces(graph: Graph, share: float) -> tuple[Any, int]:
    """The artifact with patches of a share of the whole along the longer axes, and their number."""
    local = _local(graph)
    found = locality(local)
    size = [s - -(-int(s * (1 - share)) // a) * a if s > 60 else s for s, a in zip(found.space, found.alignment)]
    patches = cut(found, local, size)
    assert patches is not None
    return _tiled(dhc.compile(with_space(local, found, size), exact=True), found, patches, local), patches.count


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("share", [0.55, 0.75])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=list(GRAPHS))
def test_patches_give_the_results_of_the_whole(graph: Graph, share: float, threads: int) -> None:
    artifact, count = cut_in_pieces(graph, share)
    assert count > 1
    x = np.random.default_rng(1).standard_normal(graph.inputs[0].shape).astype(np.float32)
    with artifact.session(threads=threads) as session, dhc.compile(graph, exact=True).session(threads=1) as whole:
        tiled, wanted = session.run({"x": x})["scores"], whole.run({"x": x})["scores"]
        assert session.inputs == whole.inputs and session.outputs == whole.outputs
    if "linear" in graph.name:  # the coordinates of a patch are smaller and round differently
        assert_close(wanted, tiled, roundings=16)
    else:
        assert np.array_equal(wanted, tiled)
    assert_close(graph.evaluate(x)[0], tiled, roundings=64)


def test_a_session_of_patches_takes_what_others_take() -> None:
    artifact, count = cut_in_pieces(GRAPHS["2d"], 0.55)
    x = np.random.default_rng(2).standard_normal((1, 2, 96, 130)).astype(np.float32)
    with artifact.session(threads=2) as session:
        tiled = session.run({"x": x})["scores"]
        given = np.zeros_like(tiled)
        assert session.run({"x": x}, outputs={"scores": given})["scores"] is given
        strided = np.zeros((*tiled.shape, 2), np.float32)[..., 0]
        session.run({"x": np.asfortranarray(x)}, outputs={"scores": strided})
        assert np.array_equal(given, tiled) and np.array_equal(strided, tiled)
        assert session.profile() == []
        session.run({"x": x}, profile=True)
        assert len(session.profile()) % count == 0 and session.profile()
        with pytest.raises(ShapeError, match=r"96"):
            session.run({"x": x[..., :70]})


@pytest.mark.parametrize("divisor", [2, 4])
def test_the_limit_is_kept_by_runs(divisor: int) -> None:
    graph = unet(192, 192, labels=True)
    whole = dhc.compile(graph, threads=2, exact=True)
    outputs = sum(int(v.type.nbytes) for v in graph.outputs)
    limit = 2 * outputs + _arena(whole, 2) // divisor
    artifact = dhc.compile(graph, threads=2, exact=True, max_memory=limit)
    assert artifact.report.backend["patches"] > 1
    x = np.random.default_rng(1).standard_normal(graph.inputs[0].shape).astype(np.float32)
    with artifact.session(threads=2, max_memory=limit) as session, whole.session() as other:
        for name, wanted in other.run({"x": x}).items():
            assert np.array_equal(session.run({"x": x})[name], wanted)
    roomy = dhc.compile(graph, threads=2, exact=True, max_memory=1 << 40)
    assert "tiles" not in roomy.plan and roomy.to_bytes() == whole.to_bytes()


def test_the_patches_chosen_compute_the_least() -> None:
    """Overlaps cost most where patches are cut along several axes."""
    found = locality(_local(unet(256, 256)))
    size = cheapest(found, 256 * 256 / 2)
    assert size is not None and sorted(size)[1] == 256 and 96 < sorted(size)[0] <= 128
    assert cheapest(found, 100) is None
    assert cheapest(found, 256 * 256) == (256, 256)


def _refused(build: Any) -> str:
    graph = Graph("refused")
    b = Builder(graph)
    x = graph.input("x", "f32", (1, 4, 64, 64))
    graph.output(build(b, b.conv(x, b.constant(np.ones((4, 4, 1, 1)), "f32"))))
    with pytest.raises(
        UnsupportedError, match="more than the limit of 10,000, and the model cannot be run by"
    ) as caught:
        dhc.compile(graph, max_memory=10_000)
    return str(caught.value)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda b, x: b.reduce_mean(x, axes=(2, 3), keepdims=True), "reduce_mean at .*takes in whole axes of space"),
        (lambda b, x: b.softmax(x, axis=3), "takes in whole axes of space"),
        (lambda b, x: b.cumsum(x, axis=2), "cumsum at .*far away"),
        (lambda b, x: b.resize(x, shape=(1, 4, 96, 96), mode="linear"), "whole factor"),
        (lambda b, x: b.resize(x, shape=(1, 4, 128, 128), mode="linear", coordinate="align_corners"), "whole size"),
        (lambda b, x: b.mul(x, b.constant(np.random.default_rng(0).random((64, 1)), "f32")), "position to position"),
        (lambda b, x: b.concat(x, x, axis=2), "joins values along an axis of space"),
    ],
)
def test_what_is_not_local_is_refused_with_the_node(build: Any, reason: str) -> None:
    import re

    assert re.search(reason, _refused(build))


def test_limits_that_cannot_be_kept_are_refused() -> None:
    graph = unet(96, 96)
    with pytest.raises(ResourceError, match="with small patches"):
        dhc.compile(graph, max_memory=200_000)
    for wrong in (0, -5, True, 2.5):
        with pytest.raises(UsageError, match="positive number of bytes"):
            dhc.compile(graph, max_memory=wrong)
    open_sizes = Graph("open")
    open_sizes.output(Builder(open_sizes).relu(open_sizes.input("x", "f32", ("N", 3))))
    with pytest.raises(UsageError, match="known sizes, and N is open"):
        dhc.compile(open_sizes, max_memory=1000)


def _damage(tiles: dict[str, Any], number: int) -> None:
    output = tiles["outputs"][0]
    changes = [
        lambda: tiles.pop("size"),
        lambda: tiles["starts"][0].append(10**6),
        lambda: tiles["starts"][0].__setitem__(0, -1),
        lambda: tiles["inputs"][0]["shape"].__setitem__(1, 7),
        lambda: tiles["inputs"][0]["axes"].__setitem__(0, 9),
        lambda: tiles["inputs"].clear(),
        lambda: output["kept"][0][0].__setitem__(1, 10**6),
        lambda: output["kept"][0][-1].__setitem__(2, 0),
        lambda: output["kept"][1].pop(),
        lambda: output["shape"].__setitem__(2, 5000),
        lambda: output.__setitem__("kept", "all"),
    ]
    changes[number]()


@pytest.mark.parametrize("number", range(11))
def test_a_damaged_description_is_refused(number: int) -> None:
    from dhc_runtime.container import write_artifact

    artifact, _ = cut_in_pieces(GRAPHS["2d"], 0.55)
    plan = artifact.plan
    _damage(plan["tiles"], number)
    members = {**artifact._members, "plan.json": json.dumps(plan).encode()}
    with pytest.raises(ArtifactError, match="description of the patches is wrong"):
        dhc_runtime.load(write_artifact(None, artifact.manifest, members))


def _local(graph: Graph) -> Graph:
    local = graph.clone()
    run_passes(local, [*clean_up(), Decompose(), *clean_up()])
    return local
