"""The gradient of a graph is a graph: built from the ops' rules, compiled like any other."""

from __future__ import annotations

import numpy as np

import dhc
from dhc import ops
from dhc.ir.autodiff import gradient


def main() -> None:
    """Logistic regression: ten steps of gradient descent with a compiled gradient."""
    rng = np.random.default_rng(0)
    graph = dhc.Graph("loss")
    x = graph.input("x", "f32", ["N", 4])
    target = graph.input("target", "f32", ["N", 1])
    weights = graph.input("weights", "f32", [4, 1])
    probability = ops.sigmoid(x @ weights)
    error = probability - target
    graph.output((error * error).mean(), names=["loss"])

    loss = graph.compile("cpu")
    slope = gradient(graph, wrt=["weights"]).compile("cpu")
    points = rng.standard_normal((200, 4)).astype(np.float32)
    labels = (points @ np.array([[1.0], [-2.0], [0.5], [0.0]], np.float32) > 0).astype(np.float32)
    found = np.zeros((4, 1), np.float32)
    losses = []
    for _ in range(10):
        feed = {"x": points, "target": labels, "weights": found}
        losses.append(float(loss.run(feed)["loss"]))
        found = found - 4.0 * slope.run({**feed, "d_loss": np.float32(1)})["grad_weights"]
    print("loss by step:", " ".join(f"{v:.4f}" for v in losses))
    assert losses[-1] < 0.5 * losses[0]


if __name__ == "__main__":
    main()
