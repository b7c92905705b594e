"""Devices, precision, workers and torch.compile: what is requested is used, or refused in one line."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import cyclecontrast as cc
from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.device_augment import on_device
from cyclecontrast.errors import UserError
from cyclecontrast.models import hardware as module
from cyclecontrast.models.hardware import (
    autocast,
    check_compiler,
    compiled,
    free_memory,
    limited_threads,
    pick_device,
    pick_precision,
    pick_workers,
    rounding,
)
from cyclecontrast.training import setup
from cyclecontrast.training.pretrain import _isolated
from cyclecontrast.training.run_folder import device_name
from tests.make_runs import (
    TINY,
    assert_same_run,
    copy_until,
    refusal,
    rows_of,
    run,
    state_path,
    weights_path,
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_an_absent_device_is_reported(name):
    """A device that PyTorch does not see is an error that names the alternative."""
    with pytest.raises(UserError, match=f"device {name}.*--device cpu"):
        pick_device(name)


def test_an_apple_gpu_is_taken(monkeypatch, capsys):
    """Without CUDA, `auto` is the Apple GPU, with fp32; one line names the fallback, once, unless it is set."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    module._announce_mps.cache_clear()
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    assert pick_device("auto") == pick_device("mps") == torch.device("mps")
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK")
    module._announce_mps.cache_clear()
    assert pick_device("auto") == pick_device("mps") == torch.device("mps")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("device mps: computes in fp32; ")
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in line
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == torch.device("cuda:0")


def test_several_processes_share_no_apple_gpu(monkeypatch):
    """gloo passes on no tensors of an Apple GPU: `auto` is the CPU then, and `mps` is refused."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="device mps: several processes cannot share an Apple GPU"):
        pick_device("mps")


def test_the_memory_of_an_apple_gpu_is_asked_of_pytorch(monkeypatch):
    """It is what PyTorch recommends to take, without what it has taken."""
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * 10**9)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 2 * 10**9)
    assert free_memory(torch.device("mps")) == 10**10


def test_the_number_of_an_absent_gpu_is_reported(monkeypatch):
    """On a machine with one GPU, cuda:1 is a user's error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UserError, match="device cuda:1: PyTorch sees 1 GPU here"):
        pick_device("cuda:1")


def test_requested_precision_and_workers_are_used():
    """A named precision and number of workers is used; autocast is on for bf16 only."""
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    assert [pick_precision(name, cpu) for name in ("bf16", "fp32")] == ["bf16", "fp32"]
    assert pick_precision("auto", torch.device("mps")) == "fp32"
    assert pick_workers(0, cpu) == 0
    assert pick_workers(None, cpu) >= 1
    a = torch.ones(2, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(cpu, precision):
            assert (a @ a).dtype == dtype


@pytest.mark.parametrize(
    ("processor", "precision"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16", "bf16"),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16 amx_bf16", "bf16"),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16", "fp32"),
        ("vendor_id : AuthenticAMD\nflags : avx2", "fp32"),
    ],
)
def test_automatic_precision_is_the_faster_one(tmp_path, monkeypatch, processor, precision):
    """On a CPU, bf16 is chosen only on processors where it is faster than fp32."""
    (tmp_path / "cpuinfo").write_text(processor)
    monkeypatch.setattr("cyclecontrast.models.hardware.Path", lambda _: tmp_path / "cpuinfo")
    assert pick_precision("auto", torch.device("cpu")) == precision


# --- torch.compile


COMPILED = {"precision": "fp32", "cycle_start": 0.0, "checkpoint_every": 2}
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@pytest.fixture
def graphs(monkeypatch):
    """Compile by a backend that notes each graph and runs it as it is; the real one takes minutes."""
    found = []

    def note(graph, inputs):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(module, "BACKEND", note)
    monkeypatch.setattr(setup, "check_compiler", lambda device: None)
    return found


