"""The protocol `segmentation`: a head is trained on crops, and every test image is segmented whole, at its own size.

The tag says `vito-like` where an FCN head is trained end to end, as in protocols.md §g; no published number is
comparable, for learning rate and weight decay were swept there, and five runs averaged.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from cyclecontrast.config import SegmentationConfig
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.masked_images import MaskedImages, MaskedSplit
from cyclecontrast.data.text_lines import raise_problems
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.breakdown import doubts
from cyclecontrast.evaluation.embeddings import frozen
from cyclecontrast.evaluation.image_batches import in_order, load_image_batches
from cyclecontrast.evaluation.mask_files import encode_mask, packed, unpacked
from cyclecontrast.evaluation.result import DataInfo
from cyclecontrast.evaluation.segmentation.scoring import score
from cyclecontrast.evaluation.segmentation.training import Hardware, Segmenter, fit, make_segmenter
from cyclecontrast.evaluation.two_steps import Predictions
from cyclecontrast.evaluation.unfinished import Arrays, Unfinished
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.hardware import pick_device, pick_workers

__all__ = ["describe", "open_data", "predict", "score"]

EPOCHS = {"ade20k": 60}
OTHER_EPOCHS = 45
IMAGES_PER_PART = 256
COLUMNS = ("predicted", "truth")
NAMED = frozenset({"crop_size", "frozen", "train_list"})
"""Settings that the tag names in words of its own."""


class Readable(NamedTuple):
    """Positions of the images whose pixels and mask can be read, and a line for each other one."""

    positions: list[int]
    problems: tuple[str, ...]


def open_data(config: SegmentationConfig) -> MaskedImages:
    """Read the lists and folders of the data; raises UserError."""
    return MaskedImages.open(config.data, config.num_classes, config.ignore_label, config.train_list)


def describe(data: MaskedImages, config: SegmentationConfig) -> DataInfo:
    """Return which images are segmented."""
    return DataInfo(str(data.root), data.fingerprint, len(data.train), len(data.test))


def predict(backbone: Backbone, data: MaskedImages, config: SegmentationConfig, unfinished: Unfinished) -> Predictions:
    """Train a head, then segment each test image; all images and masks are read once before."""
    device = pick_device(config.device)
    hardware = Hardware(device, pick_workers(config.workers, device))
    segmenter = make_segmenter(backbone, len(data.classes), config, device)
    train, test = (
        find_readable(split, f"reading {name}", hardware.workers, unfinished)
        for name, split in (("train", data.train), ("test", data.test))
    )
    epochs = config.epochs or EPOCHS.get(data.layout, OTHER_EPOCHS)
    loss = fit(segmenter, data.train, train.positions, epochs, config, hardware, unfinished)
    return Predictions(
        _segment_all(segmenter, data.test, test.positions, hardware, unfinished),
        _tag(data, config),
        (*data.notes, *doubts(loss, len(data.classes))),
        (*data.problems, *train.problems, *test.problems),
        {"classes": list(data.classes), "layout": data.layout, "epochs": epochs, "last_loss": loss},
        (len(train.positions), len(test.positions)),
        NAMED,
    )


def find_readable(split: MaskedSplit, title: str, workers: int, unfinished: Unfinished) -> Readable:
    """Read every image and mask once; raises UserError where none can be read."""
    found = unfinished.arrays(title, lambda: _read_all(split, title, workers))
    positions, problems = found["positions"].tolist(), tuple(found["problems"].tolist())
    if not positions:
        raise_problems([f"{title}: none of the {len(split):,} images can be used", *problems])
    return Readable(positions, problems)


def _read_all(split: MaskedSplit, title: str, workers: int) -> Arrays:
    batches = list(load_image_batches(split, _corner, in_order(len(split), 64), workers, title))
    problems = [problem for batch in batches for problem in batch.problems]
    return {
        "positions": np.concatenate([batch.positions.numpy() for batch in batches]),
        "problems": np.array(problems, str),
    }


def _corner(image: Pixels, position: int) -> Pixels:
    return image[:1, :1]


def _whole(image: Pixels, position: int) -> Pixels:
    return image


def _segment_all(
    segmenter: Segmenter, test: MaskedSplit, positions: Sequence[int], hardware: Hardware, unfinished: Unfinished
) -> pa.Table:
    """Return the record: id, predicted mask and true mask of each image, masks as PNG."""
    parts = []
    for start in range(0, len(positions), IMAGES_PER_PART):
        asked = positions[start : start + IMAGES_PER_PART]
        name = f"masks-{asked[0]}-{asked[-1]}"
        parts.append(unfinished.arrays(name, lambda a=asked: _segment(segmenter, test, a, hardware)))  # type: ignore[misc]
    columns = {
        name: pa.chunked_array([pa.array(unpacked(part, name), pa.large_binary()) for part in parts])
        for name in COLUMNS
    }
    return pa.table({"id": [test.pairs[position].image for position in positions], **columns})


def _segment(segmenter: Segmenter, test: MaskedSplit, positions: Sequence[int], hardware: Hardware) -> Arrays:
    """Segment images one by one, for each has a size of its own; files of PNG lie side by side in one array."""
    files: dict[str, list[bytes]] = {name: [] for name in COLUMNS}
    one_by_one = [[position] for position in positions]
    segmenter.head.to(hardware.device).eval()
    with frozen(segmenter.dense.backbone, hardware.device), torch.inference_mode():
        for batch in load_image_batches(test, _whole, one_by_one, hardware.workers, "segmenting test"):
            if batch.problems:
                raise UserError(*batch.problems)
            pixels = batch.pixels[:, :3].to(hardware.device)
            predicted = segmenter.scores(pixels).argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
            for name, mask in (("predicted", predicted), ("truth", batch.pixels[0, 3].numpy())):
                files[name].append(encode_mask(mask))
    return {key: array for name in COLUMNS for key, array in packed(name, files[name]).items()}


def _tag(data: MaskedImages, config: SegmentationConfig) -> str:
    how = "frozen" if config.frozen else "end-to-end"
    recipe = "vito-like " if config.head == "fcn" and not config.frozen else ""
    layout = data.layout if config.train_list == "train" else f"{data.layout}/{config.train_list}"
    return (
        f"segmentation {recipe}head={config.head} {how} layout={layout} crop={config.crop_size} stride={config.stride}"
    )
