"""The contract of protocols: the built-in ones by name, the user's by class, and no PyTorch for help and errors."""

import subprocess
import sys

import pytest

import cyclecontrast as cc
from cyclecontrast.config import PROTOCOL_CONFIGS, EvaluateConfig, PretrainConfig
from cyclecontrast.config.evaluate import ProtocolName
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.protocol import Protocol, find_protocol

MODEL = "random:resnet10-small-w8"


def test_every_built_in_protocol_is_found_by_its_name():
    """Its class has that name and the options of the command line; `evaluate all --only` takes the same names."""
    for name, config in PROTOCOL_CONFIGS.items():
        found = find_protocol(name)
        assert (found.name, found.config_class) == (name, config)
        assert not found.__abstractmethods__
    assert ProtocolName.__args__ == tuple(PROTOCOL_CONFIGS)


def test_an_unknown_name_is_an_error_with_the_closest_one():
    """The line lists all names."""
    with pytest.raises(UserError, match=r"unknown protocol 'kn'; did you mean knn\?; known: knn, linear"):
        cc.evaluate("kn", MODEL, "data")


class NoScore(Protocol):
    """Without options, and without any of its functions but one."""

    def open(self):
        """Open nothing."""


class Complete(NoScore):
    """With all of them."""

    name = "complete"
    config_class = EvaluateConfig

    def describe(self, data):
        """Describe nothing."""

    def predict(self, backbone, data, cache):
        """Predict nothing."""

    def score(self, record):
        """Score nothing."""


class Knn(Complete):
    """With the name of a built-in one."""

    name = "knn"


class Slash(Complete):
    """With a name that cannot begin a file's."""

    name = "../x"


@pytest.mark.parametrize(
    ("protocol", "problem"),
    [
        (NoScore, "protocol: NoScore does not define config_class, describe, name, predict, score"),
        (Knn, "protocol: Knn has the name of the built-in knn; rename it"),
        (Slash, "protocol: name '../x': use lower-case letters, digits and hyphens"),
        (PretrainConfig, "protocol: neither a name nor a subclass of cyclecontrast.evaluation.protocol.Protocol"),
    ],
)
def test_an_incomplete_class_is_an_error(protocol, problem, tmp_path):
    """Before model or data are opened, one line names all that is missing."""
    with pytest.raises(UserError) as caught:
        cc.evaluate(protocol, MODEL, tmp_path)
    assert caught.value.problems == (problem,)


def test_importing_the_contract_imports_no_torch():
    """The command line shows help and errors at once."""
    code = "import sys, cyclecontrast.evaluation.protocol; assert not {'torch', 'sklearn', 'cv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
