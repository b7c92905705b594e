"""Backbones: ResNets with the parameter names of torchvision, and all networks of timm.

A backbone stores the normalization of its input; it has no projector and no loss.
"""

import copy
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cyclecontrast.config.types import RESNET, is_user_defined
from cyclecontrast.errors import UserError, did_you_mean

PerStage = tuple[int, int, int, int]

TOTAL_STRIDE_8: tuple[PerStage, PerStage] = ((1, 2, 1, 1), (1, 1, 2, 4))
"""Strides and dilations of the stages for a total stride of 8: stages 3 and 4 use dilation instead of stride."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BLOCKS = {"10": (1, 1, 1, 1), "18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3)}
POOLING = {"token": "the class token", "avg": "the mean of the patch tokens"}
"""What the features of a vision transformer are; `timm:<name>+avg` chooses, otherwise timm does."""
CRASHING_CHANNELS = 8
"""With at most this many input channels, the backward pass of a strided 1x1 convolution crashes in oneDNN. The shortcut
then subsamples its input and uses stride 1."""


class Backbone(nn.Module):
    """A network without classifier, with the size and normalization of its input images."""

    def __init__(self, network: nn.Module, name: str, dim: int, image_size: int = 224) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.dim = dim
        self.image_size = image_size
        self.patch = 1
        """The sides of images are multiples of it; above 1 for vision transformers."""
        self.mean = IMAGENET_MEAN
        self.std = IMAGENET_STD
        self.source = "random weights"

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalized images (batch, 3, h, w) as representations (batch, dim)."""
        return pooled(self.network(images))

    def feature_map(self, images: Tensor, stage: int) -> Tensor:
        """Return the output of stage 1 to 4 for normalized images (batch, channels, h, w).

        A stage of a vision transformer is a quarter of its blocks; its map are the patch tokens, for stage 4 after the
        last normalization. For a custom network, only stage 4 is available. Raises UserError if the network returns
        vectors.
        """
        if stage not in (1, 2, 3, 4):
            raise ValueError(f"stage {stage}: a backbone has stages 1 to 4")
        if is_user_defined(self.name):
            features: Tensor = self.network(images)
            if stage != 4 or features.ndim != 4:
                what = "only the map of its last stage" if features.ndim == 4 else "only vectors"
                raise UserError(f"{self.name} returns {what}, but the map of stage {stage} is needed")
            return features
        if isinstance(self.network, ResNet):
            return self.network.stage(images, stage)
        network: Any = self.network
        levels = network.feature_info
        if len({level["reduction"] for level in levels}) > 1:
            return network.forward_intermediates(images, indices=4, intermediates_only=True)[stage - 1]  # type: ignore[no-any-return]
        blocks = [max(1, len(levels) * stage // 4) - 1]
        options = {"norm": stage == 4, "stop_early": True, "intermediates_only": True}
        return network.forward_intermediates(images, indices=blocks, **options)[0]  # type: ignore[no-any-return]

    def check_size(self, size: int) -> None:
        """Raise UserError if the network does not take square images of this size; ResNets take any."""
        below = size // self.patch * self.patch
        if size != below:
            sizes = " or ".join(str(fitting) for fitting in (below, below + self.patch) if fitting)
            raise UserError(
                f"image_size: {self.name} takes images whose side is a multiple of {self.patch}, not {size}; "
                f"set --image-size {sizes}"
            )
        if self.patch > 1 or not self.name.startswith("timm:"):
            return
        was_training = self.training
        try:
            with torch.inference_mode():
                self.eval()(torch.zeros(1, 3, size, size, device=next(self.parameters()).device))
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            problem = f"image_size: {self.name} does not take images of {size} px ({reason}); set --image-size"
            raise UserError(problem) from error
        finally:
            self.train(was_training)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels (batch, 3, h, w) as normalized float images for `forward`."""
        mean, std = _constants(self.mean, self.std, pixels.device)
        return (pixels.float() / 255 - mean) / std


def pooled(features: Tensor) -> Tensor:
    """Return vectors (batch, dim) unchanged, and a map (batch, dim, h, w) averaged over positions."""
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features


class Pooled(nn.Module):
    """`pooled` as the last layer of a network."""

    def forward(self, features: Tensor) -> Tensor:
        """Return vectors (batch, dim)."""
        return pooled(features)


@lru_cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and std on a device; cached, because copying to a GPU synchronizes host and device."""
    return torch.tensor(mean, device=device).view(3, 1, 1), torch.tensor(std, device=device).view(3, 1, 1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)
        self.sampling = stride if in_channels <= CRASHING_CHANNELS else 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x[:, :, :: self.sampling, :: self.sampling])
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """A 1x1, a strided 3x3 and an expanding 1x1 convolution with a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels * 4, stride)
        self.sampling = stride if in_channels <= CRASHING_CHANNELS else 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x[:, :, :: self.sampling, :: self.sampling])
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A ResNet without classifier.

    `small` has a 3x3 stem with stride 1 and no max-pool, for images below 64 px; `padding` is that of the stem.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, ...], width: int, small: bool, padding: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 1 if small else 2, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = width
        for number, num_blocks in enumerate(blocks, start=1):
            channels = width * 2 ** (number - 1)
            stage = nn.Sequential()
            for index in range(num_blocks):
                stage.append(block(in_channels, channels, 2 if index == 0 and number > 1 else 1))
                in_channels = channels * block.expansion
            self.add_module(f"layer{number}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.apply(_initialize)

    def stage(self, x: Tensor, last: int) -> Tensor:
        """Return the output of stage `last`, 1 to 4."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, last + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the last stage averaged over positions (batch, dim)."""
        return self.avgpool(self.stage(x, 4)).flatten(1)  # type: ignore[no-any-return]


def make_backbone(name: str, seed: int = 0, image_size: int = 224) -> Backbone:
    """Build a backbone with random weights, in training mode. Raises UserError for an unknown name."""
    with torch.random.fork_rng(devices=()):
        # torch.manual_seed would also seed the GPUs, whose state fork_rng(devices=()) does not restore.
        torch.default_generator.manual_seed(seed)
        if name.startswith("timm:"):
            return _make_timm(name, pretrained=False)
        match = RESNET.fullmatch(name)
        if match is None:
            raise UserError(
                f"unknown backbone {name!r}; name resnet10, resnet18, resnet34 or resnet50, with -small or -w<width> "
                "(resnet18-small-w32), or timm:<name>"
            )
        depth, small, width = match[1], match[2] is not None, int(match[3] or 64)
        block = Bottleneck if depth == "50" else BasicBlock
        padding = {None: 3, "-small": 1, "-small-pad2": 2}[match[2]]
        network = ResNet(block, BLOCKS[depth], width, small, padding)
        return Backbone(network, name, width * 8 * block.expansion, image_size)


def make_empty_backbone(name: str) -> Backbone:
    """Build a backbone whose weights are on the meta device, where they take no memory. Raises UserError."""
    if not name.startswith("timm:"):
        with torch.device("meta"):
            return make_backbone(name)
    # Not torch.device("meta"), because networks of older versions of timm compute with tensors while they are made.
    hook = register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]
    try:
        return make_backbone(name)
    finally:
        hook.remove()


