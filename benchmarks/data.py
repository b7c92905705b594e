"""What a view costs: decoding and augmenting a frame, against Pillow's way to the same recipe: µs of ours / Pillow's.

    python benchmarks/data.py            # crops of 64, 112 and 224 px of frames of videos prepared at 256 px
    python benchmarks/data.py --sizes 224 --data FRAMES

All in one thread, as in a worker process. Beside ../shared/data, its small (GTSRB) and large (GOT-10k) frames, too. A
sample is all that is done for a pair, as the workers do it: reading, two views, stacking. The aim is that neither
decoding nor augmenting is slower than Pillow's, and that a sample costs little more than its two views. Cut alone is a
view whose colors and blur are left to the device (`--augment-on device`).
"""

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import _plain
import cv2
import torch
from _ours import SHARED, make_store
from _turns import Row, parser_of, present, ratios, take_turns, timed

from cyclecontrast.data.augment import RECIPES, View, apply_view, crop_view, draw_view
from cyclecontrast.data.dataset import ViewDataset, collate
from cyclecontrast.data.images import Pixels, decode_image
from cyclecontrast.data.random_streams import random_stream
from cyclecontrast.data.store import FrameStore

OF_SHARED = {"GTSRB": SHARED / "video_frames/gtsrb/frames", "GOT-10k": SHARED / "tracking/got10k/val"}


def measure(name: str, store: FrameStore, size: int, num_frames: int, repetitions: int) -> list[Row]:
    """Return µs per view, and their ratios."""
    recipe, rng, plain_rng = RECIPES["moco-v2"], random_stream(0, 0, 0, 0), random.Random(0)
    dataset, num_samples, batch = ViewDataset(store, recipe, size, seed=0), num_frames // 2, 16
    samples = [dataset.sample(position) for position in range(num_samples)]
    encoded = [store.read(sample.video, frame) for sample in samples for frame in sample.frames]
    images, plain_images = [decode_image(data) for data in encoded], [_plain.decode(data) for data in encoded]

    def views_by(execute: Callable[[Pixels, View, int], Pixels]) -> Callable[[], None]:
        def make_views() -> None:
            for image in images:
                execute(image, draw_view(rng, image.shape[0], image.shape[1], recipe), size)

        return make_views

    def make_samples() -> None:
        for start in range(0, num_samples, batch):
            collate([dataset[position] for position in range(start, min(start + batch, num_samples))])

    works = {
        "decode": timed(lambda: [decode_image(data) for data in encoded]),
        "augment": timed(views_by(apply_view)),
        "cut": timed(views_by(crop_view)),
        "sample": timed(make_samples),
        "plain decode": timed(lambda: [_plain.decode(data) for data in encoded]),
        "plain augment": timed(lambda: [_plain.random_view(image, size, plain_rng) for image in plain_images]),
    }
    costs = dict(take_turns(works, repetitions))
    costs["views"] = [a + b for a, b in zip(costs["decode"], costs["augment"], strict=True)]
    costs["plain views"] = [a + b for a, b in zip(costs["plain decode"], costs["plain augment"], strict=True)]
    return [
        Row(f"a view: ours / Pillow's, {name}", ratios(costs, "views", "plain views"), 1.0),
        Row(f"decoding alone / Pillow's, {name}", ratios(costs, "decode", "plain decode")),
        Row(f"augmenting alone / Pillow's, {name}", ratios(costs, "augment", "plain augment")),
        Row(f"a sample / its two views, {name}", ratios(costs, "sample", "views")),
        Row(f"cutting alone / augmenting, {name}", ratios(costs, "cut", "augment")),
        Row(f"half a sample, µs, {name}", [1e6 * seconds / num_frames for seconds in costs["sample"]]),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure every kind of frame at every size of crops and print the table."""
    parser = parser_of(__doc__, repetitions=5)
    parser.add_argument("--data", type=Path, help="frames to take instead of all")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 112, 224])
    parser.add_argument("--num-frames", type=int, default=128)
    asked = parser.parse_args(arguments)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

    def rows(folders: dict[str, Path]) -> Iterator[Row]:
        for name, folder in folders.items():
            store = FrameStore.open(folder)
            height, width = store.image(0, 0).shape[:2]
            for size in asked.sizes:
                case = f"{name} ({width}x{height}, ...) → {size} px"
                yield from measure(case, store, size, asked.num_frames, asked.repetitions)

    with tempfile.TemporaryDirectory() as root:
        there = {name: folder for name, folder in OF_SHARED.items() if folder.is_dir()}
        folders = {"given": asked.data} if asked.data else {"videos": make_store(Path(root)), **there}
        present(rows(folders), asked)


if __name__ == "__main__":
    main()
