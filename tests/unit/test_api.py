"""The commands as Python functions: the same options, the same mistakes, and what only Python can pass."""

import inspect

import pytest
import torch

import cyclecontrast as cc
from cyclecontrast import api
from cyclecontrast.cli import COMMANDS
from cyclecontrast.config import EmbedConfig, EvaluateConfig, SearchConfig
from cyclecontrast.errors import UserError


def test_every_command_is_a_function():
    """Each command calls a function of its name that the package exports and that is the one to read."""
    for name, command in COMMANDS.items():
        first, _, second = name.partition(" ")
        function = getattr(command.function, "func", command.function)
        assert function is (getattr(cc.runs, second) if first == "runs" else getattr(cc, first))
        assert inspect.getdoc(function)
        assert inspect.getmodule(function) in (api, cc.runs)
    assert {name.partition(" ")[0] for name in COMMANDS} <= {*cc.__all__}


def test_the_package_names_what_it_exports():
    """Exports resolve, are listed by dir, and an unknown name is an AttributeError."""
    assert all(getattr(cc, name) for name in cc.__all__)
    assert {*cc.__all__} <= {*dir(cc)}
    with pytest.raises(AttributeError, match="pretrian"):
        cc.pretrian  # noqa: B018


@pytest.mark.parametrize(
    ("action", "lines"),
    [
        (lambda: cc.prepare("nowhere", out="o", fsp=2), ["unknown option fsp; did you mean fps?", "videos: nowhere"]),
        (lambda: cc.evaluate("knn", "nothing", "nowhere", k=()), ["k: give one", "model nothing:", "data: nowhere"]),
        (lambda: cc.evaluate("knnn", "m", "d"), ["unknown protocol 'knnn'; did you mean knn?"]),
        (lambda: cc.evaluate("all", "nothing"), ["data_root is missing", "model nothing:"]),
        (lambda: cc.export("nothing", fromat="onnx"), ["unknown option fromat", "model nothing:"]),
        (lambda: cc.embed("nothing", "nowhere"), ["out is missing", "model nothing:", "data: nowhere"]),
        (lambda: cc.search("none.npz", image="none.png"), ["index: none.npz: no such file", "image: none.png"]),
        (lambda: cc.report(), ["runs: "]),
        (lambda: cc.sweep("table9", "nowhere"), ["table: input should be", "data: nowhere"]),
        (lambda: cc.pretrain(), ["data is missing", "out is missing"]),
        (lambda: cc.pretrain("nowhere", out="o", backbone=7), ["backbone: a int is neither", "data: nowhere"]),
        (lambda: cc.export(torch.nn.ReLU()), ["model: a ReLU is neither a path or name nor a Backbone"]),
    ],
)
def test_all_mistakes_are_reported_at_once(action, lines, tmp_path, monkeypatch):
    """Wrong options and absent files are reported together, before anything is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        action()
    assert len(error.value.problems) == len(lines)
    for problem, line in zip(error.value.problems, lines, strict=True):
        assert problem.startswith(line)
    assert not list(tmp_path.iterdir())


def test_files_need_not_exist_where_they_are_not_read(tmp_path):
    """A URL is not looked for on this machine, and scoring again needs no model."""
    values = {"model": "random:resnet10", "data": "https://example.org/store", "out": "e.npz"}
    assert api.check_options(EmbedConfig, values).data == "https://example.org/store"
    api.check_options(EvaluateConfig, {"model": "gone", "data": tmp_path, "score_only": True})
    with pytest.raises(UserError, match="model gone"):
        api.check_options(EvaluateConfig, {"model": "gone", "data": tmp_path})
    (tmp_path / "index.npz").mkdir()
    with pytest.raises(UserError, match=r"index\.npz: is not a file; name a file that embed wrote"):
        api.check_options(SearchConfig, {"index": tmp_path / "index.npz", "serve": True})
