"""Runs an evaluation in two steps: write the predictions as a record, then score the record."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from cyclecontrast.config import EvaluateConfig
from cyclecontrast.distributed import ALONE, World, broadcast_object, joined_command
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.evaluation.embed import check_same_work, gather_part
from cyclecontrast.evaluation.predictions import (
    NOT_IN_KEY,
    About,
    ModelInfo,
    Record,
    Result,
    find_records,
    record_path,
    result_path,
    results_folder,
)
from cyclecontrast.evaluation.protocol import Part, Predictions, Protocol, find_protocol
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.files import check_folder, is_model, replacing
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import fingerprint, load_backbone
from cyclecontrast.models.hardware import limited_threads, pick_device
from cyclecontrast.output import say

AnyProtocol = Protocol[Any, Any]


def evaluate(
    protocol: str | type[AnyProtocol], config: EvaluateConfig, backbone: Backbone | None = None
) -> Result | None:
    """Evaluate a model by a protocol; writes the record, then the result. Raises UserError.

    A given `backbone` is used instead of `config.model`. An interrupted evaluation resumes where it stopped. With
    `config.score_only` the record of an earlier evaluation is scored again, and the model may no longer exist. The
    processes of torchrun divide the images; rank 0 returns the result, the others None.
    """
    with joined_command(f"evaluate {protocol if isinstance(protocol, str) else protocol.__name__}") as world:
        return _run(find_protocol(protocol)(config), backbone, world)


def evaluate_alone(
    protocol: str | type[AnyProtocol], config: EvaluateConfig, backbone: Backbone | None = None, reuse: bool = False
) -> Result:
    """Evaluate in this process only, even under torchrun; with `reuse` return an existing result if there is one."""
    result = _run(find_protocol(protocol)(config), backbone, ALONE, reuse)
    assert result is not None
    return result


def _run(task: AnyProtocol, backbone: Backbone | None, world: World, reuse: bool = False) -> Result | None:
    if task.config.score_only:
        return _score_again(task, backbone) if world.rank == 0 else None
    backbone, data = _open(task, backbone)
    about = _about(task, data, backbone)
    if reuse and (found := _earlier_result(task, about)):
        return found
    parts = task.parts(backbone, data) if world.size > 1 else []
    with limited_threads(pick_device(task.config.device)):
        if world.rank == 0:
            return _evaluate(task, backbone, data, about, parts, world)
        _share_parts(parts, about, None, world)
    return None


def _evaluate(
    task: AnyProtocol, backbone: Backbone, data: Any, about: About, parts: list[Part], world: World
) -> Result:
    folder = results_folder(task.config)
    check_folder(folder)
    cache = ResumeCache(folder / "unfinished" / f"{about.record_key}-{about.versions['cyclecontrast']}")
    try:
        with cache.locked():
            for leftover in (*folder.glob(f"{about.key}.*.part"), *folder.glob(f"records/{about.record_key}.*.part")):
                leftover.unlink()
            _share_parts(parts, about, cache, world)
            predictions = task.predict(backbone, data, cache)
            record = Record(_about_predictions(task, about, predictions), predictions.table)
            record.save(folder)
            return _score(task, record, about.config)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; the same command resumes where it stopped") from interrupt


def _open(task: AnyProtocol, given: Backbone | None) -> tuple[Backbone, Any]:
    """Load the model and open the data; raises UserError with the problems of both."""
    problems: list[str] = []
    backbone = attempt(lambda: given or load_backbone(task.config.model, task.config.seed), problems)
    data = attempt(task.open, problems)
    if backbone is None or problems:
        raise UserError(*problems)
    if getattr(task.config, "image_size", backbone.image_size) is None:
        task.config = task.config.model_copy(update={"image_size": backbone.image_size})
    return backbone, data


def _about(task: AnyProtocol, data: Any, backbone: Backbone | None) -> About:
    model = ModelInfo(backbone.name, backbone.source, fingerprint(backbone)) if backbone else ModelInfo("", "", "")
    settings = task.config.model_dump(mode="json", exclude={"score_only", "report"})
    return About(task.name, "", settings, model, task.describe(data), scoring=tuple(sorted(task.config.scoring)))


def _share_parts(parts: list[Part], about: About, cache: ResumeCache | None, world: World) -> None:
    """Embed the parts that are not cached yet, divided among all processes, and cache them on rank 0."""
    if world.size == 1:
        return
    check_same_work(about.record_key, world)
    stored = broadcast_object({part.name for part in parts if cache and cache.has_arrays(part.name)}, world)
    for part in parts:
        if part.name not in stored:
            arrays = gather_part(part, world)
            if cache and arrays:
                cache.arrays(part.name, lambda arrays=arrays: arrays)  # type: ignore[misc]


def _about_predictions(task: AnyProtocol, about: About, predictions: Predictions) -> About:
    num_train, num_test = predictions.num_used or (about.data.num_train, about.data.num_test)
    return replace(
        about,
        data=about.data._replace(num_train=num_train, num_test=num_test),
        tag=" ".join([predictions.tag, *_unusual_settings(task.config, predictions)]),
        notes=tuple(predictions.notes),
        problems=tuple(predictions.problems),
        details=predictions.details,
    )


def _unusual_settings(config: EvaluateConfig, predictions: Predictions) -> Iterator[str]:
    """Yield `name=value` for each non-default setting that affects the metrics and is not in the protocol's tag.

    The image size is always named. A setting with several values, such as k, is in the names of the metrics instead.
    """
    if "image_size" in type(config).model_fields:
        yield f"image_size={getattr(config, 'image_size', None)}"
    free = {*NOT_IN_KEY, *config.scoring, *predictions.untagged, "seed", "image_size"}
    if "epochs" not in type(config).model_fields:
        free.add("batch_size")
    for name, value in config.unusual().items():
        if name not in free and f"{name}=" not in predictions.tag and not isinstance(value, tuple):
            yield f"{name}={value}"


def _earlier_result(task: AnyProtocol, about: About) -> Result | None:
    """Return an earlier result of the same version, model, data and settings, if any; reports a damaged one."""
    path = result_path(results_folder(task.config), about.key)
    if not path.exists():
        return None
    try:
        found = Result.load(path)
    except UserError as error:
        say(f"{error}; evaluating again")
        return None
    if found.about.versions != about.versions:
        return None
    say(f"reusing the result of an earlier evaluation: {path}")
    return found


def _score_again(task: AnyProtocol, given: Backbone | None) -> Result:
    """Score the record of an earlier evaluation; if the model no longer exists, the record is found by its name."""
    if given is None and not is_model(task.config.model):
        data = task.open()
        about = _about(task, data, None)
        record = _record_by_name(task, about)
    else:
        backbone, data = _open(task, given)
        about = _about(task, data, backbone)
        path = record_path(results_folder(task.config), about.record_key)
        if not path.exists():
            raise UserError(
                f"{path}: no such record: this model, data and settings were not evaluated yet; run "
                "the command once without --score-only"
            )
        record = Record.load(path)
    settings = record.about.config | {name: about.config[name] for name in about.scoring}
    return _score(task, record, settings)


def _record_by_name(task: AnyProtocol, about: About) -> Record:
    """Return the only record of this model's name, data and settings; a setting of None matches any value."""
    folder, requested = results_folder(task.config), about.config
    settings = set(requested) - NOT_IN_KEY - set(about.scoring)
    fixed = {name: requested[name] for name in settings if requested[name] is not None} | {"model": requested["model"]}
    found = [
        record
        for record in find_records(folder, about.protocol)
        if record.about.data.fingerprint == about.data.fingerprint
        and all(record.about.config.get(name) == value for name, value in fixed.items())
    ]
    if len(found) != 1:
        what = f"{len(found)} records match; specify more options" if found else "no record matches"
        raise UserError(
            f"{folder}: the model {task.config.model} does not exist, and for {about.protocol} on this data with these "
            f"settings {what}"
        )
    return found[0]


def _score(task: AnyProtocol, record: Record, settings: dict[str, Any]) -> Result:
    score = task.score(record)
    about = replace(
        record.about,
        config=settings,
        tag=f"{record.about.tag} {score.tag}".strip(),
        notes=(*record.about.notes, *score.notes),
    )
    folder = results_folder(task.config)
    for suffix, content in score.files.items():
        with replacing(folder / f"{about.key}.{suffix}") as aside:
            aside.write_bytes(content)
    result = Result(about, score.metrics, score.per_item)
    result.save(folder)  # written last: if it exists, all files are complete
    return result


def print_path(config: EvaluateConfig, result: Result | None) -> None:
    """Print where a result was written."""
    if result is not None:
        say(f"result: {result_path(results_folder(config), result.about.key)}")
