"""The score of tracking from the record alone: ours, and results of other trackers beside it."""

from collections.abc import Mapping

from cyclecontrast.config import TrackingConfig
from cyclecontrast.evaluation.predictions import Record
from cyclecontrast.evaluation.protocol import Score
from cyclecontrast.evaluation.tracking.plots import Curve, plot_precision, plot_success
from cyclecontrast.evaluation.tracking.records import FROM_SIXTH, Tracked, from_table
from cyclecontrast.evaluation.tracking.rules import Rules, TrackerScore, score_tracker
from cyclecontrast.evaluation.tracking.toolkit_files import read_results, trackers_in, zip_results

GOT10K_NOTES = (
    "ao, sr_50, sr_75: over all frames but the first of each sequence",
    "success, precision, success_rate: the mean over sequences, first frames counted",
    "frames in which the target is out of sight (cover 0) count in none",
)
NO_TRUTH_NOTE = "no metrics: only the server of GOT-10k knows the true boxes; it takes the file that ends in .boxes.zip"


def score(record: Record, config: TrackingConfig) -> Score:
    """Score the tracked boxes, and those of other trackers beside them; a video's boxes are given as they are."""
    layout = record.about.details["layout"]
    tracked = from_table(record.table)
    if layout == "video":
        return Score({}, {"boxes": next(iter(tracked.values())).predicted.tolist()})
    truth = as_toolkit_has_it(tracked, config.toolkit)
    files = {"boxes.zip": zip_results(truth, layout)}
    if not all(item.has_truth for item in truth.values()):
        frames = {name: {"frames": len(item.truth)} for name, item in truth.items()}
        return Score({}, {"sequences": frames}, notes=(NO_TRUTH_NOTE,), files=files)
    rules = Rules(config.toolkit, layout)
    ours = score_tracker({name: item.predicted for name, item in truth.items()}, truth, rules)
    later = {name: len(tracked[name].truth) - len(item.truth) for name, item in truth.items()}
    others, said = _score_others(config, truth, rules, later)
    per_item = {**ours.to_json(), "others": {name: item.to_json() for name, item in others.items()}}
    notes = GOT10K_NOTES + said if rules.as_got10k else said
    name = record.about.model.name if config.tracker == "siamfc" else config.tracker
    plots = _plots({name: ours, **others})
    return Score(ours.metrics, per_item, f"toolkit={config.toolkit}", notes, files | plots)


def as_toolkit_has_it(tracked: Mapping[str, Tracked], toolkit: str) -> dict[str, Tracked]:
    """Return the sequences with Tiger1 as this toolkit has it: of 354 frames, or of the 349 from the sixth on."""
    sequences = {name: item for name, item in tracked.items() if not name.endswith(FROM_SIXTH)}
    if toolkit == "official":
        later = ((name, item) for name, item in tracked.items() if name.endswith(FROM_SIXTH))
        sequences |= {name.removesuffix(FROM_SIXTH): item for name, item in later}
    return sequences


def _score_others(
    config: TrackingConfig, truth: Mapping[str, Tracked], rules: Rules, later: Mapping[str, int]
) -> tuple[dict[str, TrackerScore], tuple[str, ...]]:
    """Score each tracker over the sequences that its folder holds; the lines say how good it is, and what is wrong."""
    lengths = {name: len(item.truth) for name, item in truth.items()}
    scores, notes = {}, []
    for folder in trackers_in(config.others) if config.others is not None else ():
        results = read_results(folder, lengths, later)
        if results.boxes:
            scores[folder.name] = score_tracker(results.boxes, truth, rules)
            numbers = ", ".join(f"{name} {100 * value:.2f} %" for name, value in scores[folder.name].metrics.items())
            notes.append(f"others: {folder.name}, {len(results.boxes)} of {len(truth)} sequences: {numbers}")
        notes += [f"others: {problem}; left out" for problem in results.problems]
    return scores, tuple(notes)


def _plots(scores: Mapping[str, TrackerScore]) -> dict[str, bytes]:
    success = {name: Curve(item.success, item.metrics["success"]) for name, item in scores.items()}
    precision = {name: Curve(item.precision, item.metrics["precision"]) for name, item in scores.items()}
    return {"success.png": plot_success(success), "precision.png": plot_precision(precision)}
