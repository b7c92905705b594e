"""Does every method learn on the demo's videos? kNN on frames of unseen instances, against random weights.

    python studies/methods.py                  # all, 1,500 steps each: an hour or more
    python studies/methods.py byol simsiam

Clearly above is more than two standard errors of a difference on 300 instances: the four frames that show each of them
are not independent of each other. Exit code 1 where one is not.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import cyclecontrast as cc
from cyclecontrast.data.synthetic import SyntheticSpec
from cyclecontrast.demo_run import BACKBONE, IMAGE_SIZE, make_data
from cyclecontrast.methods import METHODS

SPEC = SyntheticSpec()
NUM_INSTANCES = SPEC.num_categories * SPEC.num_test_per_category
OPTIONS: dict[str, dict[str, Any]] = {
    "cycle-only": {"query_frame_in_support": True},
    "byol": {"positives": "video"},
    "simsiam": {"positives": "video"},
}
"""What is set where `auto` leaves a choice: two frames of a video, not two views of one, are to be learned from."""


def is_clear(ours: float, random: float) -> bool:
    """Tell whether an accuracy is above that of random weights by two standard errors of the difference."""
    return ours - random > 2 * math.sqrt((ours * (1 - ours) + random * (1 - random)) / NUM_INSTANCES)


def main() -> int:
    """Train and evaluate one after the other; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in METHODS if name != "distill"]  # which needs a teacher
    parser.add_argument("methods", nargs="*", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder))
        shared: dict[str, Any] = {"backbone": BACKBONE, "image_size": IMAGE_SIZE, "min_crop": 0.4, "holdout": 0}

        def accuracy(model: str) -> float:
            out = Path(folder) / "results"
            return cc.evaluate("knn", model, data.labeled, k=(20,), image_size=IMAGE_SIZE, out=out).metrics["top1_k20"]

        random = accuracy(f"random:{BACKBONE}")
        lines, unclear = [f"random weights: {random:.1%}"], False
        for name in asked.methods or known:
            run = Path(folder) / name
            options = shared | {"steps": asked.steps, "seed": asked.seed} | OPTIONS.get(name, {})
            cc.pretrain(data=data.frames, out=run, method=name, **options)
            ours = accuracy(str(run))
            unclear |= not is_clear(ours, random)
            lines.append(f"{name}: {ours:.1%}, {'clearly above' if is_clear(ours, random) else 'not clearly above'}")
    print("\n".join(["", *lines]))
    return int(unclear)


if __name__ == "__main__":
    sys.exit(main())
