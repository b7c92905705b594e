"""Several processes that talk through gloo compute what one would, and end together with a line that says why."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cyclecontrast.cli import main
from cyclecontrast.config import PretrainConfig
from cyclecontrast.distributed import (
    ALONE,
    STEP_TIMEOUT,
    World,
    all_gather,
    all_gather_objects,
    all_reduce_max,
    all_reduce_mean,
    broadcast_from_rank_0,
    peer_errors,
    process_group,
)
from cyclecontrast.errors import UserError
from cyclecontrast.methods import IntraVideo, StepInfo
from cyclecontrast.models.backbone import make_backbone
from tests import make_videos as make
from tests.make_runs import (
    about_of,
    assert_same_run,
    copy_until,
    rows_of,
    run,
    start_many,
    train_with_two,
    wait_for_step,
    words_of,
)

# --- what crosses between processes


def draw_views():
    """Draw a batch of views of all processes together."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (8, 16, 16, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)


def make_method(world):
    """Build a small method, the same in every process."""
    torch.manual_seed(0)
    options = PretrainConfig(data="d", out="o", queue_size=16, bn_groups=4, precision="fp32")
    return IntraVideo(make_backbone("resnet10-small-w8"), options, world).train()


def work(rank, folder):
    """Do one process's part and save what it got."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank, 2, cpu_group=dist.group.WORLD, patient_group=dist.group.WORLD)
    keys = make_method(world).encode_keys(draw_views()[rank * 4 : rank * 4 + 4], StepInfo(3, 10))
    overwritten = torch.full((2, 3), rank).T, torch.tensor(rank > 0)
    broadcast_from_rank_0(overwritten)
    found = {
        "keys": keys.intra,
        "gathered": all_gather(torch.tensor([rank * 10, rank * 10 + 1]), world),
        "maxima": all_reduce_max([rank, 5 - rank, 3], world),
        "means": all_reduce_mean([rank, 3.0], world),
        "objects": all_gather_objects({"rank": rank}, world),
        "overwritten": [float(tensor.float().sum()) for tensor in overwritten],
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_do_what_one_does(tmp_path):
    """Keys are shuffled over all processes and return to their views; collectives keep the order of the ranks."""
    mp.start_processes(work, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = make_method(ALONE).encode_keys(draw_views(), StepInfo(3, 10))
    assert torch.allclose(torch.cat([part["keys"] for part in parts]), alone.intra, atol=1e-5)
    for part in parts:
        assert part["gathered"].tolist() == [0, 1, 10, 11]
        assert part["maxima"] == [1, 5, 3]
        assert part["means"] == [0.5, 3.0]
        assert part["objects"] == [{"rank": 0}, {"rank": 1}]
        assert part["overwritten"] == [0, 0]


def test_every_step_shuffles_anew():
    """The groups of BatchNorm are drawn from the whole batch in every step."""
    method = make_method(ALONE)
    first, second = (method.encode_keys(draw_views(), StepInfo(step, 10)).intra for step in (1, 2))
    assert not torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), UserError),
        (dist.DistNetworkError("failed to connect"), UserError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (RuntimeError("element 0 of tensors does not require grad"), RuntimeError),
        (ValueError("a bug"), ValueError),
    ],
)
def test_only_the_end_of_another_process_is_called_that(error, expected):
    """Errors of this process, which has its own memory and bugs, stay what they are."""
    with pytest.raises(expected) as caught, peer_errors():
        raise error
    assert isinstance(caught.value, UserError) == ("another process" in str(caught.value))


def test_a_machine_that_calls_itself_local_is_told_what_to_set():
    """Where gloo looks for another machine on this one, the error names the variable for the network interface."""
    problem = "Gloo connectFullMesh failed with [tcp/pair.cc:152] timed out connecting: remote=[127.0.0.1]:5022"
    with pytest.raises(UserError, match="set GLOO_SOCKET_IFNAME to the name"), peer_errors(hint="nothing yet"):
        raise RuntimeError(problem)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0"},
        {"RANK": "0", "MASTER_PORT": "65536"},
        {"RANK": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        {"RANK": "1", "MASTER_PORT": "1"},
    ],
)
def test_half_an_environment_is_one_line(stripes, tmp_path, monkeypatch, capsys, environment):
    """RANK and WORLD_SIZE that another program set, or wrong ones, are a line, not a wait or a traceback."""
    for name, value in {"WORLD_SIZE": "1", "MASTER_ADDR": "localhost", **environment}.items():
        monkeypatch.setenv(name, value)
    assert main(["pretrain", *words_of(stripes, tmp_path / "run", steps=1)]) == 2
    assert "the environment variables of torchrun are incomplete or invalid (RANK=" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rank", "address", "reason"),
    [
        (1, "127.0.0.1", "Connection refused"),
        (1, "no.host.invalid", "not known|resolution"),
        (0, "no.host.invalid", ""),
    ],
)
def test_a_wrong_address_is_one_line(stripes, tmp_path, monkeypatch, capfd, rank, address, reason):
    """If the first process cannot be reached, a line says where it was sought, at once, and again at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": address, "MASTER_PORT": str(free.getsockname()[1])}
    for name, value in {"RANK": str(rank), "WORLD_SIZE": "2", **place}.items():
        monkeypatch.setenv(name, value)
    if address == "no.host":
        unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        monkeypatch.setattr("socket.getaddrinfo", mock.Mock(side_effect=unknown))
    monkeypatch.setattr("cyclecontrast.distributed.JOIN_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr("cyclecontrast.distributed.SECONDS_OF_SILENCE", 0)
    assert main(["pretrain", *words_of(stripes, tmp_path / "run", steps=1)]) == 2
    waiting, error = capfd.readouterr().err.splitlines()
    assert f"cannot be reached at MASTER_ADDR={address}, " in waiting
    assert re.search(reason, error)
    assert error.endswith("check the address, and whether process 0 runs")


@pytest.mark.parametrize(("device", "backend"), [("cuda:0", "nccl"), ("cpu", "gloo")])
def test_gpus_talk_through_nccl(monkeypatch, device, backend):
    """On a GPU, tensors go through NCCL with a limit of time, after the GPU is chosen; small messages through gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    asked, begin = [], dist.init_process_group

    def begin_by_gloo(backend, **options):
        asked.append((backend, options["timeout"]))
        begin("gloo", **options)

    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(dist, "init_process_group", begin_by_gloo)
    with process_group(torch.device(device), "test") as world:
        assert [dist.get_backend(group) for group in (world.cpu_group, world.patient_group)] == ["gloo", "gloo"]
        assert (world.rank, world.size) == (0, 1)
    assert asked == [*([torch.device(device)] if backend == "nccl" else []), (backend, STEP_TIMEOUT)]
    assert not dist.is_initialized()


def test_no_process_outlives_its_parent():
    """A process of torchrun gets one SIGTERM when torchrun is killed by kill -9."""
    child = (
        "import os, signal, time; from cyclecontrast.distributed import end_with_parent; found = []; "
        "signal.signal(signal.SIGTERM, lambda *_: found.append('ended')); parent = os.getppid(); "
        "print('up', flush=True); end_with_parent(parent); time.sleep(0.1); print(*found)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.kill()
        assert process.stdout.read() == "ended\n"


# --- a training of two


def test_torchrun_trains_one_run(tmp_path):
    """Under torchrun two processes train one run on a folder of videos, which is prepared once, without any warning."""
    (tmp_path / "videos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        images = list(rng.integers(0, 256, (6, 32, 32, 3), np.uint8))
        make.write_images(tmp_path / "videos" / f"{number}.mp4", images)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "cyclecontrast",
    ]
    words = words_of(tmp_path / "videos", tmp_path / "run", steps=2, cycle_start=0)
    loud = os.environ | {"TORCH_CPP_LOG_LEVEL": "WARNING"}
    done = subprocess.run([*launch, "pretrain", *words], capture_output=True, text=True, env=loud)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("backbone: ") == 1
    assert done.stderr.count("the frames are in ") == 1
    assert "Warning" not in done.stderr
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2]
    assert about_of(tmp_path / "run")["processes"] == 2


SMOOTH = {"backbone": "timm:test_convnext", "image_size": 32, "projector": "linear", "precision": "fp32", "steps": 4}
SMOOTH |= {"cycle_start": 0, "warmup": 0, "log_every": 1}


@pytest.mark.parametrize("method", ["cycle", "intra-video", "diet", "distill"])
def test_losses_are_those_of_one_process(stripes, tmp_path, method):
    """Two processes give the losses of one to rounding, where no BatchNorm couples the queries of a process.

    So do two micro-batches in each without the keys of the step. The cycle loss would draw another support then,
    because micro-batches of several processes have another order in the queue.
    """
    flags = [] if method == "cycle" else ["--no-batch-keys", "--accumulate=2"]
    options = SMOOTH | {"method": method} | ({"teacher": "random:resnet10-small-w4"} if method == "distill" else {})
    run(stripes, tmp_path / "one", **(options | {"batch_keys": not flags}))
    train_with_two([*words_of(stripes, tmp_path / "two", **options), *flags])
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert one[0]["loss"] != one[3]["loss"]
    for row, other in zip(one, two, strict=True):
        assert (other["loss"], other["gradient_norm"]) == pytest.approx((row["loss"], row["gradient_norm"]), rel=1e-4)


OPTIONS = {"steps": 10, "checkpoint_every": 4, "cycle_start": 0.5}


@pytest.fixture(scope="module")
def whole(stripes, tmp_path_factory):
    """A run of two processes that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train_with_two(words_of(stripes, out, **OPTIONS))
    return out


def test_if_one_is_killed_the_other_ends(stripes, whole, tmp_path):
    """The other ends with one line and exit code 2, and the run, resumed by both, is the same to the bit."""
    out = tmp_path / "run"
    words = words_of(stripes, out, **OPTIONS | {"steps": 1000})
    victim, other = start_many(words, words)
    wait_for_step(out, 2)
    victim.process.kill()
    assert victim.end()[0] == -signal.SIGKILL
    code, text = other.end()
    assert code == 2, text
    assert "another process of this training has ended or does not respond" in text
    assert "Traceback" not in text
    part = copy_until(whole, tmp_path / "part", 8)
    train_with_two([f"--resume={part}"])
    assert_same_run(part, whole, 10)


def test_a_signal_to_one_ends_both_after_the_same_step(stripes, whole, tmp_path):
    """SIGTERM to one process ends both after one step, with a checkpoint of it, from which both can resume."""
    out = tmp_path / "run"
    words = words_of(stripes, out, **OPTIONS | {"steps": 1000})
    processes = start_many(words, words)
    wait_for_step(out, 2)
    processes[1].process.terminate()
    ends = [process.end() for process in processes]
    assert [code for code, _ in ends] == [143, 143], ends
    assert all("continues from it" in text for _, text in ends)
    (kept,) = (out / "checkpoints").iterdir()
    assert int(kept.name[5:]) == rows_of(out)[-1]["step"]


def test_processes_with_different_commands_are_refused(stripes, tmp_path):
    """Two processes that run different commands both end with a line that names them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    words = (
        ["pretrain", *words_of(stripes, tmp_path / "run", steps=1)],
        ["embed", "random:resnet10-w8", str(stripes), f"--out={tmp_path / 'x.npz'}"],
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "cyclecontrast", *each],
            env=os.environ | place | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, each in enumerate(words)
    ]
    for process in started:
        _, text = process.communicate(timeout=60)
        assert process.returncode == 2
        assert text == "error: command: pretrain in process 0, embed in process 1; start all with the same\n"
    assert list(tmp_path.iterdir()) == []


def test_processes_that_differ_are_refused(stripes, tmp_path):
    """Another setting, network or data in one of two processes is named, both end, and nothing is written."""
    other = shutil.copytree(stripes, tmp_path / "other")
    shutil.rmtree(next(other.rglob("video_0")))
    out = tmp_path / "run"
    for second, line in (
        (words_of(stripes, out, **OPTIONS, temperature=0.5), "temperature: 0.2 in process 0, 0.5 in process 1"),
        (words_of(stripes, out, **OPTIONS, projector_dim=32), "projector_dim: 64 in process 0, 32 in process 1"),
        (words_of(other, out, **OPTIONS), "data: "),
    ):
        ends = [process.end() for process in start_many(words_of(stripes, out, **OPTIONS), second)]
        assert [code for code, _ in ends] == [2, 2], ends
        assert all(line in text for _, text in ends), ends
        assert not (out / "config.toml").exists()
