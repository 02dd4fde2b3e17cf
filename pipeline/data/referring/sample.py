"""One view of an image with one sentence about it."""

from mmengine.structures import BaseDataElement

META_KEYS = (
    "img_id",
    "img_path",
    "ref_id",
    "sentence_id",
    "sentence",
    "has_target",
    "ori_shape",
    "img_shape",
    "homography_matrix",
)
"""``sentence`` is text; ``has_target`` is bool, always True of an unlabelled image (whether an object is meant is a
label too); shapes are (height, width) in pixels, ``ori_shape`` of the canonical frame and ``img_shape`` of the view;
``homography_matrix`` [3, 3] float32 leads from canonical to view coordinates (``pipeline/masks/warp.py``)."""


class ReferSample(BaseDataElement):  # type: ignore[misc]  # mmengine is untyped
    """What the networks and the metric read of a sample.

    Meta information: :data:`META_KEYS`. Data, each where there is something to say: ``gt_mask`` [H, W] bool in the
    view, and ``hidden_truth`` [H, W] bool, the same of an unlabelled image, which only measures pseudo-labels.
    """
