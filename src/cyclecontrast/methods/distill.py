"""Distillation: a network learns to predict the vectors that a frozen teacher computes from the same views."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch
from cyclecontrast.distributed import ALONE, World, all_gather
from cyclecontrast.errors import UserError
from cyclecontrast.methods.method import Losses, Method, StepInfo
from cyclecontrast.methods.simsiam import negative_cosine
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import fingerprint, load_backbone
from cyclecontrast.models.hardware import autocast, compiled

IDENTITY = "teacher.fingerprint"
CENTER_RATE = 0.1
"""The running mean moves by this fraction of its distance from the mean of a step."""


class Distill(Method):
    """Distillation: a linear layer on the backbone predicts the direction of a teacher's vector of the same view.

    The loss is the negative cosine. Directions start at the running mean of the teacher's vectors (as in DINO): seen
    from the origin they are nearly the same for all images, and only this mean would be learned. The teacher is any
    MODEL (`--teacher`), is never trained, and always in evaluation mode. It sees the backbone's pixels with its own
    normalization, resized to its own image size only if it does not accept theirs. The state contains its fingerprint
    instead of its weights: a resumed run loads it again.
    """

    learns_from = "a teacher's features of the same views"
    reads = frozenset({"teacher"})
    num_queries = 2
    has_projectors = False
    needs_videos = False
    center: Tensor

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__(backbone, options, world)
        with torch.device("cpu"):  # it is a file's content, also where the method itself is built on the meta device
            teacher = _load_teacher(str(options.teacher), options.resume is not None)
            self._identity = torch.tensor(list(bytes.fromhex(fingerprint(teacher))), dtype=torch.uint8)
            self._resized_to = None if _accepts(teacher, options.image_size) else teacher.image_size
        self.head: nn.Linear = nn.Linear(backbone.dim, teacher.dim)
        self.teacher = teacher.requires_grad_(False).to(self.head.weight.device)
        self._teach = self.teacher.forward
        self.register_buffer("center", torch.zeros(teacher.dim))
        self._new_means: list[Tensor] = []

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the loss of a micro-batch; the accuracy compares with the teacher's vectors of the batch's views."""
        losses, accuracies = [], []
        for view in batch.views:
            vectors = self.teach(view)  # NxD, D dimensions of the teacher
            self._new_means.append(vectors.mean(dim=0))
            target = normalize(vectors - self.center, dim=1)
            representation = self.project(view).intra
            with autocast(view.device, self.options.precision):
                prediction = self.head(representation)
            prediction = normalize(prediction.float(), dim=1)  # NxD
            losses.append(negative_cosine(prediction, target))
            if info.measure:
                accuracies.append(self.in_batch_accuracy(prediction, target, batch.video))
        accuracy = torch.stack(accuracies).mean() if accuracies else None
        return Losses(torch.stack(losses).mean(), intra_accuracy=accuracy)

    def after_step(self, info: StepInfo) -> None:
        """Move the center towards the mean of the teacher's vectors in this step, over all processes."""
        mean = all_gather(torch.stack(self._new_means), self.world).mean(dim=0)
        self.center.lerp_(mean, CENTER_RATE if info.step else 1.0)
        self._new_means.clear()

    @torch.no_grad()
    def teach(self, pixels: Tensor) -> Tensor:
        """Return the teacher's vectors of uint8 views (batch, 3, h, w), in fp32."""
        images = self.teacher.normalize(pixels)
        if self._resized_to is not None:
            images = interpolate(images, size=self._resized_to, mode="bilinear", antialias=True)
        with autocast(pixels.device, self.options.precision):
            vectors = self._teach(images)
        return vectors.float()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything but the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self

    def compile_encoders(self) -> None:
        """Compile the encoder and the teacher."""
        super().compile_encoders()
        self._teach = compiled(self.teacher.forward)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the state, with the teacher's fingerprint instead of its weights."""
        state = super().state_dict(*args, **kwargs)
        kept = {key: value for key, value in state.items() if not key.startswith("teacher.")}
        return kept | {IDENTITY: self._identity}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the state; raises UserError if the teacher is another one."""
        if not torch.equal(state_dict[IDENTITY].cpu(), self._identity):
            raise UserError(
                f"teacher: {self.options.teacher} is not the teacher that the run began with; restore it, or name "
                "its new place: --teacher MODEL"
            )
        own = {key: value for key, value in super().state_dict().items() if key.startswith("teacher.")}
        learned = {key: value for key, value in state_dict.items() if key != IDENTITY}
        return super().load_state_dict(own | learned, strict, assign)


def _load_teacher(name: str, is_resumed: bool) -> Backbone:
    try:
        return load_backbone(name)
    except UserError as error:
        moved = "; if it was moved, name its new place: --teacher MODEL" if is_resumed else ""
        raise UserError(*(f"teacher: {problem}{moved}" for problem in error.problems)) from error


def _accepts(teacher: Backbone, size: int) -> bool:
    """Return whether the teacher takes images of this size; vision transformers may take one size only."""
    try:
        with torch.inference_mode():
            teacher(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True