@quiet
def test_a_compiled_training_is_the_same_training(stripes, tmp_path, graphs):
    """Each encoder is one graph, compiled once; losses stay up to rounding, and all names in the files too.

    Resumed, the run is compiled again and the same to the bit; without a compiler it can be resumed uncompiled.
    """
    eager, fast = (run(stripes, tmp_path / str(flag), compile=flag, **COMPILED).folder for flag in (False, True))
    assert len(graphs) == 2, "one graph of each encoder: nothing breaks it, and no step or mode compiles again"
    losses = [[row["loss"] for row in rows_of(folder)] for folder in (fast, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for path in (partial(state_path, step=4), weights_path):
        found, expected = load_file(path(fast)), load_file(path(eager))
        assert found.keys() == expected.keys()
        assert all(torch.allclose(value, expected[name], atol=1e-3) for name, value in found.items())
    for name, changes in (("again", {}), ("without", {"compile": False})):
        part = copy_until(fast, tmp_path / name, 2)
        graphs.clear()
        torch._dynamo.reset()
        cc.pretrain(resume=part, **changes)
        assert len(graphs) == (0 if changes else 2)
        if not changes:
            assert_same_run(part, fast, 4)


@quiet
def test_methods_without_momentum_encoder_compile(stripes, tmp_path, graphs):
    """SimCLR has one encoder, whose two passes share a graph; so have the passes of student and teacher each."""
    run(stripes, tmp_path / "run", compile=True, method="simclr", steps=2, **COMPILED)
    assert len(graphs) == 1
    teacher = "random:resnet10-small-w4"
    run(stripes, tmp_path / "distilled", compile=True, method="distill", teacher=teacher, steps=2, **COMPILED)
    assert len(graphs) == 3


@quiet
def test_without_a_compiler_nothing_begins(stripes, tmp_path, monkeypatch):
    """Without a C++ compiler one line says so, and what to do, before anything is written."""
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nonexistent")}):
        (line,) = refusal(**TINY, data=stripes, out=tmp_path / "run", steps=2, compile=True)
    assert line.startswith(
        "compile: torch.compile does not work on this machine (InvalidCxxCompiler: No working C++ compiler"
    )
    assert line.endswith("fix it or remove --compile")


@quiet
def test_a_compiler_that_fails_is_one_line(monkeypatch):
    """Whatever a backend raises while it compiles becomes one line with its reason; other errors stay as they are."""

    def broken(graph, inputs):
        raise RuntimeError("no kernel\nand many lines more")

    torch._dynamo.reset()
    words = r"^compile: torch.compile does not work on this machine \(.*"
    for backend, reason in ((broken, "RuntimeError: no kernel"), ("indoctor", ".*indoctor.*")):
        monkeypatch.setattr(module, "BACKEND", backend)
        with pytest.raises(UserError, match=rf"{words}{reason}\); fix"):
            compiled(lambda x: x + 1)(torch.ones(3))
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError):
        compiled(lambda x: 1 // 0)(torch.ones(3))


@quiet
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler, which torch.compile needs on a CPU")
@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="torch.compile does not know this variable")
def test_the_compiler_works_here():
    """The real backend compiles for the CPU; it is off by default."""
    check_compiler(torch.device("cpu"))
    assert not PretrainConfig(data="d", out="o").compile


class Doubles(TorchDispatchMode):
    """Lists the operations whose result has double precision."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Compute, and look at what is returned."""
        made = operation(*args, **(kwargs or {}))
        values = made if isinstance(made, tuple | list) else [made]
        self.found += [operation for value in values if getattr(value, "dtype", None) == torch.float64]
        return made


@pytest.mark.parametrize("method", ["cycle", "seco", "byol"])
def test_training_and_health_need_no_double_precision(stripes, tmp_path, method):
    """Apple GPUs have none: what is measured in double precision is measured by NumPy on the CPU."""
    with Doubles() as doubles:
        run(stripes, tmp_path / "run", method=method, steps=2, health_every=1)
    assert doubles.found == []


def test_copies_wait_except_on_cuda():
    """On an Apple GPU, PyTorch may copy a tensor that is freed already; every copy to a device asks `on_device`."""
    sources = Path(module.__file__).parents[1].rglob("*.py")
    assert [path.name for path in sources if "non_blocking" in path.read_text()] == ["device_augment.py"]
    asked = []

    class Held:
        def to(self, device, non_blocking):
            asked.append((device.type, non_blocking))

    for name in ("cpu", "mps", "cuda"):
        on_device(torch.device(name), Held())
    assert asked == [("cpu", False), ("mps", False), ("cuda", True)]


class Gpu:
    """Answers as `torch.cuda` does on a machine with a GPU, and notes what it is asked for."""

    def __init__(self, monkeypatch, bf16=True):
        self.waited, self.states, cuda = [], [], torch.cuda
        monkeypatch.setattr(cuda, "is_bf16_supported", lambda including_emulation: bf16 and not including_emulation)
        monkeypatch.setattr(cuda, "memory_reserved", lambda device: 700)
        monkeypatch.setattr(cuda, "memory_allocated", lambda device: 200)
        monkeypatch.setattr(cuda, "mem_get_info", lambda device: (1000, 9000))
        monkeypatch.setattr(cuda, "get_device_name", lambda device: f"GPU of {device}")
        monkeypatch.setattr(cuda, "get_rng_state", lambda device: ("state", str(device)))
        monkeypatch.setattr(cuda, "set_rng_state", lambda state, device: self.states.append((state, str(device))))


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_what_a_gpu_decides(monkeypatch, bf16, precision):
    """bf16 if it computes that itself, its memory with what PyTorch caches, all cores or a share, all threads."""
    Gpu(monkeypatch, bf16)
    gpu, threads = torch.device("cuda:1"), torch.get_num_threads()
    assert pick_precision("auto", gpu) == precision
    assert free_memory(gpu) == 1000 + 700 - 200
    assert device_name(gpu) == "GPU of cuda:1"
    assert rounding(gpu) == {}
    monkeypatch.setattr(module, "num_cores", lambda: 16)
    assert pick_workers(None, gpu) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert pick_workers(None, gpu) == 2
    with limited_threads(gpu):
        assert torch.get_num_threads() == threads


def test_a_plan_leaves_the_random_numbers_of_the_gpu(monkeypatch):
    """A training in a user's program restores the generators of the CPU and of the GPU that it used."""
    gpu, before = Gpu(monkeypatch), torch.get_rng_state()
    with _isolated(torch.device("cuda:1")):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert gpu.states == [(("state", "cuda:1"), "cuda:1")]


def test_free_memory_is_that_of_the_machine():
    """The free memory of a CPU lies between 10 MB and what is built in."""
    built_in = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 10**7 < free_memory(torch.device("cpu")) <= built_in
