"""mmdet transforms of this project: SAM's targets, hidden ground truth, and the packing of both."""

from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import PackDetInputs
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from numpy.typing import NDArray

from data_schemas.similarity import INSIDE_GROUND_TRUTH
from pipeline.errors import ConfigError
from pipeline.sam.decoder_features import cells_of_points
from pipeline.stores.similarity_store import SimilarityStore

META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "homography_matrix")


class DropSmallInstances(BaseTransform):
    """Take instances out that a crop left with few pixels; give the sample up if none remains."""

    def __init__(self, min_pixels: int = 16) -> None:
        self.min_pixels = min_pixels

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Filter masks, boxes and labels together."""
        masks: BitmapMasks = results["gt_masks"]
        keep = np.flatnonzero(masks.masks.sum(axis=(1, 2)) >= self.min_pixels)
        if len(keep) == 0:
            return None
        results["gt_masks"] = masks[keep]
        for key in ("gt_bboxes", "gt_bboxes_labels", "gt_ignore_flags"):
            results[key] = results[key][keep]
        return results


class LoadSimilarityTargets(BaseTransform):
    """Draw stored points of the image with SAM's similarity rows; they stay in the canonical frame.

    Some of the points lie inside the ground truth, some anywhere (S4M: 64 + 64 of those stored).
    """

    def __init__(self, store: str, num_inside: int = 64, num_uniform: int = 64) -> None:
        self.store_uri, self.num_inside, self.num_uniform = store, num_inside, num_uniform
        self._store: SimilarityStore | None = None

    @property
    def store(self) -> SimilarityStore:
        """Opened on first use, in the process that reads."""
        if self._store is None:
            self._store = SimilarityStore.open(self.store_uri)
        return self._store

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Attach ``similarity_cells`` [P] int64 and ``similarity_rows`` [P, gh, gw] float32.

        Raises:
            ConfigError: the store holds fewer points per image than one step uses.
        """
        targets = self.store.read(results["img_id"], self._draw(results["img_id"]))
        grid = self.store.layout.grid_hw
        cells = cells_of_points(targets.points_xy, results["ori_shape"], grid)
        results["similarity_cells"] = cells[:, 0] * grid[1] + cells[:, 1]
        results["similarity_rows"] = targets.similarity
        return results

    def _draw(self, image_id: int) -> NDArray[np.int64]:
        """Rows of one step; where the ground truth has too few points, uniform ones take their place."""
        wanted = self.num_inside + self.num_uniform
        is_inside = self.store.point_kind(image_id) == INSIDE_GROUND_TRUTH
        inside = np.random.permutation(np.flatnonzero(is_inside))[: self.num_inside]
        uniform = np.random.permutation(np.flatnonzero(~is_inside))[: wanted - len(inside)]
        if len(inside) + len(uniform) < wanted:
            raise ConfigError(
                "the store holds too few points per image",
                where=self.store_uri,
                expected=f"{self.num_inside} inside and {self.num_uniform} uniform points",
                got=f"{int(is_inside.sum())} inside and {int((~is_inside).sum())} uniform ones of image {image_id}",
                fix="lower num_inside and num_uniform, or run precompute-sam with more points",
            )
        return np.concatenate([inside, uniform])


class HideGroundTruth(BaseTransform):
    """Move the annotations of an unlabelled image where no loss looks: they only measure pseudo-labels."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Rename the keys; nothing to do where there are no annotations."""
        if "gt_masks" in results:
            results["hidden_masks"] = results.pop("gt_masks")
            results["hidden_labels"] = results.pop("gt_bboxes_labels")
            results.pop("gt_bboxes"), results.pop("gt_ignore_flags")
        return results


class PackSample(PackDetInputs):
    """mmdet's packing, plus SAM's targets and the hidden ground truth."""

    def __init__(self, meta_keys: tuple[str, ...] = META_KEYS) -> None:
        super().__init__(meta_keys=meta_keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Inputs [3, H, W] uint8 and a ``DetDataSample``."""
        packed: dict[str, Any] = super().transform(results)
        sample = packed["data_samples"]
        if "similarity_rows" in results:
            sample.sam_targets = InstanceData(
                cells=torch.from_numpy(results["similarity_cells"]),
                rows=torch.from_numpy(results["similarity_rows"]),
            )
        if "hidden_masks" in results:
            masks = torch.from_numpy(results["hidden_masks"].masks.astype(bool))
            sample.hidden_truth = InstanceData(labels=torch.from_numpy(results["hidden_labels"]), masks=masks)
        return packed
