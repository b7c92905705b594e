"""Other strides of the same weights: against torchvision's dilation, and by the published map sizes."""

import pytest
import torch

from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import guarded_torchvision, make_backbone
from cyclecontrast.models.stride import TOTAL_STRIDE_8, restride


@pytest.mark.parametrize(("size", "cells"), [(120, 15), (239, 30), (255, 32)])
@pytest.mark.parametrize("name", ["resnet18-w8", "resnet50-w8"])
def test_the_map_sizes_of_tracking(name, size, cells):
    """Exemplar and search crops give 15, 30 and 32 cells at total stride 8."""
    backbone = restride(make_backbone(name).eval(), *TOTAL_STRIDE_8)
    with torch.inference_mode():
        assert backbone.feature_map(torch.zeros(1, 3, size, size), 4).shape[-2:] == (cells, cells)


def test_a_bottleneck_network_equals_torchvisions_dilation():
    """Dilating stages 3 and 4 gives the same map as torchvision's replace_stride_with_dilation."""
    guarded_torchvision()
    from torchvision.models import resnet50

    backbone = make_backbone("resnet50").eval()
    reference = resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    reference.load_state_dict(backbone.network.state_dict(), strict=False)
    reference.avgpool = reference.fc = torch.nn.Identity()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = restride(backbone, *TOTAL_STRIDE_8).feature_map(images, 4)
        theirs = reference(images).view_as(ours)
    torch.testing.assert_close(ours, theirs)


def test_a_basic_block_is_dilated_in_its_first_convolution_alone():
    """In stage 4 the first block has dilation 2 and the second 4; their second convolutions have none."""
    blocks = restride(make_backbone("resnet18-w8"), *TOTAL_STRIDE_8).network.layer4
    assert [(block.conv1.dilation[0], block.conv2.dilation[0]) for block in blocks] == [(2, 1), (4, 1)]


def test_the_given_backbone_stays_as_it_is():
    """Strides change in a copy with the same weights."""
    backbone = make_backbone("resnet10-w8").eval()
    images = torch.zeros(1, 3, 64, 64)
    dense = restride(backbone, (1, 2, 1, 1))
    assert backbone.feature_map(images, 4).shape[-1] == 2
    assert dense.feature_map(images, 4).shape[-1] == 8
    assert all(
        torch.equal(a, b) for a, b in zip(backbone.state_dict().values(), dense.state_dict().values(), strict=True)
    )


def test_a_network_other_than_our_resnet_is_refused():
    """The strides of a timm network cannot be changed here."""
    with pytest.raises(UserError, match="is not a ResNet"):
        restride(make_backbone("timm:resnet10t"), *TOTAL_STRIDE_8)
