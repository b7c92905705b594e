"""Every protocol on small parts of real data, by an untrained network; what is recorded are its metrics and its tag."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import cyclecontrast as cc
from tests.golden import inputs

MODEL = "random:resnet10-small-w8"
SMALL = {"device": "cpu", "workers": 0, "report": False}
CLOTHES, TRACKS, ACTIONS, MASKS = inputs.copy_classes, inputs.copy_tracks, inputs.copy_actions, inputs.copy_masks
OTB, GOT10K, DAVIS = inputs.copy_otb, inputs.copy_got10k, inputs.copy_davis

EVALUATIONS = {
    "knn": ("knn", CLOTHES, {"image_size": 32, "k": (1, 5, 20)}),
    "knn of videos": ("knn", TRACKS, {"image_size": 32, "k": (1, 3), "level": "video"}),
    "linear by lbfgs": ("linear", CLOTHES, {"image_size": 32, "probe": "lbfgs"}),
    "linear by sgd": ("linear", TRACKS, {"image_size": 32, "probe": "sgd", "epochs": 5, "batch_size": 16}),
    "finetune": ("finetune", TRACKS, {"image_size": 32, "epochs": 8, "batch_size": 4}),
    "retrieval": ("retrieval", ACTIONS, {"image_size": 32, "k": (1, 5, 20), "clip_length": 4}),
    "retrieval of frames": ("retrieval", ACTIONS, {"image_size": 32, "k": (1, 5), "level": "frame", "center": True}),
    "action, linear": ("action", ACTIONS, {"image_size": 32, "mode": "linear", "num_frames": 2, "epochs": 1}),
    "action": ("action", ACTIONS, {"image_size": 32, "num_frames": 2, "epochs": 1, "batch_size": 8}),
    "tracking, raw": ("tracking", OTB, {"train": False}),
    "tracking, official": ("tracking", OTB, {"train": False, "toolkit": "official", "preset": "vince"}),
    "tracking, trained": ("tracking", OTB, {"epochs": 1, "batch_size": 4, "pairs_per_sequence": 4}),
    "tracking on got10k": ("tracking", GOT10K, {"train": False, "preset": "siamfc"}),
    "tracking by the first box": ("tracking", GOT10K, {"tracker": "identity"}),
    "segmentation": ("segmentation", MASKS, {"epochs": 2, "crop_size": 64, "batch_size": 4}),
    "segmentation, fcn": (
        "segmentation",
        MASKS,
        {"epochs": 1, "crop_size": 64, "batch_size": 4, "head": "fcn", "frozen": False, "stride": 4},
    ),
    "propagation": ("propagation", DAVIS, {"height": 64}),
    "propagation, crw": ("propagation", DAVIS, {"height": 64, "preset": "crw"}),
    "propagation, dino": ("propagation", DAVIS, {"height": 64, "preset": "dino"}),
}


class Data:
    """Copies of the real data, each made when it is first asked for."""

    def __init__(self, shared, root):
        self.shared, self.root = shared, root

    def __call__(self, copy):
        """Return the folder that a function of `inputs` fills."""
        folder = self.root / copy.__name__
        return folder if folder.exists() else copy(self.shared, folder)


def evaluate(data, out, name):
    """Evaluate by the settings of this name; returns what is recorded of the result, and that of scoring it again."""
    protocol, copy, settings = EVALUATIONS[name]
    more = {"train_data": data(GOT10K)} if name == "tracking, trained" else {}
    settings = SMALL | settings | more
    result = cc.evaluate(protocol, MODEL, data(copy), out=out, **settings)
    again = cc.evaluate(protocol, MODEL, data(copy), out=out, score_only=True, **settings)
    about = result.about
    sizes = [about.data.num_train, about.data.num_test]
    recorded = {"tag": result.tag, "items": sizes, "problems": list(about.problems), "metrics": result.metrics}
    recorded["record"] = _summary(_record_of(out, result))
    return json.loads(json.dumps(recorded)), again.metrics == result.metrics


def _record_of(out, result):
    """Return the table of the record that was written last."""
    return pq.read_table(
        max((out / "records").glob(f"{result.protocol}-*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    )


def _summary(table):
    """Return mean and mean square of what is predicted in floats, and the first choice of each item in integers."""
    found = {}
    for name in table.column_names:
        if name in ("seconds", "label") or name.startswith("true_"):
            continue
        kind = table.schema.field(name).type
        is_list = pa.types.is_fixed_size_list(kind)
        if not pa.types.is_floating(kind.value_type if is_list else kind):
            found |= {name: [row[0] for row in table[name].to_pylist()]} if is_list else {}
            continue
        values = np.array(table[name].to_pylist())
        found[name] = {"mean": float(values.mean()), "mean square": float(np.square(values).mean())}
    return found
