"""The figures of referring expressions as an mmengine metric."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from numpy.typing import NDArray

from pipeline.data.referring.expression_files import Format, ReferredObject
from pipeline.data.referring.sets import MaskOverlap, ReferSet, load_refer_set
from pipeline.errors import ConfigError
from pipeline.evaluation.refer_metrics import ExpressionScore, figures_of, score_expression
from pipeline.evaluation.small_objects import smallest_objects

RESOLUTIONS = ("native", "view")
_Scored = tuple[ExpressionScore, ...]


class ReferMetric(BaseMetric):
    """oIoU, mIoU and Pr@t of predicted samples, in [0, 1]; figures at the view's size end in ``_view``.

    A sample gives ``pred_mask`` [h, w] bool at native size or ``pred_view_mask`` [H, W] bool with ``gt_mask``, by
    resolution, and where there is one ``pred_no_target``, the probability that nothing is meant.
    """

    default_prefix = "refer"

    def __init__(
        self,
        *,
        files: Mapping[str, str],
        format: Format | None = None,
        mask_overlap: MaskOverlap = "union",
        resolutions: Sequence[str] = ("native",),
        generalised: bool = False,
        smallest: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        """Read the truth: a wrong file is told before the training, not after it.

        Args:
            files: ``expressions_file``, ``annotation_file``, ``image_root`` and ``split``, as of the data set.
            format: refer | scenes; None tells them apart.
            mask_overlap: union | hole, of the truth at native size.
            resolutions: native (truth and answer at the image's own size) | view (at that of the network's input, as
                the released code measures), or both.
            generalised: Expressions may mean nothing (gRefCOCO): gIoU, cIoU, N-acc and T-acc too, and a network that
                says that nothing is meant is believed.
            smallest: Per cent of the expressions, by the area of what they mean: ``oIoU_smallest5`` and so on.
            kwargs: Those of mmengine's ``BaseMetric``.

        Raises:
            ConfigError: an unknown resolution, or no resolution, or expressions that mean nothing and are not looked
                for.
            InputError: see ``load_refer_set``.
        """
        super().__init__(**kwargs)
        if not resolutions or not set(resolutions) <= set(RESOLUTIONS):
            raise ConfigError("resolutions", where="ReferMetric", expected=f"some of {RESOLUTIONS}", got=resolutions)
        names = ("expressions_file", "annotation_file", "image_root")
        self._truth: ReferSet = load_refer_set(
            **{name: Path(files[name]) for name in names},
            split=files["split"],
            format=format,
            mask_overlap=mask_overlap,
        )
        if not generalised:
            _refuse_nothing(self._truth, files["expressions_file"])
        self._objects = {thing.ref_id: thing for thing in self._truth.objects}
        self.resolutions, self.generalised, self.smallest = tuple(resolutions), generalised, tuple(smallest)

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Count the pixels of every expression, once for each resolution.

        Raises:
            ConfigError: an expression of another set.
        """
        for sample in data_samples:
            thing = self._objects.get(int(sample["ref_id"]))
            if thing is None:
                raise ConfigError("an expression that the metric's files do not have", got=f"ref {sample['ref_id']}")
            self.results.append(tuple(self._score(sample, thing, name) for name in self.resolutions))

    def _score(self, sample: Mapping[str, Any], thing: ReferredObject, resolution: str) -> ExpressionScore:
        is_native = resolution == "native"
        predicted = _mask(sample["pred_mask" if is_native else "pred_view_mask"])
        no_target = sample.get("pred_no_target") if self.generalised else None
        return score_expression(
            predicted,
            self._truth.truth(thing) if is_native else _mask(sample["gt_mask"]),
            ids=(thing.ref_id, int(sample["sentence_id"])),
            has_target=bool(thing.annotation_ids),
            no_target=None if no_target is None else float(no_target),
        )

    def compute_metrics(self, results: list[_Scored]) -> dict[str, float]:
        """Figures over all expressions; one that is undefined is 0.

        Raises:
            ConfigError: an expression came twice: a data set that draws sentences at random, or repeats objects.
        """
        counts = Counter((scores[0].ref_id, scores[0].sentence_id) for scores in results)
        if twice := [pair for pair, count in counts.items() if count > 1]:
            expected = "epoch='expression' and sentence='all' of the validation set"
            raise ConfigError("an expression was counted twice", expected=expected, got=f"ref, sentence {twice[0]}")
        named: dict[str, float | None] = {}
        for resolution, scores in zip(self.resolutions, zip(*results, strict=True), strict=True):
            ending = "" if resolution == "native" else "_view"
            figures = figures_of(scores).named(generalised=self.generalised)
            named |= {f"{name}{ending}": value for name, value in figures.items()}
            for percent in self.smallest:
                chosen = smallest_objects(self._truth, percent)
                few = figures_of(score for score in scores if (score.ref_id, score.sentence_id) in chosen)
                named[f"oIoU_smallest{percent:g}{ending}"] = few.overall_iou
        return {name: float(value or 0.0) for name, value in named.items()}


def _refuse_nothing(truth: ReferSet, where: str) -> None:
    """Refuse a set with expressions that mean nothing, which the classic figures know no right answer to."""
    empty = [thing.ref_id for thing in truth.objects if not thing.annotation_ids]
    if empty:
        raise ConfigError(
            "expressions that mean nothing",
            where=where,
            expected="every expression to mean something, or a generalised metric",
            got=f"{len(empty)} of {len(truth.objects)} objects without annotation, such as ref {empty[0]}",
            fix="--cfg-options val_evaluator.generalised=True, or a config of gRefCOCO (configs/*/grefcoco_*.py)",
        )


def _mask(values: Any) -> NDArray[np.bool_]:
    return np.asarray(values.cpu().numpy(), dtype=bool)
