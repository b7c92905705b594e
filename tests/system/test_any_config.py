"""A command does what any options request, or says in lines what is wrong: never a traceback.

Options are drawn from the JSON schemas of the configs, so that new options are drawn too. `FUZZ_EXAMPLES=2000` tries as
many, drawn at random instead of the same ones every time.
"""

import contextlib
import io
import json
import math
import os
import shutil
from unittest.mock import patch

import cv2
import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import cyclecontrast as cc
from cyclecontrast.api import check_options
from cyclecontrast.cli import COMMANDS, main
from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.training import setup
from tests import make_videos as make

MORE = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SMALL = {
    "backbone": "resnet10-small-w1",
    "image_size": 16,
    "batch_size": 4,
    "steps": 2,
    "log_every": 1,
    "workers": 0,
    "device": "cpu",
}
NAMES = {
    "data": ["tree"] * 6 + ["three", "singles", "flat", "damaged", "videos", "one", "empty", "nowhere", "tree/0/0.png"],
    "backbone": ["resnet10-small-w1", "resnet18-w3", "resnet50-small-w1", "timm:test_vit", "timm:none", "resnet17"],
    "init": ["random:resnet10-small-w1", "random:resnet9", "timm:test_resnet", "nothing.pth"],
    "teacher": ["random:resnet10-small-w1", "timm:test_resnet", "nothing.pth"],
    "device": ["cpu", "auto", "cuda:7777", "gpu"],
    "resume": ["nowhere", "tree"],
    "compile": [False],  # it takes minutes; tests/unit/models/test_hardware.py
}
NEEDED = {
    **dict.fromkeys(("data", "data_root", "train_data", "videos", "runs", "folders"), "tree"),
    **{"model": "random:resnet10-small-w1", "table": "table4", "out": "b.npz"},
    **{"index": "none.npz", "labels": "none.csv"},
}
SELDOM = {"init", "device", "resume"}
WRONG = st.sampled_from(
    [
        *(
            True,
            -1,
            0,
            2.5,
            10**9,
            10**12,
            2**63,
            10**5000,
            1e308,
            5e-324,
            math.nan,
            math.inf,
            None,
            [],
            [1],
            {"a": 1},
            b"x",
        ),
        *("", "auto", "many", "nan", "-inf", "-", "a\nb", "\0", "\udcff", "x" * 5000, "./" * 4000),
    ]
)
TEXT = st.sampled_from(
    [
        *("", "auto", "nan", "-inf", "1e999", "-1", "0", "7", "1_0", "٣", "9" * 5000, "[1]", "true", "1,2,3,4", "2016"),
        *("a", "b.npz", "c.html", "cpu", "table4", "random:resnet18", "timm:x", "a\nb", "\0", "\udcff", "/" * 5000),
    ]
)


def profile(examples):
    """Return the settings of a test: a few examples, always the same, or as many as requested."""
    few = {"max_examples": MORE or examples, "derandomize": not MORE, "database": None}
    return settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, **few)


