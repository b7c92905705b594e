"""Frames with classes in the import formats of other tools: Label Studio, FiftyOne and lightly-studio.

The images are written once, to `images/`, and a JSON file for each tool refers to them.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from cyclecontrast.data.images import open_image
from cyclecontrast.errors import UserError, some
from cyclecontrast.output import quoted
from cyclecontrast.progress import with_progress
from cyclecontrast.searching.results import Thumbnails

IMAGES = "images"
MAX_IMAGES = 100_000
"""Most images that are written for other tools."""
MAX_NAME = 60
WHOLE = re.compile(r"[^A-Za-z0-9_-]+")
PLACEHOLDERS = ("class 1", "class 2")
"""Choices of Label Studio where there are no classes yet: its configuration needs some."""


class LabeledFrame(NamedTuple):
    """A row of an index with its class; `confidence` is None where a person gave the class."""

    row: int
    name: str
    confidence: float | None = None


class Item(NamedTuple):
    """An image that was written: its file name, size in pixels, frame, and class."""

    file: str
    width: int
    height: int
    about: dict[str, Any]
    frame: LabeledFrame


def check_export(tools: Sequence[str], num_images: int) -> None:
    """Raise UserError if there are more images than other tools should get."""
    if tools and num_images > MAX_IMAGES:
        raise UserError(
            f"format: {num_images:,} frames are too many to write as images (at most {MAX_IMAGES:,}); leave out "
            "--format, or embed fewer frames"
        )


def write_for_tools(
    folder: Path, out: Path, tools: Sequence[str], frames: Sequence[LabeledFrame], pictures: Thumbnails, kind: str
) -> list[str]:
    """Write the images and a file for each tool; returns lines that say how to import them into it.

    `out` is where the folder will be, `kind` what the classes are: class (given by people or predicted) or group.
    """
    if not tools:
        return []
    (folder / IMAGES).mkdir()
    problems: list[str] = []
    items = [
        item
        for frame in with_progress(frames, "images", len(frames))
        if (item := _copy(frame, folder, pictures, problems))
    ]
    if not items:
        raise UserError(f"format: none of the {len(frames):,} frames can be read", *some(problems))
    lines = [f"not written, because they cannot be read: {len(problems):,} frames ({problems[0]})"] if problems else []
    for tool in dict.fromkeys(tools):
        lines.append(WRITERS[tool](folder, out.absolute(), items, kind))
    return lines


def _copy(frame: LabeledFrame, folder: Path, pictures: Thumbnails, problems: list[str]) -> Item | None:
    index, store = pictures.index, pictures.store
    video = index.video_ids[index.video[frame.row]]
    try:
        place = pictures.frame(frame.row)
        data = store.read(*place)
        size = open_image(data).size
    except (UserError, ValueError) as error:
        problems.append(f"{video}, frame {index.index[frame.row]}: {error}")
        return None
    suffix = PurePosixPath(store.frame_path(*place)).suffix.lower() or ".jpg"
    name = f"{frame.row:07d}_{WHOLE.sub('-', video)[-MAX_NAME:]}_{index.index[frame.row]}{suffix}"
    (folder / IMAGES / name).write_bytes(data)
    time = float(index.time[frame.row])
    about = {"video": video, "frame": int(index.index[frame.row]), "time": None if math.isnan(time) else round(time, 3)}
    return Item(name, *size, about, frame)


def _classes(items: Iterable[Item]) -> list[str]:
    return sorted({item.frame.name for item in items})


def _dump(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False), "utf-8")


def _write_label_studio(folder: Path, out: Path, items: Sequence[Item], kind: str) -> str:
    """Write tasks, with a prediction or annotation where the class is one, and the labeling interface."""
    tasks: list[dict[str, Any]] = []
    for item in items:
        data = {"image": f"/data/local-files/?d={quote(f'{out.name}/{IMAGES}/{item.file}')}", **item.about}
        if kind != "class":
            tasks.append({"data": data | {kind: item.frame.name}})
            continue
        value = {"choices": [item.frame.name]}
        result = [{"from_name": "class", "to_name": "image", "type": "choices", "value": value}]
        if item.frame.confidence is None:
            tasks.append({"data": data, "annotations": [{"result": result}]})
        else:
            prediction = {"model_version": "cyclecontrast", "score": round(item.frame.confidence, 4), "result": result}
            tasks.append({"data": data, "predictions": [prediction]})
    choices = _classes(items) if kind == "class" else PLACEHOLDERS
    lines = (f"    <Choice value={quoteattr(choice)}/>" for choice in choices)
    view = ["<View>", '  <Image name="image" value="$image"/>', '  <Choices name="class" toName="image">', *lines]
    (folder / "label-studio.xml").write_text("\n".join([*view, "  </Choices>", "</View>", ""]), "utf-8")
    _dump(folder / "label-studio.json", tasks)
    return (
        f"Label Studio: start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={quoted(out.parent)}, take {out / 'label-studio.xml'} as labeling "
        f"interface, add {out / IMAGES} as local storage without syncing it, and import {out / 'label-studio.json'}"
    )


def _write_fiftyone(folder: Path, out: Path, items: Sequence[Item], kind: str) -> str:
    """Write the labels of a FiftyOneImageClassificationDataset: by file name without suffix, as numbers of classes."""
    classes = _classes(items)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {}
    for item in items:
        label: dict[str, Any] = {"label": numbers[item.frame.name]}
        if item.frame.confidence is not None:
            label["confidence"] = round(item.frame.confidence, 4)
        attributes = {name: value for name, value in item.about.items() if value is not None}
        labels[Path(item.file).stem] = label | {"attributes": attributes}
    _dump(folder / "fiftyone.json", {"classes": classes, "labels": labels})
    return (
        "FiftyOne: fiftyone.Dataset.from_dir(dataset_type=fiftyone.types.FiftyOneImageClassificationDataset, "
        f"data_path={str(out / IMAGES)!r}, labels_path={str(out / 'fiftyone.json')!r})"
    )


def _write_lightly_studio(folder: Path, out: Path, items: Sequence[Item], kind: str) -> str:
    """Write COCO annotations: lightly-studio imports classes with a score as boxes, here of the whole image."""
    classes = _classes(items)
    numbers = {name: number for number, name in enumerate(classes)}
    images, annotations = [], []
    for number, item in enumerate(items):
        images.append({"id": number, "file_name": item.file, "width": item.width, "height": item.height} | item.about)
        box = {"bbox": [0, 0, item.width, item.height], "area": item.width * item.height, "iscrowd": 0}
        known = item.frame.confidence
        score = {} if known is None else {"score": round(known, 4)}
        category = {"category_id": numbers[item.frame.name]}
        annotations.append({"id": number, "image_id": number} | category | box | score)
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    _dump(folder / "lightly-studio.json", {"images": images, "categories": categories, "annotations": annotations})
    return (
        "lightly-studio: lightly_studio.ImageDataset.create().add_samples_from_coco("
        f"annotations_json={str(out / 'lightly-studio.json')!r}, images_path={str(out / IMAGES)!r})"
    )


WRITERS: dict[str, Callable[[Path, Path, Sequence[Item], str], str]] = {
    "label-studio": _write_label_studio,
    "fiftyone": _write_fiftyone,
    "lightly-studio": _write_lightly_studio,
}
