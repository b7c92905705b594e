"""SiamFC: the target is where the first image's features fit best; the size follows the best of three scales (§a)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cyclecontrast.config import TrackingConfig
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.tracking_sequences import Sequences
from cyclecontrast.evaluation.embed import check_finite, exact_convolutions
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.evaluation.tracking.crops import Target, crop_squares
from cyclecontrast.evaluation.tracking.dense_features import DenseFeatures, stride_of
from cyclecontrast.evaluation.tracking.fit_head import FittedHead, fit_head
from cyclecontrast.evaluation.tracking.head import Head, raw_head
from cyclecontrast.evaluation.tracking.presets import PRESETS, SEARCH_SIZE, head_shape
from cyclecontrast.evaluation.tracking.response_peak import UPSAMPLED_SIZE, UPSAMPLING, find_peak
from cyclecontrast.evaluation.tracking.tracker import Box, PreparedTracker
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.hardware import pick_device

SCALES = tuple(1.0375**power for power in (-1, 0, 1))
SCALE_RATE = 0.59
RELEASED_STRIDE = 8
FEW_STEPS = 400
OF_TRAINING = ("epochs", "batch_size", "learning_rate", "pairs_per_sequence", "train_data")


def prepare_tracker(
    backbone: Backbone, config: TrackingConfig, train: Sequences | None, unfinished: ResumeCache
) -> PreparedTracker:
    """Train the head on these sequences, or with None correlate the raw features; raises UserError."""
    features = DenseFeatures.of(backbone, pick_device(config.device))
    options = (config.exact_geometry, config.fix_scale_penalty)
    size = PRESETS[config.preset].exemplar_size
    if train is None:
        unused = [name for name in OF_TRAINING if name in config.model_fields_set]
        notes = (f"{' and '.join(unused)} did nothing: no head is trained",) if unused else ()
        head = raw_head(backbone.dim, PRESETS[config.preset])
        return PreparedTracker(SiamFC(features, head, size, *options), _tag(config, "head=raw"), notes)
    fitted = fit_head(features, train, config, unfinished)
    return PreparedTracker(
        SiamFC(features, fitted.head, size, *options),
        _tag(config, f"head=trained epochs={fitted.plan.epochs}"),
        (*fitted.notes, *_doubts(fitted)),
        fitted.problems,
        {
            "losses": [round(loss, 6) for loss in fitted.losses],
            "head_dim": head_shape(backbone.dim, fitted.plan.preset)[0],
            "head_scale": fitted.head.scale,
            "epochs": fitted.plan.epochs,
            "learning_rate": fitted.plan.learning_rate,
            "batch_size": fitted.plan.batch_size,
            "pairs_per_sequence": fitted.plan.pairs_per_sequence,
            "num_steps": fitted.num_steps,
        },
    )


def _tag(config: TrackingConfig, head: str) -> str:
    options = (" geometry=exact" if config.exact_geometry else "") + (
        " scale_penalty=fixed" if config.fix_scale_penalty else ""
    )
    return f"tracking tracker=siamfc preset={config.preset} {head}{options}"


def _doubts(fitted: FittedHead) -> Iterator[str]:
    first, last = fitted.losses[0], fitted.losses[-1]
    if len(fitted.losses) > 1 and last >= first:
        yield f"the loss of the head did not fall, from {first:.3g} to {last:.3g}; try another learning_rate"
    if fitted.num_steps < FEW_STEPS:
        yield (
            f"the head was trained for {fitted.num_steps} steps, in the release for 58,300; "
            "raise pairs_per_sequence or epochs"
        )


class SiamFC:
    """Follows a target by features of the first image, which are never renewed; boxes are clamped to nothing.

    Differs from the release: the convolution of the exemplar runs once, not in every frame, with the same result.
    """

    def __init__(
        self,
        features: DenseFeatures,
        head: Head,
        exemplar_size: int,
        exact_geometry: bool = False,
        fix_scale_penalty: bool = False,
    ) -> None:
        self._features = features
        self._head = head.to(features.device)
        self._exemplar_size = exemplar_size
        self._exact_geometry = exact_geometry
        self._fix_scale_penalty = fix_scale_penalty

    def init(self, image: Pixels, box: Box) -> None:
        """Take the box in this image as the target."""
        self._target = Target.of(box)
        side = self._target.exemplar_side()
        self._side = side * SEARCH_SIZE / self._exemplar_size
        crop = crop_squares(image, self._target.y, self._target.x, [side], self._exemplar_size)
        maps = self._maps(crop)
        with exact_convolutions(), torch.inference_mode():
            self._kernels = self._head.exemplar(maps)

    def update(self, image: Pixels) -> Box:
        """Return the box of the target in the next image; raises UserError where features are not finite."""
        target = self._target
        sides = [self._side * scale for scale in SCALES]
        maps = self._maps(crop_squares(image, target.y, target.x, sides, SEARCH_SIZE))
        with exact_convolutions(), torch.inference_mode():
            responses = self._head.respond(self._kernels, maps)
        check_finite(responses, self._features.backbone)
        peak = find_peak(responses.cpu().numpy(), self._fix_scale_penalty)
        step = self._pixels_per_step(maps.shape[-1], responses.shape[-1]) * sides[peak.scale] / SEARCH_SIZE
        growth = 1 - SCALE_RATE + SCALE_RATE * SCALES[peak.scale]
        self._side *= growth
        self._target = Target(
            target.y + peak.dy * step, target.x + peak.dx * step, target.height * growth, target.width * growth
        )
        return self._target.box()

    def _maps(self, crops: Pixels) -> Tensor:
        return self._features(torch.from_numpy(crops).movedim(-1, 1))

    def _pixels_per_step(self, map_cells: int, response_cells: int) -> float:
        """Return how many pixels of the search crop a pixel of the upsampled response is."""
        stride = stride_of(SEARCH_SIZE, map_cells)
        if self._exact_geometry or stride != RELEASED_STRIDE:
            return response_cells * stride / UPSAMPLED_SIZE
        return RELEASED_STRIDE / UPSAMPLING
