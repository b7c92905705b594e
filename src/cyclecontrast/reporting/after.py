"""The page of a run is written anew when more is known of the run: at the end of `pretrain` and of `evaluate`.

What was trained or evaluated is done by then: a page that fails costs a line on stderr, and nothing else.
"""

import sys
from pathlib import Path
from typing import Any

from cyclecontrast.config import AllConfig, EvaluateConfig, PretrainConfig, ReportConfig
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.predictions import results_folder
from cyclecontrast.reporting.page import write_report
from cyclecontrast.reporting.runs import is_run
from cyclecontrast.training.pretrain import Run


def after_training(config: PretrainConfig, run: Run) -> None:
    """Write the page of a finished training, in the first process and unless it was asked not to."""
    if config.report and run.is_first:
        _write_page(run.folder, config.workers, config.device)


def after_evaluation(config: EvaluateConfig | AllConfig, done: Any) -> None:
    """Write the page of the run whose results were added to; `done` is None in processes that only helped."""
    run = Path(config.model)
    if config.report and done is not None and is_run(run) and results_folder(config).resolve() == _results(run):
        _write_page(run, config.workers, config.device)


def _results(run: Path) -> Path:
    return (run / "results").resolve()


def _write_page(run: Path, workers: int | None, device: str) -> None:
    try:
        page = write_report(ReportConfig(runs=(run,), workers=workers, device=device))
    except KeyboardInterrupt:
        problem = "interrupted"
    except UserError as error:
        problem = error.problems[0]
    except Exception as error:  # whatever it is, what the page is about is done
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    else:
        print(f"report: {page}", file=sys.stderr)
        return
    print(f"report: not written ({problem}); try `cyclecontrast report {run}`", file=sys.stderr)
