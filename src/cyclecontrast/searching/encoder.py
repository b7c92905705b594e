"""Encode a query image with the backbone that made an index."""

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.console import Console

from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Floats, unit_vectors
from cyclecontrast.files import is_model
from cyclecontrast.searching.index import FrameIndex

if TYPE_CHECKING:
    import torch

    from cyclecontrast.models.backbone import Backbone

IMAGE_SIZE = re.compile("[1-9][0-9]{0,3}")


class QueryEncoder(NamedTuple):
    """A backbone that encodes images as `embed` encoded the frames of an index."""

    backbone: "Backbone"
    image_size: int
    device: "torch.device"

    def encode(self, image: Pixels) -> Floats:
        """Return the vector of an RGB image (height, width, 3), scaled to length 1 (dim,)."""
        import torch

        from cyclecontrast.evaluation.embed import encode, frozen
        from cyclecontrast.evaluation.image_batches import CenterCrop, ImageBatch

        crop = np.ascontiguousarray(CenterCrop(self.image_size)(image, 0))
        batch = ImageBatch(torch.zeros(1, dtype=torch.int64), torch.from_numpy(crop[None]).movedim(-1, -3), ())
        with frozen(self.backbone, self.device):
            features = encode(self.backbone, batch, self.device).cpu().numpy()
        return unit_vectors(features)[0]  # type: ignore[no-any-return]


def open_encoder(index: FrameIndex, model: str | None, device: str) -> QueryEncoder:
    """Load the backbone that made an index, by the name given or the one in the file.

    Raises UserError where it is another backbone, or its vectors do not fit.
    """
    name, seed, image_size = _find_model(index, model)
    from cyclecontrast.models.checkpoint import fingerprint, load_backbone
    from cyclecontrast.models.hardware import pick_device

    with Console(stderr=True).status("loading the model"):
        backbone = load_backbone(name, seed)
    known = index.about["model_fingerprint"]
    if fingerprint(backbone) != known:
        raise UserError(
            f"model: {name} is not the model that made {index.path} (fingerprint {fingerprint(backbone)}, not "
            f"{known}); name the right one with --model, or run `cyclecontrast embed` again"
        )
    if backbone.dim != index.dim:
        raise UserError(
            f"index: {index.path} has {index.dim}-dimensional vectors, but {name}, which it names as its model, gives "
            f"{backbone.dim} dimensions; make it again with `cyclecontrast embed`"
        )
    return QueryEncoder(backbone, image_size, pick_device(device))


def _find_model(index: FrameIndex, model: str | None) -> tuple[str, int, int]:
    """Return name, seed and image size of the model of an index; raises UserError.

    A model that only the file names must be on this machine: an index must not cause a download.
    """
    size, seed = index.about.get("image_size", ""), index.about.get("seed", "")
    if not index.about.get("model_fingerprint") or not IMAGE_SIZE.fullmatch(size):
        raise UserError(
            f"index: {index.path} does not say which model made its vectors; search it with --video, or make it again "
            "with `cyclecontrast embed`"
        )
    name = model or index.about.get("model", "")
    if not name:
        raise UserError(f"model: {index.path} does not say where its model is; name it: --model MODEL")
    if model is None and name.startswith("timm:") and "@" not in name:
        raise UserError(
            f"model: {index.path} was made by {name}, which timm may have to download; to allow it: --model {name}"
        )
    if not is_model(name):
        raise UserError(f"model: {name}, which made {index.path}, is gone; say where it is: --model MODEL")
    return name, int(seed[:10]) if seed.isdecimal() else 0, int(size)
