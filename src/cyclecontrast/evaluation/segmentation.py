"""The protocol `segmentation`: trains a head on crops and segments every test image at full size.

The tag contains `vito-like` if an FCN head is trained end to end. No published number is comparable: VITO sweeps the
learning rate and the weight decay, and averages five runs.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from cyclecontrast.config import SegmentationConfig
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.masked_images import IGNORE, MaskedImages, MaskedSplit
from cyclecontrast.data.storage import raise_problems
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.classification import doubts, leaked
from cyclecontrast.evaluation.embed import Loading, exact_convolutions
from cyclecontrast.evaluation.image_batches import chunks, load_image_batches
from cyclecontrast.evaluation.mask_files import (
    CLASS_LEGEND,
    decode_mask,
    draw_classes,
    draw_sheet,
    encode_mask,
)
from cyclecontrast.evaluation.metrics import iou_per_class, pixel_accuracy, pixel_confusion
from cyclecontrast.evaluation.predictions import DataInfo, Record
from cyclecontrast.evaluation.protocol import Predictions, Protocol, Score
from cyclecontrast.evaluation.resume_cache import Arrays, ResumeCache
from cyclecontrast.evaluation.segmenter import Segmenter, fit, make_segmenter
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.hardware import pick_device, pick_workers
from cyclecontrast.progress import with_progress

EPOCHS = {"ade20k": 60}
OTHER_EPOCHS = 45
IMAGES_PER_PART = 256
NUM_DRAWN = 8
COLUMNS = ("predicted", "truth")


class Segmentation(Protocol[SegmentationConfig, MaskedImages]):
    """Mean IoU of a segmentation head on feature maps, the backbone frozen or trained too."""

    name = "segmentation"
    config_class = SegmentationConfig

    def open(self) -> MaskedImages:
        """Read the lists and folders of the data; raises UserError."""
        config = self.config
        return MaskedImages.open(config.data, config.num_classes, config.ignore_label, config.train_list)

    def describe(self, data: MaskedImages) -> DataInfo:
        """Count the images of both splits."""
        return DataInfo(str(data.root), data.fingerprint, len(data.train), len(data.test))

    def predict(self, backbone: Backbone, data: MaskedImages, cache: ResumeCache) -> Predictions:
        """Train a head, then segment each test image; all images and masks are read once before."""
        config = self.config
        device = pick_device(config.device)
        loading = Loading(config.crop_size, config.batch_size, pick_workers(config.workers, device), device)
        segmenter = make_segmenter(backbone, len(data.classes), config, device)
        train, train_problems = _find_readable(data.train, "reading train", loading.workers, cache)
        test, test_problems = _find_readable(data.test, "reading test", loading.workers, cache)
        epochs = config.epochs or EPOCHS.get(data.layout, OTHER_EPOCHS)
        loss = fit(segmenter, data.train, train, epochs, config, loading, cache)
        return Predictions(
            _segment_all(segmenter.eval(), data.test, test, loading, cache),
            _tag(data, config),
            (*data.notes, *leaked(data.train, data.test), *doubts(loss, len(data.classes))),
            (*data.problems, *train_problems, *test_problems),
            {"classes": list(data.classes), "layout": data.layout, "epochs": epochs, "last_loss": loss},
            (len(train), len(test)),
            frozenset({"crop_size", "frozen", "train_list"}),
        )

    def score(self, record: Record) -> Score:
        """Count the pixels of all test images together: mean IoU over classes, and accuracy over pixels.

        A class that is neither true nor predicted anywhere is left out of the mean, and has no IoU in the breakdown.
        """
        classes = record.about.details["classes"]
        confusion = np.zeros((len(classes), len(classes)), np.int64)
        num_images = record.table.num_rows
        for row in with_progress(range(num_images), "segmentation, scoring images", num_images):
            truth, predicted = _masks(record, row)
            confusion += pixel_confusion(predicted, truth, len(classes), IGNORE)
        if not confusion.any():
            raise UserError(f"{record.about.data.path}: every pixel of the test masks is ignored; nothing to score")
        iou = iou_per_class(confusion)
        predicted_classes = [name for name, column in zip(classes, confusion.T, strict=True) if column.any()]
        single = f"all pixels are predicted as {predicted_classes[0]}; train longer, or change learning_rate"
        shown = sorted(set(np.linspace(0, num_images - 1, NUM_DRAWN).astype(int).tolist()))
        return Score(
            {"mean_iou": float(np.nanmean(iou)), "pixel_accuracy": pixel_accuracy(confusion)},
            {
                "classes": classes,
                "num_pixels": confusion.sum(axis=1).tolist(),
                "iou": [None if math.isnan(value) else value for value in iou.tolist()],
                "confusion": confusion.tolist(),
            },
            notes=(single,) if len(predicted_classes) == 1 else (),
            files={"png": draw_sheet(CLASS_LEGEND, [draw_classes([_masks(record, row) for row in shown])])},
        )


def _find_readable(
    split: MaskedSplit, title: str, workers: int, cache: ResumeCache
) -> tuple[list[int], tuple[str, ...]]:
    """Read every image and mask once; returns the readable positions, and a line for each other one.

    Raises UserError where none can be read.
    """

    def read() -> Arrays:
        batches = list(load_image_batches(split, _corner, chunks(range(len(split)), 64), workers, title))
        problems = [problem for batch in batches for problem in batch.problems]
        positions = np.concatenate([batch.positions.numpy() for batch in batches])
        return {"positions": positions, "problems": np.array(problems, str)}

    found = cache.arrays(title, read)
    positions, problems = found["positions"].tolist(), tuple(found["problems"].tolist())
    if not positions:
        raise_problems([f"{title}: none of the {len(split):,} images can be used", *problems])
    return positions, problems


def _corner(image: Pixels, position: int) -> Pixels:
    return image[:1, :1]


def _segment_all(
    segmenter: Segmenter, test: MaskedSplit, positions: Sequence[int], loading: Loading, cache: ResumeCache
) -> pa.Table:
    """Return the record: id, predicted mask and true mask of each image, masks as PNG files."""
    parts = [
        cache.arrays(f"masks-{group[0]}-{group[-1]}", partial(_segment, segmenter, test, group, loading))
        for group in chunks(positions, IMAGES_PER_PART)
    ]
    columns = {
        name: pa.chunked_array([pa.array(part[name].tolist(), pa.large_binary()) for part in parts]) for name in COLUMNS
    }
    return pa.table({"id": [test.pairs[position].image for position in positions], **columns})


def _segment(segmenter: Segmenter, test: MaskedSplit, positions: Sequence[int], loading: Loading) -> Arrays:
    """Segment images one by one, because each has its own size; returns PNG files."""
    predicted, truth = [], []
    with exact_convolutions(), torch.inference_mode():
        for batch in load_image_batches(test, None, chunks(positions, 1), loading.workers, "segmenting test"):
            if batch.problems:
                raise UserError(*batch.problems)
            scores = segmenter(batch.pixels[:, :3].to(loading.device))
            predicted.append(encode_mask(scores.argmax(dim=1)[0].to(torch.uint8).cpu().numpy()))
            truth.append(encode_mask(batch.pixels[0, 3].numpy()))
    return {"predicted": np.array(predicted), "truth": np.array(truth)}


def _tag(data: MaskedImages, config: SegmentationConfig) -> str:
    how = "frozen" if config.frozen else "end-to-end"
    recipe = "vito-like " if config.head == "fcn" and not config.frozen else ""
    layout = data.layout if config.train_list == "train" else f"{data.layout}/{config.train_list}"
    return (
        f"segmentation {recipe}head={config.head} {how} layout={layout} crop={config.crop_size} stride={config.stride}"
    )


def _masks(record: Record, row: int) -> tuple[Pixels, Pixels]:
    truth, predicted = (decode_mask(record.table[name][row].as_py()) for name in ("truth", "predicted"))
    return truth, predicted
