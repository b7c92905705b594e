"""The command `search`: finds the frames most similar to a query; prints them, writes a page, or serves a web page."""

import importlib.util
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np
from rich.console import Console

from cyclecontrast.config import SearchConfig
from cyclecontrast.config.types import RESNET, is_model
from cyclecontrast.data.images import Pixels, load_image
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.evaluation.metrics import Floats, unit_vectors
from cyclecontrast.files import check_folder
from cyclecontrast.output import quoted
from cyclecontrast.searching.index import FrameIndex
from cyclecontrast.searching.nearest import allowed_rows, check_faiss, load_vectors, nearest_rows
from cyclecontrast.searching.results import Results, frame_name, make_hits, open_thumbnails, write_page

if TYPE_CHECKING:
    import torch

    from cyclecontrast.models.backbone import Backbone
    from cyclecontrast.searching.routes import SearchService

IMAGE_SIZE = re.compile("[1-9][0-9]{0,3}")
MAX_WIDTH, MAX_LAYER_BYTES = 128, 2**30
"""Limits of what an index may ask for: the width of a random ResNet, and the memory of a layer for one image."""


def run_search(config: SearchConfig) -> Results:
    """Return the results of a search, or serve the page until interrupted.

    Raises UserError with all problems, before writing.
    """
    if config.serve:
        _serve(config)
    problems: list[str] = []
    attempt(lambda: _check_page(config.html), problems)
    image = None if config.image is None else attempt(partial(load_image, config.image), problems)
    index = attempt(lambda: FrameIndex.open(config.index), problems)
    if index is None:
        raise UserError(*problems)
    row = attempt(lambda: _find_row(config, index), problems)
    thumbnails = attempt(lambda: open_thumbnails(index, config.data), problems) if config.html else None
    encoder = attempt(lambda: open_encoder(index, config.model, config.device), problems) if config.image else None
    if problems:
        raise UserError(*problems)
    shown: Pixels | int
    if config.image is not None and image is not None and encoder is not None:
        query, name, shown = encoder.encode(image), config.image.name, image
    elif row is not None:
        query, name, shown = index.vector(row), frame_name(index, row), row
    else:
        raise ValueError("the config has neither an image nor a frame")
    blocks, allowed = index.blocks_with_progress("searching"), allowed_rows(index.video, row, config.other_videos)
    found = nearest_rows(query, blocks, index.video, allowed, config.top, config.per_video)
    results = Results(name, make_hits(index, *found), config.format, config.html)
    if config.html is not None and thumbnails is not None:
        write_page(config.html, results, shown, thumbnails)
    return results


def _check_page(page: Path | None) -> None:
    if page is not None:
        if page.is_dir():
            raise UserError(f"html: {page} is a folder; name a file to write")
        check_folder(page.absolute().parent)


def _find_row(config: SearchConfig, index: FrameIndex) -> int | None:
    if config.video is None:
        return None
    if config.frame is not None:
        return index.row_of_frame(config.video, config.frame)
    return index.row_at(config.video, config.time or 0.0)


def _serve(config: SearchConfig) -> NoReturn:
    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise UserError("serve: needs Starlette and uvicorn; pip install 'cyclecontrast[search]'")
    from cyclecontrast.searching.routes import bind, serve

    with bind(config.port) as listener:
        serve(listener, open_service(config))


def open_service(config: SearchConfig) -> "SearchService":
    """Load all that the page needs; raises UserError with all problems."""
    from cyclecontrast.searching.routes import SearchService, find_source_videos

    problems: list[str] = []
    if config.faiss:
        attempt(check_faiss, problems)
    index = attempt(lambda: FrameIndex.open(config.index), problems)
    if index is None:
        raise UserError(*problems)
    thumbnails = attempt(lambda: open_thumbnails(index, config.data), problems)
    encoder = attempt(lambda: open_encoder(index, config.model, config.device), problems)
    videos = None
    if thumbnails is not None:
        videos = attempt(lambda: find_source_videos(index, thumbnails.store, config.videos), problems)
    if thumbnails is None or encoder is None or videos is None or problems:
        raise UserError(*problems)
    return SearchService(index, load_vectors(index, config.faiss), encoder, thumbnails, *videos)


# --- encoding a query image


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
    """Return the encoder of an index: the backbone `model`, or the one stored in the index file.

    A model taken from the file must be local, because an index must not cause a download. Raises UserError if it is
    another backbone, or if the dimensions differ.
    """
    about = index.about
    known, size, seed = (about.get(key, "") for key in ("model_fingerprint", "image_size", "seed"))
    if not known or not IMAGE_SIZE.fullmatch(size):
        raise UserError(
            f"index: {index.path} does not say which model made its vectors; search it with --video, or make it again "
            "with `cyclecontrast embed`"
        )
    name = model or about.get("model", "")
    if not name:
        raise UserError(f"model: {index.path} does not contain the path of its model; pass it with --model MODEL")
    if model is None and (what := _cost(name)):
        raise UserError(f"model: {index.path} was made by {name}, {what}; to allow it: --model {quoted(name)}")
    if not is_model(name):
        raise UserError(
            f"model: {name}, the model of {index.path}, no longer exists; pass its new path with --model MODEL"
        )
    from cyclecontrast.models.checkpoint import fingerprint, load_backbone
    from cyclecontrast.models.hardware import pick_device

    with Console(stderr=True).status("loading the model"):
        backbone = load_backbone(name, int(seed[:10]) if seed.isdecimal() else 0)
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
    try:
        needed = layer_bytes(backbone, int(size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"index: {index.path}: {name} does not take images of {size} px; make it again") from error
    if model is None and needed > MAX_LAYER_BYTES:
        raise UserError(
            f"index: {index.path} was made from images of {size} px, and one takes at least {needed / 1e9:.1f} GB in "
            f"{name}; to allow it: --model {quoted(name)}"
        )
    return QueryEncoder(backbone, int(size), pick_device(device))


def _cost(name: str) -> str:
    """Return why a model must not be loaded because an index names it, "" if it may be."""
    kind, _, network = name.partition(":")
    if kind == "timm" and "@" not in name:
        return "which timm may have to download"
    match = RESNET.fullmatch(network)
    is_large = kind == "random" and (match is None or int(match[3] or 0) > MAX_WIDTH)
    return "which may take gigabytes" if is_large else ""


def layer_bytes(backbone: "Backbone", size: int) -> int:
    """Return the memory of the input and output of the largest layer for one image, without using it.

    Raises AssertionError, RuntimeError or ValueError if the network does not take images of this size.
    """
    import torch

    largest = 0

    def note(_: object, inputs: tuple[object, ...], output: object) -> None:
        nonlocal largest
        tensors = (value for value in (*inputs, output) if isinstance(value, torch.Tensor))
        largest = max(largest, sum(tensor.nbytes for tensor in tensors))

    hooks = [layer.register_forward_hook(note) for layer in backbone.modules()]
    weights = {name: value.to("meta") for name, value in (*backbone.named_parameters(), *backbone.named_buffers())}
    try:
        with torch.inference_mode():
            torch.func.functional_call(backbone, weights, torch.empty(1, 3, size, size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return largest