def right(name, schema):
    """Draw what the schema of an option allows, with small numbers, because large ones train for hours."""
    if name in NAMES:
        return st.sampled_from(NAMES[name])
    if "anyOf" in schema:
        return st.one_of(right(name, one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if schema["type"] == "integer":
        low = schema.get("minimum", 0)
        return st.integers(low, low + 40)
    if schema["type"] == "number":
        low, high = (schema.get(key, schema.get(f"exclusive{key.title()}")) for key in ("minimum", "maximum"))
        usual = st.floats(low, 1.0 if high is None else high)
        return usual if high is not None else st.one_of(usual, st.floats(low, 1e300))
    if schema["type"] == "array":
        return st.lists(right(name, schema.get("items", {"type": "string"})), max_size=3)
    return {"boolean": st.booleans(), "null": st.none(), "string": st.sampled_from(["a", "b.npz", "c.html"])}[
        schema["type"]
    ]


@st.composite
def options_of(draw, config):
    """Draw a few options of a config: valid ones, and in half of the draws one or two that are likely invalid."""
    properties = config.model_json_schema()["properties"]
    usual = st.sampled_from([name for name in properties if name not in SELDOM])
    values = {name: draw(right(name, properties[name])) for name in draw(st.sets(usual, max_size=8))}
    for name in draw(st.sets(st.sampled_from([*properties, "sped", "a\nb"]), max_size=draw(st.sampled_from([0, 2])))):
        values[name] = draw(right(name, properties[name]) if name in SELDOM & properties.keys() else WRONG)
    return values


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Write data of every kind, each into its folder."""
    root, rng = tmp_path_factory.mktemp("any"), np.random.default_rng(0)

    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(16, 41, 2)
        cv2.imwrite(str(path), rng.integers(0, 256, (height, width, 3), np.uint8))

    for name, lengths in {"tree": (1, 2, 3, 4, 4, 2), "three": (2, 3, 1), "singles": (1, 1), "one": (3,)}.items():
        for video, length in enumerate(lengths):
            for frame in range(length):
                write(root / name / str(video) / f"{frame}.png")
    for number in range(5):
        write(root / "flat" / f"{number}.png")
    shutil.copytree(root / "tree", root / "damaged")
    for path in sorted((root / "damaged").rglob("*.png"))[::2]:
        path.write_bytes(path.read_bytes()[:50])
    (root / "empty").mkdir()
    (root / "videos").mkdir()
    for number in range(2):
        make.write_numbered(root / "videos" / f"{number}.mp4", num_frames=12, size=(32, 24))
    return root


def check_refusal(error, out):
    """Check that each problem is one line, and that a run that did not start left nothing."""
    event("stopped" if out.exists() else "refused")
    assert error.problems
    assert all(line and len(line.splitlines()) == 1 for line in error.problems)
    if out.exists() and any(out.iterdir()):
        assert json.loads((out / "run.json").read_text())["status"].startswith("stopped: ")


@profile(15)
@given(asked=options_of(PretrainConfig))
def test_any_config_trains_or_is_refused(places, asked):
    """Any options train two steps to finite metrics and weights and a run that can be resumed, or are refused in lines.

    Then nothing is written.
    """
    out, before = places / "out", {path: path.stat().st_mtime_ns for path in places.rglob("*")}
    values = SMALL | {"data": "tree"} | asked | {"workers": 0, "out": out, "report": False}
    if values["steps"] in (None, "auto", 10**9, *range(3, 50)):
        values["steps"] = 2
    if isinstance(values["data"], str) and values["data"] in NAMES["data"]:
        values["data"] = places / values["data"]
    try:
        with patch.object(setup, "free_memory", lambda device: 10**9):
            run = cc.pretrain(**values)
            event("trained")
            again = cc.pretrain(resume=out)
    except UserError as error:
        check_refusal(error, out)
    else:
        assert again.metrics == run.metrics
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert run.metrics == rows[-1]
        assert all(value is None or math.isfinite(value) for row in rows for value in row.values())
        assert all(torch.isfinite(weight).all() for weight in load_file(out / "backbone.safetensors").values())
    finally:
        shutil.rmtree(out, ignore_errors=True)
    assert {path: path.stat().st_mtime_ns for path in places.rglob("*")} == before


@profile(100)
@given(kind=st.sampled_from([*COMMANDS]), data=st.data())
def test_any_options_are_checked(places, kind, data):
    """Every command accepts options of any type and value, or refuses them in lines."""
    config = COMMANDS[kind].config
    needed = {name: NEEDED[name] for name, field in config.model_fields.items() if field.is_required()}
    values = needed | data.draw(options_of(config))
    with contextlib.chdir(places):
        try:
            assert isinstance(check_options(config, values), config)
            event("taken")
        except UserError as error:
            check_refusal(error, places / "nowhere")


@st.composite
def files_of(draw, config):
    """Draw a config file: TOML with some options, any TOML, or no TOML at all."""
    properties = config.model_json_schema()["properties"]
    broken = [b"seed = 1\nseed = 2", b"\xff", b"seed = " + b"9" * 5000, b"seed = " + b"[" * 2000]
    if draw(st.integers(0, 7)) == 0:
        return draw(st.sampled_from(broken) | st.binary(max_size=9))
    scalar = st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates(), st.times())
    value = scalar | st.lists(scalar, max_size=2) | st.dictionaries(st.text(max_size=2), scalar, max_size=1)
    names = draw(st.sets(st.sampled_from([*properties]), max_size=5))
    values = {name: draw(right(name, properties[name])) for name in names}
    if draw(st.integers(0, 3)) == 0:
        values[draw(st.sampled_from([*properties, "config", "print_config"]) | st.text(max_size=5))] = draw(value)
    return tomli_w.dumps({name: value for name, value in values.items() if value is not None}).encode()


@st.composite
def words_of(draw, command):
    """Draw a command line: flags with valid values, and in half of the draws with any text between them."""
    properties = command.config.model_json_schema()["properties"]
    flags = [name for name in properties if name not in command.positional]
    names = draw(st.lists(st.sampled_from(flags), max_size=4)) if flags else []
    words = [word for name in names for word in (flag_of(name), str(draw(right(name, properties[name]))))]
    flag = st.sampled_from([*map(flag_of, properties), "--no-flip", "--sped", "-x", "--"])
    for word in draw(st.lists(flag | TEXT | st.text(max_size=5), max_size=4)) if draw(st.booleans()) else []:
        words.insert(draw(st.integers(0, len(words))), word)
    return [word for word in words if word != "-h"]


def flag_of(name):
    """Return the flag of an option."""
    return f"--{name.replace('_', '-')}"


def call(arguments):
    """Run a command as from a terminal; returns the exit code, what was printed, and the messages."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return code, *texts


@profile(120)
@given(kind=st.sampled_from([*COMMANDS]), data=st.data())
def test_any_words_are_answered(places, kind, data):
    """For any command line and file, the printed options give themselves again, or the exit code is 2 with lines."""
    file, config = places / "drawn.toml", COMMANDS[kind].config
    file.write_bytes(data.draw(files_of(config)))
    needed = [NEEDED[name] for name in COMMANDS[kind].positional] + ["--out", NEEDED["out"]] * (
        "out" in config.model_fields
    )
    words = [*kind.split(), "--print-config", "--config", str(file), *needed, *data.draw(words_of(COMMANDS[kind]))]
    code, out, err = call(words)
    event(f"exit code {code}")
    assert code in (0, 2)
    if code == 0:
        file.write_text(out)
        assert call([*kind.split(), "--print-config", "--config", str(file)]) == (0, out, err)
    else:
        assert not out
        assert err
        assert all(line.startswith("error: ") for line in err.splitlines())
