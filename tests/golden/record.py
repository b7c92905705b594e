"""Records anew what the tests of this folder compare with: `python -m tests.golden.record [PART...]`.

PARTS are training, sampling, ranks, accumulation, stores, evaluations, options and files; all by default. The first
recording was made from commit c2dc5c1, with PYTHONPATH=<its checkout>/src. Record a part again only where it changes
on purpose, say why in the commit, and read the difference. `--difference` writes nothing and says how far each
number is from the recorded one, as a part of it.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import cyclecontrast as cc
from tests.golden import evaluations, files, inputs, options, stores, trainings

FOLDER = Path(__file__).parent / "recorded"
SHARED = Path(__file__).parents[3] / "shared" / "data"


def training(root):
    """Return the trace of every run."""
    frames = inputs.write_frames(root / "tree")
    return {
        name: trainings.trace_of(trainings.train(frames, root / name, name))
        for name in trainings.RUNS | trainings.RESNETS
    }


def sampling(root):
    """Return the order of frames and random numbers of methods that differ in the views that they take."""
    frames = inputs.write_frames(root / "tree")
    return {
        name: trainings.sampling_of(frames, root / name, name) for name in ("intra-image", "cycle", "vince", "seco")
    }


def ranks(root):
    """Return the traces of runs by two processes."""
    train_by_two(inputs.write_frames(root / "tree"), root)
    return {name: trainings.trace_of(root / str(number)) for number, name in enumerate(trainings.RANKS)}


def train_by_two(frames, root):
    """Train every run of RANKS with two processes, started as torchrun would, each run at a port of its own."""
    places = (str(Path(__file__).parents[2]), str(Path(cc.__file__).parents[1]))
    launch = (sys.executable, "-m", "tests.golden.trainings", "ranks", str(frames), str(root), *_free_ports())
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(places),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }
    started = [
        subprocess.Popen(
            launch, env=environment | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    try:
        for process in started:
            problem = process.communicate(timeout=300)[1]
            assert process.returncode == 0, problem[-3000:]
    finally:
        for process in started:
            process.kill()


def _free_ports():
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in trainings.RANKS]
        return [str(one.getsockname()[1]) for one in held]


def accumulation(root):
    """Return the traces of runs that take a batch in parts."""
    frames = inputs.write_frames(root / "tree")
    return {name: trainings.trace_of(trainings.train(frames, root / name, name)) for name in trainings.ACCUMULATED}


def prepared(root):
    """Return the content of a store for each policy."""
    videos = inputs.write_videos(root / "videos")
    return {name: stores.content_of(stores.prepare(videos, root / name, name)) for name in stores.POLICIES}


def evaluated(root):
    """Return the metrics of every protocol, and the files that all leave."""
    data = evaluations.Data(SHARED, root / "data")
    results = {name: evaluations.evaluate(data, root / "out", name)[0] for name in evaluations.EVALUATIONS}
    return {"results": results, "files": files.listing(root / "out")}


def settings(root):
    """Return flags, choices and defaults of each command, and the settings of the presets."""
    return {name: options.options_of(name) for name in options.COMMANDS} | {"presets": options.presets()}


def left_behind(root):
    """Return the files of runs, of what is made of them, and of exports."""
    frames, videos = inputs.write_frames(root / "tree"), inputs.write_videos(root / "videos")
    exports = {format: files.of_export(root / "exports", format) for format in files.EXPORTS}
    return files.of_trainings(frames, videos, root / "runs") | {"exports": exports}


PARTS = {
    "training": training,
    "sampling": sampling,
    "ranks": ranks,
    "accumulation": accumulation,
    "stores": prepared,
    "evaluations": evaluated,
    "options": settings,
    "files": left_behind,
}


def recorded(part):
    """Return what was recorded of a part."""
    return json.loads((FOLDER / f"{part}.json").read_text())


def as_text(values, indent=""):
    """Return JSON with a line for each list and for each object of plain values."""
    if isinstance(values, dict) and any(isinstance(value, dict | list) for value in values.values()):
        lines = [f"{indent} {json.dumps(key)}: {as_text(value, indent + ' ')}" for key, value in values.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(values, list) and any(isinstance(value, dict | list) for value in values):
        return "[\n" + ",\n".join(f"{indent} {json.dumps(value)}" for value in values) + f"\n{indent}]"
    return json.dumps(values)


def differences(found, expected, name=""):
    """Yield each value that is not the recorded one, and how far from it a number is."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in dict.fromkeys((*expected, *found)):
            yield from differences(found.get(key), expected.get(key), f"{name} / {key}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{name}[{number}]")
    elif found != expected:
        numbers = isinstance(found, float) and isinstance(expected, float)
        yield f"{name}: {expected} → {found}" + (
            f" ({abs(found - expected) / max(abs(expected), 1e-6):.1e})" if numbers else ""
        )


def main():
    """Record, or tell the differences of, the named parts."""
    names = [name for name in sys.argv[1:] if not name.startswith("--")] or list(PARTS)
    for name in names:
        with tempfile.TemporaryDirectory() as root:
            found = json.loads(json.dumps(PARTS[name](Path(root))))
        if "--difference" in sys.argv:
            print(*differences(found, recorded(name), name), sep="\n")
        else:
            FOLDER.mkdir(exist_ok=True)
            (FOLDER / f"{name}.json").write_text(as_text(found) + "\n")


if __name__ == "__main__":
    main()
