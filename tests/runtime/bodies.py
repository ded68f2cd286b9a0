"""Programs of branches and loops, for plans with control flow."""

from __future__ import annotations

from tests.runtime.artifacts import Plan


def branch(kernel: str, times: int = 1) -> Plan:
    plan = Plan("M")
    x = plan.input("x", "f32", ["M"])
    y = plan.output("y", "f32", ["M"])
    plan.kernel(kernel, [x, y], ["M"])
    for _ in range(times - 1):
        plan.kernel("k_copy", [y, y], ["M"])
    return plan


def body(scan: bool = False, stop_at: int | None = None, element: str = "f32") -> Plan:
    """Doubles the carried vector and adds the captured one; the element is the new vector."""
    del element
    plan = Plan("M")
    iteration, going = plan.input("i", "i64", []), plan.input("c", "bool", [])
    x, k = plan.input("x", "f32", ["M"]), plan.input("k", "f32", ["M"])
    following = plan.output("going", "bool", [])
    if stop_at is None:
        plan.item("copy", **{"from": going, "to": following})
    else:
        plan.kernel("k_less", [iteration, following], [stop_at])
    y = plan.output("y", "f32", ["M"])
    middle = plan.arena("f32", ["M"])
    plan.kernel("k_double", [x, middle], ["M"])
    plan.kernel("k_add", [middle, k, y], ["M"])
    if scan:
        e = plan.output("e", "f32", ["M"])
        plan.item("copy", **{"from": y, "to": e})
    return plan
