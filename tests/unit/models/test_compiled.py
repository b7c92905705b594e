"""`--compile` changes how fast the encoders are, and nothing of what is trained, saved or taken up again."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import cyclecontrast as cc
from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.models import hardware as module
from cyclecontrast.models.hardware import check_compiler, compiled
from cyclecontrast.training import setup
from tests import make_videos as make
from tests.make_runs import TINY, rows_of, run

FP32 = {"precision": "fp32", "cycle_start": 0.0, "checkpoint_every": 2}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames: stripes of one width and direction each, which move."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def graphs(monkeypatch):
    """Compile by a backend that notes what it is given and runs it as it is; the real one takes minutes."""
    found = []

    def noting(graph, inputs):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(module, "BACKEND", noting)
    monkeypatch.setattr(setup, "check_compiler", lambda device: None)
    return found


def state(folder, step=4):
    """Read the last state of a run."""
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "state.safetensors")


def test_a_compiled_training_is_the_same_training(tree, tmp_path, graphs):
    """Both encoders are compiled, once each and whole; losses, weights and the names of all that is saved stay."""
    eager, fast = (run(tree, tmp_path / str(flag), compile=flag, **FP32).folder for flag in (False, True))
    assert len(graphs) == 2, "one graph of each encoder: nothing breaks it, and no step or mode compiles anew"
    losses = [[row["loss"] for row in rows_of(folder)] for folder in (eager, fast)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for read in (state, lambda folder: load_file(folder / "backbone.safetensors")):
        plain, ours = read(eager), read(fast)
        assert plain.keys() == ours.keys()
        assert all(torch.allclose(value, ours[name], atol=1e-4) for name, value in plain.items())


def test_a_compiled_run_goes_on_with_or_without(tree, tmp_path, graphs):
    """Resumed it is compiled again, the same to the bit; where no compiler is, it goes on without when asked to."""
    whole = run(tree, tmp_path / "whole", compile=True, **FP32).folder
    for name, asked in (("again", {}), ("without", {"compile": False})):
        shutil.copytree(whole, tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-00000004")
        graphs.clear()
        torch._dynamo.reset()
        cc.pretrain(resume=tmp_path / name, **asked)
        assert len(graphs) == (0 if asked else 2)
    assert rows_of(tmp_path / "again") == rows_of(whole)
    assert all(torch.equal(value, state(tmp_path / "again")[name]) for name, value in state(whole).items())
    assert json.loads((tmp_path / "without" / "run.json").read_text())["status"] == "finished"


def test_objectives_without_momentum_encoder_compile(tree, tmp_path, graphs):
    """SimCLR has one encoder, whose two passes share what was compiled."""
    run(tree, tmp_path / "run", compile=True, method="simclr", **FP32)
    assert len(graphs) == 1


def test_without_a_compiler_nothing_begins(tree, tmp_path, monkeypatch):
    """Where no C++ compiler is, one line says so, and what to do, before anything is written."""
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "run"
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nonexistent")}), pytest.raises(UserError) as refused:
        cc.pretrain(**TINY, data=tree, out=out, steps=2, compile=True)
    (line,) = refused.value.problems
    assert line.startswith("compile: torch.compile does not work here (InvalidCxxCompiler: No working C++ compiler")
    assert line.endswith("fix it or leave out --compile")
    assert not out.exists()


def test_a_compiler_that_fails_in_a_step_is_one_line(monkeypatch):
    """Whatever a backend raises while it compiles becomes one line with its reason."""

    def broken(graph, inputs):
        raise RuntimeError("no kernel\nand many lines more")

    torch._dynamo.reset()
    monkeypatch.setattr(module, "BACKEND", broken)
    with pytest.raises(
        UserError, match=r"^compile: torch.compile does not work here \(.*RuntimeError: no kernel\); fix"
    ):
        compiled(lambda x: x + 1)(torch.ones(3))
    monkeypatch.setattr(module, "BACKEND", "indoctor")
    with pytest.raises(UserError, match=r"^compile: torch.compile does not work here \(.*indoctor.*\); fix"):
        compiled(lambda x: x + 1)(torch.ones(3))


def test_an_error_of_the_function_stays_what_it_is():
    """What is raised for other reasons than compiling is not taken for it."""
    with pytest.raises(ZeroDivisionError):
        compiled(lambda x: 1 // 0)(torch.ones(3))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler, which torch.compile needs on a CPU")
def test_the_check_passes_where_a_compiler_is(tmp_path, monkeypatch):
    """Here is one, so that the real backend compiles; it is off where nobody asks."""
    check_compiler(torch.device("cpu"))
    assert not PretrainConfig(data="d", out="o").compile
