"""Overlaps of dense masks are counts by hand."""

import numpy as np

from pipeline.masks import overlap


def test_pairwise_ratios_against_hand_counts():
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0, :2] = True  # 8 pixels
    masks[1, 1:3] = True  # 8, of which 4 shared
    iou = overlap.pairwise_iou(masks, masks)
    np.testing.assert_allclose(iou, [[1, 4 / 12, 0], [4 / 12, 1, 0], [0, 0, 0]])
    assert overlap.mask_iou(masks[0], masks[1]) == 4 / 12
    assert overlap.mask_iou(masks[2], masks[2]) == 0.0
