"""The convolutional trunk stands where Hiera stands: strides, widths and order that the package's neck expects."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from pipeline.sam.conv_trunk import ConvTrunk, ResidualBlock


@pytest.mark.parametrize("side", [96, 128, 384])
def test_maps_have_strides_4_8_16(side):
    trunk = ConvTrunk((8, 16, 32), (1, 2, 1), groups=4)
    maps = trunk(torch.randn(2, 3, side, side))
    assert [tuple(m.shape) for m in maps] == [(2, c, side // s, side // s) for c, s in ((8, 4), (16, 8), (32, 16))]
    assert trunk.channel_list == [32, 16, 8]
    assert all(torch.isfinite(m).all() for m in maps)


def test_a_block_starts_as_the_identity_of_what_is_positive():
    maps = torch.rand(1, 8, 5, 5)
    torch.testing.assert_close(ResidualBlock(8, 4)(maps), maps)


def test_the_packages_encoder_takes_it():
    encoder = instantiate(
        OmegaConf.create(
            {
                "_target_": "sam2.modeling.backbones.image_encoder.ImageEncoder",
                "scalp": 0,
                "trunk": {"_target_": "pipeline.sam.conv_trunk.ConvTrunk", "channels": [8, 16, 32], "groups": 4},
                "neck": {
                    "_target_": "sam2.modeling.backbones.image_encoder.FpnNeck",
                    "position_encoding": {
                        "_target_": "sam2.modeling.position_encoding.PositionEmbeddingSine",
                        "num_pos_feats": 16,
                    },
                    "d_model": 16,
                    "backbone_channel_list": [32, 16, 8],
                    "fpn_top_down_levels": [0, 1, 2],
                    "fpn_interp_model": "nearest",
                },
            }
        )
    )
    levels = encoder(torch.randn(1, 3, 64, 64))["backbone_fpn"]
    assert [level.shape[-1] for level in levels] == [16, 8, 4]
    sum(level.sum() for level in levels).backward()
    unused = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert unused == []
