"""The command `evaluate all`: runs every protocol on every dataset found; one table, with published results."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cyclecontrast.config import PROTOCOL_CONFIGS, AllConfig, EvaluateConfig
from cyclecontrast.data.folders import LeftOut
from cyclecontrast.data.layouts import Kind, find_layouts
from cyclecontrast.distributed import check_single_process
from cyclecontrast.errors import UserError, checked, out_of_memory
from cyclecontrast.evaluation.predictions import Result, results_folder
from cyclecontrast.evaluation.references import Compared, compare
from cyclecontrast.evaluation.runner import beside, evaluate_alone, load_baseline
from cyclecontrast.files import atomic_write, check_folder
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.output import markdown, markdown_table, printable, say

Settings = dict[str, Any]


class Plan(NamedTuple):
    """One evaluation to do."""

    protocol: str
    data: Path
    settings: Settings

    def __str__(self) -> str:
        words = [self.protocol, *(f"{name}={value}" for name, value in self.settings.items())]
        return f"{' '.join(words)} on {self.data}"


PLANS: dict[Kind, tuple[tuple[str, Settings], ...]] = {
    "images": (("knn", {}), ("linear", {}), ("finetune", {})),
    "videos": (
        ("retrieval", {"level": "frame"}),
        ("retrieval", {"level": "clip"}),
        ("action", {"mode": "linear"}),
        ("action", {"mode": "finetune"}),
    ),
    "otb": (("tracking", {}),),
    "got10k": (("tracking", {}),),
    "davis": (("propagation", {}), ("segmentation", {})),
    "masks": (("segmentation", {}),),
}
"""What is evaluated on each kind of data."""


class SuiteResult(NamedTuple):
    """All results, each beside its baseline's (None: not requested), and a line for each failed evaluation."""

    rows: tuple[tuple[Result, Result | None], ...]
    problems: tuple[str, ...]

    @property
    def failure(self) -> str:
        """A line if something could not be evaluated, so that the command fails."""
        line = (
            "some evaluations failed: see `not evaluated` below the table; fix the problems and run the command "
            "again to "
            "complete the table"
        )
        return line if self.problems else ""

    def __str__(self) -> str:
        return self.page(printable)

    def page(self, escape: Callable[[str], str] = markdown) -> str:
        """Return the table in Markdown; `escape` is applied to the lines below it.

        Published results are in the table if all settings agree, otherwise in a footnote.
        """
        name = next((result.baseline.name for result, _ in self.rows if result.baseline), "random")
        lines: list[tuple[str, ...]] = [("protocol", "data", "metric", "%", f"{name} %", "difference", "published %")]
        footnotes: dict[str, int] = {}
        left_out = []
        for result, baseline in self.rows:
            compared, data = compare(result), Path(result.about.data.path).name
            if problems := result.about.problems:
                left_out.append(
                    escape(f"left out of {result.tag} on {data}: {len(problems)} items, named in its result")
                )
            for number, metric in enumerate(result.metrics):
                # The first, and all of which a figure is published.
                if number == 0 or (compared and metric in compared.percents):
                    ours, other = (_percent(one, metric) for one in (result, baseline))
                    last = other, result.difference(metric), _published(compared, metric, footnotes)
                    lines.append((*map(markdown, (result.tag, data, metric)), ours, *last))
        numbered = [f"[{number}] {escape(text)}" for text, number in footnotes.items()]
        missing = [f"not evaluated: {escape(problem)}" for problem in self.problems]
        return "\n".join([markdown_table(lines), "", *numbered, *left_out, *missing])


def evaluate_all(config: AllConfig) -> SuiteResult:
    """Evaluate by every protocol that fits a data set below the root; one that fails does not stop the others.

    Raises UserError where nothing is found, nothing can be evaluated, or torchrun started several processes.
    """
    check_single_process("evaluate all")
    backbone = load_backbone(config.model, config.seed)
    plans = [plan for plan in _plans(config.data_root) if plan.protocol in (config.only or PROTOCOL_CONFIGS)]
    if not plans:
        what = f"for {', '.join(config.only)} " if config.only else ""
        raise UserError(f"data_root: {config.data_root}: holds no data {what}in a layout that a protocol reads")
    out = results_folder(config)
    check_folder(out)
    models = [(config.model, backbone)]
    if config.baseline != "none":
        models.append(load_baseline(config, backbone))
    done = SuiteResult((), ())
    for number, plan in enumerate(plans, start=1):
        say(f"[{number}/{len(plans)}] {plan}")
        problems: list[str] = []
        ours, *others = [_attempt(model, network, plan, config, problems) for model, network in models]
        baseline = others[0] if others else None
        ours = beside(ours, config.baseline, baseline, out)
        row = () if ours is None else ((ours, baseline),)
        done = SuiteResult(done.rows + row, done.problems + tuple(problems))
        if done.rows:
            with atomic_write(out / "all.md") as aside:
                aside.write_text(f"{done.page()}\n", "utf-8")
    if not done.rows:
        raise UserError(*done.problems)
    return done


def _attempt(model: str, backbone: Backbone, plan: Plan, config: AllConfig, problems: list[str]) -> Result | None:
    """Evaluate, or add to `problems` why not."""
    shared = {"workers": config.workers, "image_size": config.image_size, "epochs": config.epochs}
    fields = PROTOCOL_CONFIGS[plan.protocol].model_fields
    known = {name: value for name, value in shared.items() if value is not None and name in fields}
    try:
        base = {
            "model": model,
            "data": plan.data,
            "out": results_folder(config),
            "seed": config.seed,
            "device": config.device,
        }
        options: EvaluateConfig = checked(PROTOCOL_CONFIGS[plan.protocol], {**base, **known, **plan.settings})
        return evaluate_alone(plan.protocol, options, backbone, reuse=not config.again)
    except UserError as error:
        problems += [f"{plan}: {problem}" for problem in error.problems]
    except torch.OutOfMemoryError as error:
        problems.append(f"{plan}: {out_of_memory(error)}")
    return None


def _plans(root: Path) -> Iterator[Plan]:
    left_out = LeftOut(root)
    layouts = list(find_layouts(root, left_out=left_out))
    say(*left_out.notes)
    training = next((layout.root for layout in layouts if layout.kind == "got10k"), None)
    if any(layout.kind == "otb" for layout in layouts):
        layouts = [layout for layout in layouts if layout.kind != "got10k"]
    # Without GOT-10k to train the tracker's head on, raw features are correlated.
    head = {"train": False} if training is None else {"train_data": training}
    for layout in layouts:
        for protocol, settings in PLANS[layout.kind]:
            yield Plan(protocol, layout.root, settings | (head if layout.kind == "otb" else {}))


def _percent(result: Result | None, metric: str) -> str:
    return "" if result is None or metric not in result.metrics else f"{100 * result.metrics[metric]:.1f}"


def _published(compared: Compared | None, metric: str, footnotes: dict[str, int]) -> str:
    """Return a published figure with the number of its footnote, or the number alone where it is not comparable."""
    if compared is None or metric not in compared.percents:
        return ""
    row = compared.one
    text = f"{row.method}, {row.backbone} pretrained on {row.pretrained_on}, {row.data}, {row.source}"
    text += f" ({row.note})" if row.note else ""
    if compared.differences:
        figures = ", ".join(f"{name} {percent:.1f}" for name, percent in compared.percents.items())
        text = f"not comparable, for reference: {figures} by {text}; here: {'; '.join(compared.differences)}"
    number = footnotes.setdefault(text, len(footnotes) + 1)
    return f"[{number}]" if compared.differences else f"{compared.percents[metric]:.1f} [{number}]"
