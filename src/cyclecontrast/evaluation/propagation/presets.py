"""The settings of three papers side by side (protocols.md §g); what differs between them is a field here."""

from typing import Literal, NamedTuple

from cyclecontrast.models.backbone import Backbone, Bottleneck


class Preset(NamedTuple):
    """How labels go from frame to frame; distances are in cells of the feature map.

    The context of a frame is the first frame and the `num_preceding` before it, and where the video is too young for
    those, `start` says what: the first frame in their places, or nothing, the first among them or not.
    """

    num_preceding: int
    start: Literal["repeat first", "with first", "without first"]
    top_k: int
    temperature: float
    neighborhood: Literal["circle", "square"]
    radius: int
    bottleneck_radius: int
    """That of backbones made of bottlenecks (ResNet-50)."""
    first_everywhere: bool
    """Whether the first frame is searched beyond the neighborhood."""
    first_labels: Literal["nearest", "bilinear"]
    """How the first mask becomes one label per cell."""
    stretch: bool
    """Whether each object's labels are stretched to 0..1 in each frame before they compete."""
    width_multiple: int
    """What the frame's width is cut down to a multiple of."""


# Differs from the release: `dino` is on feature maps of ResNets, not ViT patches, with the right red of ImageNet, and
# labels go to the original size in one step.
PRESETS = {
    "crw": Preset(20, "repeat first", 10, 0.05, "circle", 12, 12, True, "bilinear", False, 1),
    "vfs": Preset(20, "with first", 10, 0.07, "circle", 12, 18, False, "nearest", True, 1),
    "dino": Preset(7, "without first", 5, 0.1, "square", 12, 12, False, "nearest", True, 64),
}


def preset_for(name: str, backbone: Backbone) -> Preset:
    """Return the preset with the radius that it has for this kind of backbone."""
    preset = PRESETS[name]
    is_deep = any(isinstance(module, Bottleneck) for module in backbone.modules())
    return preset._replace(radius=preset.bottleneck_radius) if is_deep else preset


def context_frames(preset: Preset, frame: int) -> list[int]:
    """Return the frames that a frame takes its labels from: the first, then those before it, some perhaps twice."""
    window = range(frame - preset.num_preceding, frame)
    if preset.start == "repeat first":
        return [0, *(max(0, index) for index in window)]
    earliest = 0 if preset.start == "with first" else 1
    return [0, *(index for index in window if index >= earliest)]
