"""mmdet transforms of this project: SAM's targets, hidden ground truth, and the packing of both."""

from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import PackDetInputs
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from numpy.typing import NDArray

from data_schemas.similarity import INSIDE_GROUND_TRUTH, Features
from pipeline.distill.self_similarity import View, grid_centres, points_in_view
from pipeline.errors import ConfigError
from pipeline.sam.decoder_features import cells_of_points, sample_target_points
from pipeline.stores.similarity_store import SimilarityStore
from pipeline.stores.target_features import refuse_other_features

META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "homography_matrix")


class DropSmallInstances(BaseTransform):
    """Take instances out that a crop left with few pixels, by default with none (S4M's code).

    What is taken out is learnt as background. A crop without an instance stays, and shows nothing but background.
    """

    def __init__(self, min_pixels: int = 1, keep_empty: bool = True) -> None:
        """Say what goes.

        Args:
            min_pixels: An instance with fewer pixels in the view goes.
            keep_empty: A view without an instance is a sample too; False: it is drawn again.
        """
        self.min_pixels, self.keep_empty = min_pixels, keep_empty

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Filter masks, boxes and labels together; None where nothing remains and that is not wanted."""
        masks: BitmapMasks = results["gt_masks"]
        keep = np.flatnonzero(masks.masks.sum(axis=(1, 2)) >= self.min_pixels)
        if len(keep) == 0 and not self.keep_empty:
            return None
        results["gt_masks"] = masks[keep]
        for key in ("gt_bboxes", "gt_bboxes_labels", "gt_ignore_flags"):
            results[key] = results[key][keep]
        return results


class LoadSimilarityTargets(BaseTransform):
    """Draw stored points of the image with SAM's similarity rows; they stay in the canonical frame.

    Some of the points lie inside the ground truth, some anywhere (S4M: 64 + 64). S4M draws them in the view; here they
    are taken of those stored that the view shows: fewer, or none, where it shows fewer.
    """

    def __init__(
        self,
        store: str,
        num_inside: int = 64,
        num_uniform: int = 64,
        features: Features = "decoder",
        keep_view: bool = False,
    ) -> None:
        """Name the store; it is opened later.

        Args:
            store: Written by ``precompute-sam``.
            num_inside: Points inside the ground truth, per step.
            num_uniform: Points anywhere, per step.
            features: decoder | encoder: what the store's rows must compare (``similarity.features`` there).
            keep_view: Keep the view's pixels, for a network with ``live_sam`` that asks SAM at the same points.
        """
        self.store_uri, self.num_inside, self.num_uniform = store, num_inside, num_uniform
        self.features, self.keep_view = features, keep_view
        self._store: SimilarityStore | None = None

    @property
    def store(self) -> SimilarityStore:
        """Opened on first use, in the process that reads."""
        if self._store is None:
            store = SimilarityStore.open(self.store_uri)
            refuse_other_features(store.identity, self.features, where=self.store_uri)
            self._store = store
        return self._store

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Attach ``similarity_points`` [P, 2] float32, ``similarity_cells`` [P] int64, ``similarity_rows`` [P, gh, gw].

        P is at most ``num_inside + num_uniform``.

        Raises:
            StoreMismatchError: the store's rows compare other features.
            ConfigError: the store holds fewer points per image than one step uses.
        """
        image_id, grid = results["img_id"], self.store.layout.grid_hw
        points_xy, kind = self.store.points(image_id)
        cells = cells_of_points(points_xy, results["ori_shape"], grid)
        flat = cells[:, 0] * grid[1] + cells[:, 1]
        rows = self._draw(image_id, kind == INSIDE_GROUND_TRUTH, _shown_cells(results, grid)[flat])
        results["similarity_cells"] = flat[rows]
        results["similarity_rows"] = self.store.read(image_id, rows).similarity
        results["similarity_points"], results["keep_view"] = points_xy[rows], self.keep_view
        return results

    def _draw(self, image_id: int, is_inside: NDArray[np.bool_], shown: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Rows of one step; what one kind has too few of that are shown the other kind makes up for, if it can."""
        wanted = self.num_inside + self.num_uniform
        if min(int(is_inside.sum()), self.num_inside) + int((~is_inside).sum()) < wanted:
            raise ConfigError(
                "the store holds too few points per image",
                where=self.store_uri,
                expected=f"{self.num_inside} inside and {self.num_uniform} uniform points",
                got=f"{int(is_inside.sum())} inside and {int((~is_inside).sum())} uniform ones of image {image_id}",
                fix="lower num_inside and num_uniform, or run precompute-sam with more points",
            )
        inside = np.random.permutation(np.flatnonzero(is_inside & shown))
        uniform = np.random.permutation(np.flatnonzero(~is_inside & shown))
        num_uniform = max(self.num_uniform, wanted - len(inside))
        num_inside = wanted - min(num_uniform, len(uniform))
        return np.concatenate([inside[:num_inside], uniform[:num_uniform]])


def _shown_cells(results: dict[str, Any], grid_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Cells of SAM's grid [gh * gw] bool that the view shows: those that the loss counts."""
    size_hw = results["img"].shape[:2]
    view = View(torch.as_tensor(results["homography_matrix"]), results["ori_shape"], size_hw, size_hw)
    _, visible = points_in_view(grid_centres(grid_hw, view.canonical_hw), view)
    return np.asarray(visible.numpy())


class DrawTargetPoints(BaseTransform):
    """Draw points in the view, for a SAM that runs in the training step (``live_sam`` of the network), as S4M does.

    Some lie inside the view's ground truth, some anywhere in it (S4M: 64 + 64).
    """

    def __init__(self, num_inside: int = 64, num_uniform: int = 64) -> None:
        self.num_inside, self.num_uniform = num_inside, num_uniform

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Attach ``similarity_points`` [P, 2] float32, canonical, and have the view's pixels kept.

        Raises:
            ConfigError: a negative count, or no point at all.
        """
        masks: NDArray[np.bool_] = results["gt_masks"].masks.astype(bool)
        points_xy, _ = sample_target_points(
            np.asarray(masks.any(axis=0)) if len(masks) else None,
            results["img"].shape[:2],
            num_inside=self.num_inside,
            num_uniform=self.num_uniform,
            # The stream seeds numpy's global generator for every sample.
            rng=np.random.default_rng(np.random.randint(0, 2**31, 4)),
        )
        to_canonical = np.linalg.inv(results["homography_matrix"].astype(np.float64))
        mapped = np.column_stack([points_xy, np.ones(len(points_xy))]) @ to_canonical.T
        results["similarity_points"] = (mapped[:, :2] / mapped[:, 2:]).astype(np.float32)
        results["keep_view"] = True
        return results


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
        """Inputs [3, H, W] uint8 and a ``DetDataSample``.

        Where they are asked for, it has ``sam_targets``: points_xy [P, 2] canonical and, from a store, cells [P] and
        rows [P, gh, gw]; and ``sam_view`` [H, W, 3] uint8 RGB, the view as it is, without padding.
        """
        packed: dict[str, Any] = super().transform(results)
        sample = packed["data_samples"]
        if "similarity_points" in results:
            names = {"points_xy": "similarity_points", "cells": "similarity_cells", "rows": "similarity_rows"}
            there = {name: results[key] for name, key in names.items() if key in results}
            sample.sam_targets = InstanceData(**{name: torch.from_numpy(value) for name, value in there.items()})
        if results.get("keep_view"):
            sample.sam_view = torch.from_numpy(np.array(results["img"]))
        if "hidden_masks" in results:
            masks = torch.from_numpy(results["hidden_masks"].masks.astype(bool))
            sample.hidden_truth = InstanceData(labels=torch.from_numpy(results["hidden_labels"]), masks=masks)
        return packed
