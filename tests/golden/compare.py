"""How near to a recording another processor must come: exact where no arithmetic differs, looser with every step."""

EXACT = frozenset({"step", "epoch", "learning_rate", "cycle_weight", "replaced_frames"})
COUNTED = frozenset({"intra_accuracy", "cycle_closed"})
"""Parts of a batch of eight, of which two may differ where a comparison is a close one."""


def smooth(step):
    """Return the part by which numbers of a network without kinks may differ after so many steps."""
    return 5e-5 * 1.25**step


def with_kinks(step):
    """Return the same for a network of ReLUs, whose gradients jump where one opens that was shut."""
    return 1e-3 if step <= 2 else 0.5


def check_trace(found, expected, limit=smooth):
    """Compare the trace of a run with the recorded one, step by step, and its weights."""
    assert found["about"] == expected["about"]
    assert found["metrics"].keys() == expected["metrics"].keys()
    steps = expected["metrics"]["step"]
    for name, values in expected["metrics"].items():
        for step, value, other in zip(steps, values, found["metrics"][name], strict=True):
            allowed = 0.0 if name in EXACT else 0.26 if name in COUNTED else limit(step)
            assert _near(other, value, allowed), f"{name} at step {step}: {other}, recorded {value}"
    assert found["tensors"].keys() == expected["tensors"].keys()
    for name, (norm, total) in expected["tensors"].items():
        size, other = found["tensors"][name]
        assert _near(size, norm, limit(len(steps))), f"norm of {name}: {size}, recorded {norm}"
        assert abs(other - total) <= limit(len(steps)) * max(4 * norm, 1), f"sum of {name}: {other}, recorded {total}"


def _near(found, expected, allowed):
    if expected is None or found is None or not allowed:
        return found == expected
    return abs(found - expected) <= allowed * max(abs(expected), 1)
