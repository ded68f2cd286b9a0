"""A small classifier built in Python, compiled once, run at two batch sizes."""

from __future__ import annotations

import numpy as np

import dhc
from dhc import ops


def build(rng: np.random.Generator) -> dhc.Graph:
    """An 8x8 image classifier with random weights; the batch size stays symbolic."""
    graph = dhc.Graph("classifier")
    image = graph.input("image", "f32", ["N", 1, 8, 8])
    kernels = rng.standard_normal((4, 1, 3, 3)).astype(np.float32)
    weights = rng.standard_normal((64, 10)).astype(np.float32)
    hidden = ops.relu(ops.conv(image, kernels, pads_low=[1, 1], pads_high=[1, 1]))
    pooled = ops.max_pool(hidden, kernel=[2, 2], strides=[2, 2])
    flat = pooled.reshape("N", 64)
    graph.output(ops.softmax(flat @ weights, axis=1), names=["probabilities"])
    return graph


def main() -> None:
    """Builds, prints, compiles and runs the classifier; the interpreter must agree."""
    rng = np.random.default_rng(0)
    graph = build(rng)
    print(graph)
    session = graph.compile("cpu")
    for batch in (1, 5):
        images = rng.random((batch, 1, 8, 8), dtype=np.float32)
        probabilities = session.run({"image": images})["probabilities"]
        (reference,) = graph.evaluate(images)
        print(f"batch {batch}: {probabilities.shape}, largest difference from the interpreter "
              f"{np.abs(probabilities - reference).max():.1e}")  # fmt: skip
        np.testing.assert_allclose(probabilities, reference, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    main()
