"""What is asked → a vector: an image through the backbone that made the index, or a frame of the index itself."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Floats, unit_vectors
from cyclecontrast.files import is_model
from cyclecontrast.searching.index import FrameIndex

if TYPE_CHECKING:
    import torch

    from cyclecontrast.models.backbone import Backbone


class Query(NamedTuple):
    """A vector of length 1 (dim,), what it is of, and its row where it is of a frame of the index."""

    vector: Floats
    name: str
    row: int | None = None


class ModelName(NamedTuple):
    """A MODEL, the seed of a random one, and the content and the image size that the index was made with."""

    name: str
    seed: int
    fingerprint: str
    image_size: int


class Encoder(NamedTuple):
    """A backbone, ready to say of an image what `embed` said of frames."""

    backbone: "Backbone"
    image_size: int
    device: "torch.device"

    def vector(self, image: Pixels) -> Floats:
        """Return the vector of an RGB image, of length 1."""
        import torch

        from cyclecontrast.evaluation.embed import encode, frozen
        from cyclecontrast.evaluation.image_batches import CenterCrop, ImageBatch

        crop = np.ascontiguousarray(CenterCrop(self.image_size)(image, 0))
        batch = ImageBatch(torch.zeros(1, dtype=torch.int64), torch.from_numpy(crop[None]).movedim(-1, -3), ())
        with frozen(self.backbone, self.device):
            features = encode(self.backbone, batch, self.device).cpu().numpy()
        vector: Floats = unit_vectors(features)[0]
        return vector


def model_of(index: FrameIndex, named: str | None) -> ModelName:
    """Return the model that made an index, by the name that was given or the one in the file; raises UserError.

    What a file names is only taken where it is on this machine: no network is asked for it.
    """
    size, seed = (index.about(name) for name in ("image_size", "seed"))
    known = index.about("model_fingerprint")
    if not known or not size.isdecimal() or not 1 <= int(size[:9]) <= 8192:
        raise UserError(
            f"index: {index.path} does not say which model made its vectors; search it by --video, or embed"
        )
    name = named or index.about("model")
    if not name:
        raise UserError(f"model: {index.path} does not say where its model is; name it: --model MODEL")
    if named is None and name.startswith("timm:") and "@" not in name:
        raise UserError(
            f"model: {index.path} was made by {name}, which timm may have to fetch; if it may: --model {name}"
        )
    if not is_model(name):
        raise UserError(f"model: {name}, which made {index.path}, is gone; name where it is: --model MODEL")
    return ModelName(name, int(seed[:10]) if seed.isdecimal() else 0, known, int(size))


def load_encoder(index: FrameIndex, model: ModelName, device: str) -> Encoder:
    """Load the backbone that made an index; raises UserError where it is another, or its vectors do not fit."""
    from cyclecontrast.models.checkpoint import fingerprint, load_backbone
    from cyclecontrast.models.hardware import pick_device

    backbone = load_backbone(model.name, model.seed)
    if fingerprint(backbone) != model.fingerprint:
        raise UserError(
            f"model: {model.name} is not the one that made {index.path} (fingerprint {fingerprint(backbone)}, not "
            f"{model.fingerprint}); name that one with --model, or embed again"
        )
    if backbone.dim != index.file.dim:
        raise UserError(
            f"index: {index.path} has vectors of {index.file.dim} numbers, and {model.name}, which it says made them, "
            f"gives {backbone.dim}; make it again with `cyclecontrast embed`"
        )
    return Encoder(backbone, model.image_size, pick_device(device))