def _to_meta(_: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)


def load_timm(name: str) -> Backbone:
    """Load `timm:<name>` with pretrained weights. Raises UserError if that fails."""
    return _make_timm(name, pretrained=True)


def _make_timm(name: str, pretrained: bool) -> Backbone:
    try:
        import_torchvision()
        timm: Any = __import__("timm")
    except ImportError as error:
        raise UserError("timm:<name> needs the extra: pip install 'cyclecontrast[timm]'") from error
    short, _, pooling = name.removeprefix("timm:").partition("+")
    if pooling not in ("", *POOLING):
        raise UserError(f"{name}: the features are named +{' or +'.join(POOLING)}, not +{pooling}")
    if not timm.is_model(short):  # timm would look up other names on a server or in a local folder
        raise UserError(f"{name}: timm has no such network{did_you_mean(short, timm.list_models())}")
    try:
        try:  # positions are interpolated to the size of the images
            network = timm.create_model(short, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
        except TypeError:  # no vision transformer
            network = timm.create_model(short, pretrained=pretrained, num_classes=0)
    except Exception as error:  # timm raises many types, mostly if a download fails
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = "could not download its weights (offline?)" if pretrained else "timm cannot build it"
        raise UserError(f"{name}: {what}: {reason}") from error
    if pooling and getattr(network, "cls_token" if pooling == "token" else "num_prefix_tokens", None) is None:
        raise UserError(
            f"{name}: {short} has no {'class' if pooling == 'token' else 'patch'} tokens; leave out +{pooling}"
        )
    if pooling:
        network.reset_classifier(0, pooling)
    data: dict[str, Any] = timm.data.resolve_model_data_config(network)
    dim = getattr(network, "head_hidden_size", network.num_features)
    backbone = Backbone(network, name, dim, data["input_size"][-1])
    if getattr(network, "dynamic_img_size", False):
        backbone.patch = network.patch_embed.feat_ratio()
    backbone.mean, backbone.std = tuple(data["mean"]), tuple(data["std"])
    backbone.source = f"{name}, weights of timm" if pretrained else "random weights"
    return backbone


_torchvision_operators: list[Any] = []


def import_torchvision() -> Any:
    """Return the module torchvision; if its compiled operators cannot be loaded, declare `nms` and `qnms` first."""
    try:
        return __import__("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    _torchvision_operators.append(library)
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return __import__("torchvision")


def _conv3x3(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    stride = 1 if in_channels <= CRASHING_CHANNELS else stride
    conv = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
    return nn.Sequential(OrderedDict([("0", conv), ("1", nn.BatchNorm2d(channels))]))


def _initialize(module: nn.Module) -> None:
    # Skipped on the meta device, where kaiming_normal_ would only import for two seconds.
    if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


# --- denser feature maps


def restride(backbone: Backbone, strides: PerStage, dilations: PerStage = (1, 1, 1, 1)) -> Backbone:
    """Return a copy of the backbone with these strides and dilations of stages 1 to 4.

    Raises UserError if it is no ResNet. As in the released tracking code, the first block of a dilated stage has half
    the dilation, and in a block of two 3x3 convolutions only the first is dilated.
    """
    if not isinstance(backbone.network, ResNet):
        raise UserError(
            f"{backbone.source}: {backbone.name} is not a ResNet; this protocol changes the strides of a ResNet"
        )
    dense = copy.deepcopy(backbone)
    for number, (stride, dilation) in enumerate(zip(strides, dilations, strict=True), start=1):
        for index, block in enumerate(dense.network.get_submodule(f"layer{number}").children()):
            assert isinstance(block, BasicBlock | Bottleneck)
            is_first = index == 0
            _set_stride(block, stride if is_first else 1, max(1, dilation // 2) if is_first else dilation)
    return dense


def _set_stride(block: BasicBlock | Bottleneck, stride: int, dilation: int) -> None:
    conv = block.conv1 if isinstance(block, BasicBlock) else block.conv2
    conv.stride, conv.dilation, conv.padding = (stride, stride), (dilation, dilation), (dilation, dilation)
    if block.downsample is not None:
        shortcut = block.downsample[0]
        assert isinstance(shortcut, nn.Conv2d)
        if shortcut.in_channels <= CRASHING_CHANNELS:
            block.sampling = stride
        else:
            shortcut.stride = (stride, stride)


def has_batchnorm(backbone: Backbone) -> bool:
    """Return whether a network has BatchNorm layers."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in backbone.modules())


def freeze_batchnorm(backbone: Backbone) -> None:
    """Let BatchNorm normalize with its running statistics from now on; its scale and shift are still trained."""
    for layer in backbone.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()


def freeze_stages(backbones: list[Backbone], num_stages: int) -> None:
    """Stop training the stem and the first stages of equal backbones; their BatchNorm uses its running statistics.

    They are the parameters that the output of the stage depends on. The first backbone must have trainable weights.
    """
    backbone = backbones[0].eval()
    names, weights = zip(*backbone.named_parameters(), strict=True)
    images = torch.zeros(1, 3, backbone.image_size, backbone.image_size, device=weights[0].device)
    gradients = torch.autograd.grad(backbone.feature_map(images, num_stages).sum(), weights, allow_unused=True)
    frozen = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    for each in backbones:
        each.train()
        for prefix, layer in each.named_modules():
            own = dict(layer.named_parameters(prefix, recurse=False))
            if own and own.keys() <= frozen:
                layer.training = False  # not those below, because a transformer itself has the class token
                for weight in own.values():
                    weight.requires_grad_(False)


def layers_of(backbone: Backbone) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer, in the groups and order of timm; raises UserError for other networks."""
    matcher = getattr(backbone.network, "group_matcher", None)
    if matcher is None:
        instead = "" if is_user_defined(backbone.name) else ", or set --freeze"  # which needs known stages
        raise UserError(f"layer_decay: {backbone.name} is not a network of timm; remove --layer-decay{instead}")
    timm: Any = __import__("timm.models")
    return list(timm.models.group_parameters(backbone.network, matcher(), return_values=True).values())
