"""The folder for Hugging Face: transformers computes the same features from it, and the model card is correct."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cyclecontrast.config import ExportConfig, PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.image_batches import CenterCrop
from cyclecontrast.evaluation.predictions import About, Baseline, DataInfo, ModelInfo, Result
from cyclecontrast.exporting.export import export_backbone
from cyclecontrast.exporting.huggingface import model_card
from cyclecontrast.models.backbone import import_torchvision
from cyclecontrast.models.checkpoint import fingerprint, save_backbone
from cyclecontrast.training.run_folder import write_about, write_config
from tests.make_backbones import execute, features, last_map, shaken

ABOUT = {
    "versions": {"cyclecontrast": "0.1.0", "torch": "9.8.7"},
    "num_videos": 1234,
    "num_frames": 56789,
    "num_held_out": 120,
    "data_fingerprint": "0123456789abcdef",
    "verdict": "undertrained",
    "reason": "retrieval still rises",
    "health": {"held_out": False, "videos": 41},
}


def exported(tmp_path, name="resnet10-w8"):
    """A backbone and the result of exporting it."""
    backbone = shaken(name, image_size=56)
    backbone.mean = (0.1, 0.2, 0.3)
    save_backbone(backbone, tmp_path)
    made = export_backbone(ExportConfig(model=str(tmp_path), format="huggingface", out=tmp_path / "out" / "hub"))
    return backbone, made


@pytest.mark.parametrize("name", ["resnet10-w8", "resnet50-w16"])
def test_transformers_computes_the_same(tmp_path, name):
    """AutoModel and AutoImageProcessor load the folder: crop, features and map are those of our evaluations."""
    import_torchvision()
    transformers = pytest.importorskip("transformers", reason="the extra huggingface is not installed")
    backbone, made = exported(tmp_path, name)
    size = 64  # an even number of pixels is cut off, because libraries round half a pixel differently
    images = np.random.default_rng(0).integers(0, 256, (3, size, size + 10, 3), np.uint8)
    variables = execute(made.snippet, images=list(images))
    assert type(variables["model"]) is transformers.ResNetModel
    crop = CenterCrop(backbone.image_size)
    crops = torch.from_numpy(np.stack([crop(image, 0) for image in images])).permute(0, 3, 1, 2)
    given = variables["processor"](list(images), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(given, backbone.normalize(crops), atol=1e-5, rtol=0)
    torch.testing.assert_close(variables["features"], features(backbone, crops), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(variables["map"], last_map(backbone, crops), atol=1e-4, rtol=1e-4)


def test_transformers_finds_every_weight(tmp_path):
    """No weight is missing or unknown: transformers would silently initialize missing ones at random."""
    import_torchvision()
    transformers = pytest.importorskip("transformers", reason="the extra huggingface is not installed")
    _, made = exported(tmp_path, "resnet50-w16")
    _, told = transformers.AutoModel.from_pretrained(str(made.path), output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_folder_is_complete_without_transformers(tmp_path):
    """It has four files, transformers' parameter names, the sizes of the network and the crop of the evaluations."""
    backbone, made = exported(tmp_path)
    names = sorted(path.name for path in made.path.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert [path.name for path in made.path.parent.iterdir()] == ["hub"]
    weights = load_file(made.path / "model.safetensors")
    assert len(weights) == len(backbone.network.state_dict())
    block = "encoder.stages.1.layers.0"
    expected = {"embedder.embedder.convolution.weight", "embedder.embedder.normalization.running_var"}
    expected |= {f"{block}.layer.{i}.{part}.weight" for i in (0, 1) for part in ("convolution", "normalization")}
    expected |= {f"{block}.shortcut.{part}.weight" for part in ("convolution", "normalization")}
    assert expected <= weights.keys()
    config = json.loads((made.path / "config.json").read_text())
    assert (config["embedding_size"], config["hidden_sizes"], config["depths"]) == (8, [8, 16, 32, 64], [1, 1, 1, 1])
    preprocessing = json.loads((made.path / "preprocessor_config.json").read_text())
    assert (preprocessing["size"], preprocessing["crop_size"]["height"]) == ({"shortest_edge": 64}, 56)
    assert preprocessing["image_mean"] == [0.1, 0.2, 0.3]


def run_folder(folder, backbone):
    """A run with one result of this backbone and one of an earlier backbone."""
    run = folder / "secret" / "run"
    run.mkdir(parents=True)
    save_backbone(backbone, run)
    start = f"resnet10-w8@{folder / 'secret' / 'start.pth'}#teacher"
    write_config(run, PretrainConfig(data=folder / "secret" / "videos", out=run, method="intra-video", init=start))
    write_about(run, ABOUT)
    for content, value in ((fingerprint(backbone), 0.4321), ("0" * 16, 0.9876)):
        model = ModelInfo(backbone.name, "secret", content)
        about = About("knn", "knn (k 10)", {"k": [10]}, model, DataInfo("/secret/labeled", "abc", 60, 20))
        Result(about, {"top-1": value}, {}, Baseline("start", model, {"top-1": 0.4})).save(run / "results")
    return run


def test_the_card_of_a_run(tmp_path):
    """The card has data, method, verdict, results of this backbone and versions, but no license or private paths."""
    run = run_folder(tmp_path, shaken("resnet10-w8"))
    export_backbone(ExportConfig(model=str(run), format="huggingface", out=tmp_path / "hub"))
    card = (tmp_path / "hub" / "README.md").read_text()
    head, _, text = card.removeprefix("---\n").partition("---\n")
    assert "library_name: transformers" in head
    assert "license" not in head
    assert "56,789 frames of 1,234 unlabeled videos, 120 videos held out" in text
    assert "`intra-video` learns from frames of the same video." in text
    assert 'method = "intra-video"' in text
    assert 'init = "resnet10-w8@start.pth#teacher"' in text
    assert "trained without labels, from resnet10-w8@start.pth#teacher: resnet10-w8" in text
    assert "These are the weights" not in text
    assert "**undertrained**, measured without labels on 41 training videos: retrieval still rises." in text
    assert "| knn (k 10) | labeled, 60 train, 20 test | top-1 | 43.21, +3.2 points against its start |" in text
    assert "98.76" not in card
    assert "- torch 9.8.7" in text
    assert "cyclecontrast pretrain VIDEOS" in text
    assert text.count("cyclecontrast evaluate knn run DATA") == 1
    assert "## License\n\nNot chosen yet" in text
    assert "secret" not in card


def test_the_card_of_a_kept_start(tmp_path):
    """If the run kept its start, the card says whose weights these are, without a path."""
    backbone = shaken("resnet10-w8")
    run = run_folder(tmp_path, backbone)
    write_about(run, ABOUT | {"verdict": "worse than its start", "selected_step": 0})
    card = model_card(backbone, run)
    kept = "training made them worse, so the start was kept."
    assert f"These are the weights of resnet10-w8@start.pth#teacher: {kept}" in card
    assert "secret" not in card


def test_the_card_of_weights_alone(tmp_path):
    """Without a run the card says what is unknown."""
    export_backbone(ExportConfig(model="random:resnet10-w8", format="huggingface", out=tmp_path / "hub"))
    card = (tmp_path / "hub" / "README.md").read_text()
    for title, text in (
        ("Data", "Unknown"),
        ("Method", "Unknown"),
        ("Health", "Not measured"),
        ("Results", "Not evaluated"),
    ):
        assert f"## {title}\n\n{text}" in card
    assert "cyclecontrast pretrain" not in card


@pytest.mark.parametrize("name", ["run.json", "config.toml"])
def test_a_damaged_run_writes_nothing(tmp_path, name):
    """If a file of the run cannot be read, one line says so and no folder is made."""
    run = run_folder(tmp_path, shaken("resnet10-w8"))
    (run / name).write_text("{")
    with pytest.raises(UserError, match=f"{name}: "):
        export_backbone(ExportConfig(model=str(run), format="huggingface", out=tmp_path / "out" / "hub"))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_partial_folder(tmp_path, monkeypatch):
    """If a file cannot be written, the unfinished folder is removed."""

    def fail(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("cyclecontrast.exporting.export.sync", fail)
    with pytest.raises(OSError, match="No space"):
        export_backbone(ExportConfig(model="random:resnet10-w8", format="huggingface", out=tmp_path / "hub"))
    assert list(tmp_path.iterdir()) == []
