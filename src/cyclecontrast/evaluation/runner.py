"""Runs an evaluation in two steps: write the predictions as a record, then score the record."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cyclecontrast.config import PROTOCOL_CONFIGS, AllConfig, EvaluateConfig
from cyclecontrast.config.evaluate import BaselineName
from cyclecontrast.config.types import is_user_defined
from cyclecontrast.distributed import ALONE, World, broadcast_object, command_process_group
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.evaluation.embed import check_same_work, gather_part
from cyclecontrast.evaluation.predictions import (
    NOT_IN_KEY,
    About,
    Baseline,
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
from cyclecontrast.files import atomic_write, check_folder
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import fingerprint, load_backbone
from cyclecontrast.models.hardware import limited_threads, pick_device
from cyclecontrast.output import say
from cyclecontrast.training.run_folder import load_start

AnyProtocol = Protocol[Any, Any]


def evaluate(
    protocol: str | type[AnyProtocol], config: EvaluateConfig, backbone: Backbone | None = None
) -> Result | None:
    """Evaluate a model by a protocol; writes the record, then the result. Raises UserError.

    A given `backbone` is used instead of `config.model`. An interrupted evaluation resumes where it stopped. Settings
    that only affect the scores compute no predictions again. With `config.score_only` the record of an earlier
    evaluation is scored again, and model and data may no longer exist. The processes of torchrun divide the images;
    rank 0 returns the result, the others None. A baseline that was evaluated with the same settings is reused.
    """
    with command_process_group(f"evaluate {protocol if isinstance(protocol, str) else protocol.__name__}") as world:
        task = find_protocol(protocol)
        if config.baseline == "none":
            return _run(task(config), backbone, world)
        backbone = backbone or load_backbone(config.model, config.seed)
        model, other = load_baseline(config, backbone)
        changes = {"model": model, "out": results_folder(config), "save": None}
        changes = {name: value for name, value in changes.items() if name in type(config).model_fields}
        is_known = task.name in PROTOCOL_CONFIGS  # the code of a custom protocol may change
        baseline = _run(task(config.model_copy(update=changes)), other, world, is_known)
        result = _run(task(config), backbone, world)  # last, so that a stopped evaluation resumes either of them
        return beside(result, config.baseline, baseline, results_folder(config))


def load_baseline(config: EvaluateConfig | AllConfig, backbone: Backbone) -> tuple[str, Backbone]:
    """Return the MODEL that this backbone is compared with, and load it for images of the same size.

    Raises UserError if the start of a run cannot be loaded.
    """
    if is_user_defined(backbone.name):
        raise UserError(
            f"baseline: {backbone.name} is a custom network, whose weights from before the training are not kept; "
            "evaluate the network as it was then, without a baseline"
        )
    if config.baseline == "start":
        model, baseline = load_start(Path(config.model), download=True)
    else:
        model = f"random:{backbone.name}"
        baseline = load_backbone(model, config.seed)
        baseline.mean, baseline.std = backbone.mean, backbone.std
    baseline.image_size = backbone.image_size
    return model, baseline


def beside(result: Result | None, name: BaselineName, baseline: Result | None, folder: Path) -> Result | None:
    """Return a result that holds the metrics of its baseline, also in its file in this folder."""
    if result is None or baseline is None or name == "none":
        return result
    result = replace(result, baseline=Baseline(name, baseline.about.model, baseline.metrics))
    result.save(folder)
    return result


def evaluate_alone(
    protocol: str | type[AnyProtocol], config: EvaluateConfig, backbone: Backbone | None = None, reuse: bool = False
) -> Result:
    """Evaluate in this process only, even under torchrun; with `reuse` return an existing result if there is one.

    Without it, existing predictions are computed again, too.
    """
    result = _run(find_protocol(protocol)(config), backbone, ALONE, reuse, reuse)
    assert result is not None
    return result


def _run(
    task: AnyProtocol, backbone: Backbone | None, world: World, reuse: bool = False, reuse_record: bool = True
) -> Result | None:
    if task.config.score_only:
        return _score_again(task, backbone) if world.rank == 0 else None
    backbone, data = _open(task, backbone)
    about = _about(task, data, backbone)
    found = _earlier_result(task, about) if reuse and world.rank == 0 else None
    if reuse and broadcast_object(found is not None, world):
        if world.rank == 0:
            _cache(task, about).remove_leftover()
        return found
    parts = task.parts(backbone, data) if world.size > 1 else []
    with limited_threads(pick_device(task.config.device)):
        if world.rank == 0:
            return _evaluate(task, backbone, data, about, parts, world, reuse_record)
        _share_parts(parts, about, None, world)
    return None


def _evaluate(
    task: AnyProtocol,
    backbone: Backbone,
    data: Any,
    about: About,
    parts: list[Part],
    world: World,
    reuse_record: bool,
) -> Result:
    folder = results_folder(task.config)
    check_folder(folder)
    cache = _cache(task, about)
    try:
        with cache.locked():
            for leftover in (*folder.glob(f"{about.key}.*.part"), *folder.glob(f"records/{about.record_key}.*.part")):
                leftover.unlink()
            record = _earlier_record(task, about) if reuse_record else None
            _share_parts(parts, about, cache, world, is_done=record is not None)
            if record is None:
                predictions = task.predict(backbone, data, cache)
                record = Record(_about_predictions(task, about, predictions), predictions.table)
                record.save(folder)
            return _score(task, record, about.config)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; the same command resumes where it stopped") from interrupt


def _cache(task: AnyProtocol, about: About) -> ResumeCache:
    name = f"{about.record_key}-{about.versions['cyclecontrast']}"
    return ResumeCache(results_folder(task.config) / "unfinished" / name)


def _open(task: AnyProtocol, given: Backbone | None) -> tuple[Backbone, Any]:
    """Load the model and open the data; raises UserError with the problems of both."""
    problems: list[str] = []
    backbone = attempt(lambda: given or load_backbone(task.config.model, task.config.seed), problems)
    data = attempt(task.open, problems)
    if backbone is None or problems:
        raise UserError(*problems)
    _complete(task, backbone)
    return backbone, data


def _complete(task: AnyProtocol, backbone: Backbone) -> None:
    if getattr(task.config, "image_size", backbone.image_size) is None:
        task.config = task.config.model_copy(update={"image_size": backbone.image_size})


def _settings(task: AnyProtocol) -> dict[str, Any]:
    settings: dict[str, Any] = task.config.model_dump(mode="json", exclude={"score_only", "report", "baseline"})
    return settings


def _about(task: AnyProtocol, data: Any, backbone: Backbone) -> About:
    model, scoring = ModelInfo(backbone.name, backbone.source, fingerprint(backbone)), sorted(task.config.scoring)
    return About(task.name, "", _settings(task), model, task.describe(data), scoring=tuple(scoring))


def _share_parts(
    parts: list[Part], about: About, cache: ResumeCache | None, world: World, is_done: bool = False
) -> None:
    """Embed the parts that are not cached yet, divided among all processes, and cache them on rank 0.

    If rank 0 says that all `is_done`, nothing is left to embed.
    """
    if world.size == 1:
        return
    check_same_work(about.record_key, world)
    known = {part.name for part in parts if is_done or (cache and cache.has_arrays(part.name))}
    stored = broadcast_object(known, world)
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
    """Return an earlier result of the same version, model, data and settings, if any.

    Reports one that is damaged, or whose record is.
    """
    folder = results_folder(task.config)
    path, record = result_path(folder, about.key), record_path(folder, about.record_key)
    if not path.exists():
        return None
    try:
        found = Result.load(path)
        if record.exists():
            Record.check(record)
    except UserError as error:
        say(f"{error}; evaluating again")
        return None
    if found.about.versions != about.versions:
        return None
    say(f"reusing the result of an earlier evaluation: {path}")
    return found


def _earlier_record(task: AnyProtocol, about: About) -> Record | None:
    """Return the predictions of an earlier evaluation whose settings differ at most in those of the scoring, if any.

    Not those that left items out, which may be readable now, nor those of a custom protocol, whose code may change.
    """
    path = record_path(results_folder(task.config), about.record_key)
    if not (about.scoring and task.name in PROTOCOL_CONFIGS and path.exists()) or getattr(task.config, "save", None):
        return None
    record = attempt(lambda: Record.load(path), [])
    if record is None:
        say(f"{path}: is damaged; computing the predictions again")
        return None
    if record.about.versions != about.versions or record.about.problems:
        return None
    line = f"scoring the predictions of an earlier evaluation; to compute them again, delete {path}"
    say(line)
    return record


def _score_again(task: AnyProtocol, given: Backbone | None) -> Result:
    """Score the record of an earlier evaluation; if model or data are gone, it is found by their names."""
    problems: list[str] = []
    backbone = attempt(lambda: given or load_backbone(task.config.model, task.config.seed), problems)
    data = attempt(task.open, problems)
    if backbone is not None:
        _complete(task, backbone)
    if backbone is None or data is None:
        record = _record_by_name(task, backbone, data, problems)
    else:
        path = record_path(results_folder(task.config), _about(task, data, backbone).record_key)
        if not path.exists():
            raise UserError(
                f"{path}: no such record: this model, data and settings were not evaluated yet; run "
                "the command once without --score-only"
            )
        record = Record.load(path)
    requested = _settings(task)
    return _score(task, record, record.about.config | {name: requested[name] for name in task.config.scoring})


def _record_by_name(task: AnyProtocol, backbone: Backbone | None, data: Any, problems: list[str]) -> Record:
    """Return the only record of these settings; a setting of None matches any value.

    What is gone, the model or the data, must have the name that it had. Raises UserError with the `problems` of both.
    """
    folder, requested = results_folder(task.config), _settings(task)
    names = set(requested) - NOT_IN_KEY - set(task.config.scoring)
    names |= {"model"} if backbone is None else set()
    names |= {"classes", "train_data"} & set(requested) if data is None else set()
    model, content = backbone and fingerprint(backbone), None if data is None else task.describe(data).fingerprint
    place = task.config.data.absolute()

    def fits(about: About) -> bool:
        is_data = Path(about.data.path).absolute() == place if content is None else about.data.fingerprint == content
        is_model = model is None or about.model.fingerprint == model
        settings = all(requested[name] in (None, about.config.get(name)) for name in names)
        return is_data and is_model and settings

    found = [record for record in find_records(folder, task.name) if fits(record.about)]
    if len(found) != 1:
        what = f"{len(found)} records match; specify more options" if found else "no record matches"
        raise UserError(*problems, f"{folder}: for {task.name} with this model, data and settings {what}")
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
        with atomic_write(folder / f"{about.key}.{suffix}") as aside:
            aside.write_bytes(content)
    result = Result(about, score.metrics, score.per_item, _known_baseline(folder, about))
    result.save(folder)  # written last: if it exists, all files are complete
    return result


def _known_baseline(folder: Path, about: About) -> Baseline | None:
    """Return the baseline of an earlier result of the same version, model, data and settings."""
    path = result_path(folder, about.key)
    earlier = attempt(lambda: Result.load(path), []) if path.exists() else None
    return earlier.baseline if earlier is not None and earlier.about.versions == about.versions else None


def print_path(config: EvaluateConfig, result: Result | None) -> None:
    """Print where a result was written."""
    if result is not None:
        say(f"result: {result_path(results_folder(config), result.about.key)}")
