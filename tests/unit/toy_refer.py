"""Referring networks of a few thousand parameters, and samples for them."""

import logging

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS

from pipeline.data.referring.sample import ReferSample
from pipeline.models.referring.lavt import LavtNetwork
from pipeline.models.referring.rela import RelaNetwork
from pipeline.models.referring.segmentor import ReferSegmentor

MEAN, STD = [120.0, 110.0, 100.0], [50.0, 60.0, 55.0]
SENTENCES = ["the red star", "the leftmost shape", "the second blue box from the left"]


def text_config(**changes):
    return {"name": "tiny-bert"} | changes


def backbone_config(**changes):
    return {
        "embed_dims": 8,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": 3,
        "drop_path_rate": 0.0,
    } | changes


def lavt_config(*, text=None, backbone=None, norm="BN"):
    return {
        "type": LavtNetwork,
        "text_encoder": text or text_config(),
        "backbone": backbone or backbone_config(),
        "decoder": {"channels": 8, "norm_cfg": {"type": norm, **({"num_groups": 2} if norm == "GN" else {})}},
    }


def rela_config(*, backbone=None, **regions):
    attention = {"embed_dims": 16, "num_heads": 2, "num_levels": 3, "num_points": 2, "dropout": 0.0}
    feed_forward = {"embed_dims": 16, "feedforward_channels": 16, "num_fcs": 2, "ffn_drop": 0.0}
    return {
        "type": RelaNetwork,
        "text_encoder": text_config(),
        "backbone": backbone or backbone_config(),
        "pixel_decoder": ConfigDict(
            feat_channels=16,
            out_channels=16,
            num_outs=3,
            norm_cfg={"type": "GN", "num_groups": 4},
            act_cfg={"type": "ReLU"},
            encoder={
                "num_layers": 1,
                "layer_cfg": {"self_attn_cfg": attention | {"batch_first": True}, "ffn_cfg": feed_forward},
            },
            positional_encoding={"num_feats": 8, "normalize": True},
        ),
        "region_decoder": {"channels": 16, "grid_hw": [4, 4], "num_layers": 3, "num_heads": 2}
        | {"feedforward_channels": 16}
        | regions,
    }


def build(config, *, seed=0):
    """A network with its own initialisation, in evaluation mode."""
    MMLogger.get_instance("mmengine").setLevel(logging.ERROR)  # else it lists every parameter
    torch.manual_seed(seed)
    network = MODELS.build(dict(config))
    network.init_weights()
    return network.eval()


def build_segmentor(config, **changes):
    model = ReferSegmentor(
        network=config,
        data_preprocessor={"type": ImgDataPreprocessor, "mean": MEAN, "std": STD, "bgr_to_rgb": False},
        **changes,
    )
    MMLogger.get_instance("mmengine").setLevel(logging.ERROR)
    model.init_weights()
    return model


def sample_of(sentence="the red star", *, image_id=1, original=(64, 64), view=(64, 64), mask=None, has_target=True):
    """A sample whose view shows the whole image."""
    scale = np.diag([view[1] / original[1], view[0] / original[0], 1.0]).astype(np.float32)
    sample = ReferSample(
        metainfo={
            "img_id": image_id,
            "img_path": "",
            "ref_id": image_id,
            "sentence_id": image_id,
            "sentence": sentence,
            "has_target": has_target,
            "ori_shape": original,
            "img_shape": view,
            "homography_matrix": scale,
        }
    )
    if mask is not None:
        sample.gt_mask = mask
    return sample
