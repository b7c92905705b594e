"""A backbone, and the run that made it → the model card: what it learned from, how, how well, and what is not known."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from cyclecontrast.config import MACHINE_SETTINGS, PretrainConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation.predictions import Result
from cyclecontrast.exporting.formats import Job
from cyclecontrast.methods import learns_from
from cyclecontrast.models.checkpoint import fingerprint
from cyclecontrast.training.run_folder import ABOUT, CONFIG, how_to_restore, read_about
from cyclecontrast.versions import package_versions

HEAD = """---
library_name: transformers
pipeline_tag: image-feature-extraction
tags:
- self-supervised-learning
- video
- cyclecontrast
---
"""


def model_card(job: Job) -> str:
    """Return the README.md of an exported model; raises UserError where a file of its run is damaged."""
    run = Path(job.model)
    about = read_about(run) if (run / ABOUT).is_file() else {}
    settings = _settings(run) if (run / CONFIG).is_file() else {}
    results = _results(run, fingerprint(job.backbone))
    parts = {
        "": _summary(job, settings),
        "Data": _data(about),
        "Method": _method(settings),
        "Health": _health(about),
        "Results": _table(results),
        "Use": _use(job),
        "Licence": "Not chosen yet: whoever publishes these weights names one here and in the head of this file, and "
        "looks at the terms of the videos that they were learned from.",
        "Commands": _commands(settings, results),
        "Versions": "\n".join(f"- {name} {version}" for name, version in _versions(about).items()),
    }
    return HEAD + "\n".join(f"{f'## {title}' if title else '# Backbone'}\n\n{text}\n" for title, text in parts.items())


def _settings(run: Path) -> dict[str, Any]:
    """Return what the run was told, without the folders of a machine that others do not know."""
    try:
        config = checked(PretrainConfig, tomllib.loads((run / CONFIG).read_text()))
    except (OSError, ValueError, UserError) as error:
        reason = str(error).replace("\n", "; ")
        raise UserError(f"{run / CONFIG}: is damaged ({reason}); {how_to_restore(run, CONFIG)}") from error
    settings = config.model_dump(mode="json", exclude=set(MACHINE_SETTINGS), exclude_none=True)
    return settings | ({"init": Path(settings["init"]).name} if "init" in settings else {})


def _summary(job: Job, settings: dict[str, Any]) -> str:
    backbone = job.backbone
    origin = "learned without labels" if settings else f"from {Path(backbone.source).name}"
    return (
        f"An image backbone: {backbone.name}, {backbone.dim} features, made for {backbone.image_size} x "
        f"{backbone.image_size} pixels, {origin}. It has no classifier. Fingerprint: {fingerprint(backbone)}."
    )


def _data(about: dict[str, Any]) -> str:
    if not {"num_videos", "num_frames"} <= about.keys():
        return "Not known: it was not exported from the folder of its training."
    held_out = f", {about['num_held_out']:,} of them held out" if about.get("num_held_out") else ""
    content = f" Fingerprint: {about['data_fingerprint']}." if "data_fingerprint" in about else ""
    return f"{about['num_frames']:,} frames of {about['num_videos']:,} unlabeled videos{held_out}.{content}"


def _method(settings: dict[str, Any]) -> str:
    if not settings:
        return "Not known."
    name = settings["method"]
    return f"`{name}`: it learned from {learns_from(name)}. Every setting:\n\n```toml\n{tomli_w.dumps(settings)}```"


def _health(about: dict[str, Any]) -> str:
    if not {"verdict", "reason"} <= about.keys():
        return "Not measured."
    return f"**{about['verdict']}**, by signals that need no labels: {about['reason']}."


def _results(run: Path, content: str) -> list[Result]:
    """Return those of this very backbone; a run may hold those of earlier ones."""
    found = [Result.load(path) for path in sorted((run / "results").glob("*.json"))]
    return [result for result in found if result.about.model.fingerprint == content]


def _table(results: list[Result]) -> str:
    rows = [row for result in results for row in _rows(result)]
    return (
        "\n".join(["| protocol | data | metric | % |", "|---|---|---|---|", *rows]) if rows else "None were measured."
    )


def _rows(result: Result) -> Iterator[str]:
    data = result.about.data
    where = f"{Path(data.path).name}, {data.num_train:,} train, {data.num_test:,} test"
    for name, value in result.metrics.items():
        yield f"| {result.tag} | {where} | {name} | {100 * value:.2f} |"


def _use(job: Job) -> str:
    return (
        "```python\nimport transformers\n\n"
        'model = transformers.AutoModel.from_pretrained("FOLDER")   # this folder, or its name on the hub\n'
        'processor = transformers.AutoImageProcessor.from_pretrained("FOLDER")\n'
        'outputs = model(**processor(images, return_tensors="pt"))\n'
        f"features = outputs.pooler_output.flatten(1)   # (batch, {job.backbone.dim})\n"
        f"map = outputs.last_hidden_state   # (batch, {job.backbone.dim}, h, w)\n```"
    )


def _commands(settings: dict[str, Any], results: list[Result]) -> str:
    if not settings:
        return "```sh\ncyclecontrast export MODEL --format huggingface\n```"
    train = "cyclecontrast pretrain VIDEOS --out run --config settings.toml     # the settings above"
    measure = [f"cyclecontrast evaluate {name} run DATA" for name in dict.fromkeys(one.protocol for one in results)]
    return "\n".join(["```sh", train, *measure, "cyclecontrast export run --format huggingface", "```"])


def _versions(about: dict[str, Any]) -> dict[str, str]:
    """Return those of the training where they are known, else those of the export."""
    return about.get("versions") or package_versions()
