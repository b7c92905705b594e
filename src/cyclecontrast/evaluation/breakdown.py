"""What a result says of its classes: each one's accuracy, those that were not learned or not tested, and doubts."""

import math
from collections.abc import Sequence

from cyclecontrast.data.text_lines import MAX_LISTED
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Integers, confusion_matrix, per_class_accuracy
from cyclecontrast.evaluation.result import Json


def breakdown(metric: str, predicted: Integers, labels: Integers, classes: Sequence[str]) -> Json:
    """Return a metric by class, from the predicted and the true class of each item (num_items,).

    Raises UserError where they name other classes, as a record that was changed may.
    """
    check_classes(classes, predicted, labels)
    accuracy = per_class_accuracy(predicted, labels, len(classes))
    confusion = confusion_matrix(predicted, labels, len(classes))
    return {
        "of": metric,
        "classes": list(classes),
        "num_items": confusion.sum(axis=1).tolist(),
        "accuracy": [None if math.isnan(value) else value for value in accuracy.tolist()],
        "confusion": confusion.tolist(),
    }


def check_classes(classes: Sequence[str], *columns: Integers) -> None:
    """Raise UserError where numbers of classes stand for none, as those of a record that was changed may."""
    if any(((numbers < 0) | (numbers >= len(classes))).any() for numbers in columns):
        raise UserError("the record names classes that its data do not have; run it again without --score-only")


def not_learned(labels: Integers, classes: Sequence[str], items: str = "images") -> tuple[str, ...]:
    """Return a note for each class that is not among the labels of the training items that could be read."""
    return tuple(
        f"class {name} is not learned: none of its training {items} can be read" for name in _absent(labels, classes)
    )


def not_tested(labels: Integers, classes: Sequence[str], items: str = "images") -> tuple[str, ...]:
    """Return a note where classes are not among the labels of the test items that could be read."""
    names = _absent(labels, classes)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    line = f"not tested, for none of their test {items} can be read: {', '.join(names[:MAX_LISTED])}{more}"
    return (line,) if names else ()


def doubts(last_loss: float, num_classes: int) -> tuple[str, ...]:
    """Return a note where the mean loss of the last epoch says that the training went wrong."""
    guessing = math.log(num_classes)
    line = (
        f"the loss on train ended at {last_loss:.3g}, worse than guessing ({guessing:.3g}); try another learning_rate"
    )
    return (line,) if last_loss > guessing else ()


def _absent(labels: Integers, classes: Sequence[str]) -> list[str]:
    return [classes[label] for label in sorted(set(range(len(classes))) - set(labels.tolist()))]
