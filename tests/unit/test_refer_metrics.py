"""Figures by hand, against a literal loop over pixels, pooled, and as the metric of a validation."""

import random

import numpy as np

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import pytest
import torch
from mmengine.evaluator import Evaluator

from pipeline.data.referring.dataset import CheckedReferDataset
from pipeline.data.referring.sets import load_refer_set, open_refer_files
from pipeline.data.referring.transforms import PackReferred, ResizeToSquare
from pipeline.errors import AnnotationError, ConfigError, InputError
from pipeline.evaluation.labelling_cost import cost_table, labelling_cost, token_statistics
from pipeline.evaluation.refer_metrics import (
    PRECISION_AT,
    ExpressionScore,
    ReferFigures,
    figures_of,
    score_expression,
)
from pipeline.evaluation.small_objects import SmallObjectProtocol, smallest_objects
from pipeline.models.referring.metric import ReferMetric
from tests.toy_refer import ANNOTATIONS, REFS, SIZES, ref, write_refs
from tests.toy_scenes import small_scenes


def mask(*pixels, shape=(4, 4)):
    made = np.zeros(shape, bool)
    made.ravel()[list(pixels)] = True
    return made


# --- pixel counts and figures


def test_by_hand():
    scores = [
        score_expression(mask(0, 1, 2, 3), mask(0, 1, 2, 3, 4)),  # 4 / 5
        score_expression(mask(0, 1), mask(1, 2)),  # 1 / 3
        score_expression(mask(0), mask(5)),  # 0 / 2
        score_expression(mask(7, 8), mask(7, 8)),  # 2 / 2
    ]
    assert [(s.intersection, s.union) for s in scores] == [(4, 5), (1, 3), (0, 2), (2, 2)]
    figures = figures_of(scores)
    assert figures.overall_iou == 7 / 12
    assert figures.mean_iou == pytest.approx((0.8 + 1 / 3 + 0 + 1) / 4)
    assert [figures.precision_at(t) for t in PRECISION_AT] == [0.5, 0.5, 0.5, 0.5, 0.25]
    assert list(figures.named()) == ["oIoU", "mIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"]
    # Without a no-target expression the generalised figures are the classic ones.
    assert figures.cumulative_iou == figures.overall_iou
    assert figures.generalised_iou == figures.mean_iou
    assert (figures.no_target_accuracy, figures.target_accuracy) == (None, 1.0)


def test_no_target_by_hand():
    nothing = mask()
    scores = [
        score_expression(nothing, nothing, has_target=False),  # right: gIoU 1, adds nothing to cIoU
        score_expression(mask(1, 2, 3), nothing, has_target=False),  # wrong: gIoU 0, three pixels of union
        score_expression(mask(0, 1), mask(0, 1, 2, 3)),  # 2 / 4
        score_expression(nothing, mask(5, 6)),  # 0 / 2, and nothing was answered
    ]
    figures = figures_of(scores)
    named = figures.named(generalised=True)
    assert named["oIoU"] == 2 / 6
    assert named["mIoU"] == 0.25
    assert named["Pr@0.5"] == 0.5
    assert named["cIoU"] == 2 / 9
    assert named["gIoU"] == 1.5 / 4
    assert (named["N-acc"], named["T-acc"]) == (0.5, 0.5)


def test_a_network_that_says_there_is_nothing_is_believed():
    silent = score_expression(mask(1, 2), mask(1, 2), no_target=0.6)
    assert (silent.intersection, silent.union, silent.is_silent) == (0, 2, True)
    right = score_expression(mask(1, 2), mask(), has_target=False, no_target=0.6)
    assert (right.union, right.is_silent) == (0, True)
    # It answers although its mask is empty: the expression is missed, not passed over in silence.
    loud = score_expression(mask(), mask(), has_target=False, no_target=0.5)
    assert (loud.union, loud.is_silent) == (0, False)
    assert figures_of([loud]).generalised_iou == 0
    assert figures_of([right]).generalised_iou == 1


def test_empty_unions_and_empty_sets():
    vanished = score_expression(mask(), mask())  # a truth that a resize left nothing of
    assert vanished.iou == 0
    figures = figures_of([vanished])
    assert (figures.overall_iou, figures.mean_iou, figures.precision_at(0.5)) == (None, 0, 0)
    assert set(ReferFigures().named(generalised=True).values()) == {None}
    with pytest.raises(ValueError, match="one size"):
        score_expression(mask(), mask(shape=(2, 8)))


def test_against_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    scores, unions, intersections, ious = [], 0, 0, []
    for _ in range(40):
        shape = tuple(rng.integers(2, 9, 2))
        predicted, truth = (rng.random(shape) < rng.random() for _ in range(2))
        truth[0, 0] = True
        scores.append(score_expression(predicted, truth))
        shared = sum(bool(p and t) for p, t in zip(predicted.flat, truth.flat, strict=True))
        either = sum(bool(p or t) for p, t in zip(predicted.flat, truth.flat, strict=True))
        intersections, unions, ious = intersections + shared, unions + either, [*ious, shared / either]
    figures = figures_of(scores)
    assert figures.overall_iou == intersections / unions
    assert figures.mean_iou == pytest.approx(np.mean(ious))
    for threshold in PRECISION_AT:
        assert figures.precision_at(threshold) == np.mean([iou >= threshold for iou in ious])


def test_thresholds_are_reached_exactly():
    for threshold in PRECISION_AT:
        exact = ExpressionScore(1, 1, round(10 * threshold), 10)
        assert figures_of([exact]).precision_at(threshold) == 1


def test_workers_pool_their_expressions():
    rng = random.Random(1)
    scores = []
    for number in range(50):
        shared, has_target = rng.randrange(5), rng.random() < 0.7
        scores.append(ExpressionScore(number, 0, shared, shared + rng.randrange(1, 5), has_target, rng.random() < 0.3))
    whole = figures_of(scores)
    rng.shuffle(scores)
    pooled = sum((figures_of(scores[start::3]) for start in range(3)), ReferFigures())
    assert pooled.named(generalised=True) == pytest.approx(whole.named(generalised=True))
    assert (pooled.num_targets, pooled.num_no_targets) == (whole.num_targets, whole.num_no_targets)


# --- the metric


def metric(files, **settings):
    return ReferMetric(files={**files.settings(), **settings.pop("changes", {})}, **settings)


def answers(files, predict, *, size=16, split="train"):
    """Samples of every expression, as a network gives them."""
    found = load_refer_set(**files.settings(split=split))
    samples = []
    for thing in found.objects:
        truth = found.truth(thing)
        rows, columns = (((np.arange(size) + 0.5) * side / size).astype(int) for side in truth.shape)
        for sentence in thing.sentences:
            predicted = predict(truth, sentence)
            samples.append(
                {
                    "ref_id": thing.ref_id,
                    "sentence_id": sentence.sentence_id,
                    "pred_mask": torch.from_numpy(predicted),
                    "pred_view_mask": torch.from_numpy(predicted[rows][:, columns]),
                    "gt_mask": torch.from_numpy(truth[rows][:, columns]),
                }
            )
    return samples


def evaluate(made, samples):
    made.process({}, samples)
    return made.evaluate(len(samples))


def shifted(truth, sentence):
    return np.roll(truth, sentence.sentence_id % 5, axis=1)


def test_metric_at_both_sizes(tmp_path):
    files = write_refs(tmp_path, REFS)
    samples = answers(files, shifted)
    figures = evaluate(metric(files, resolutions=("native", "view")), samples)
    found = load_refer_set(**files.settings())
    told = [(found.truth(thing), sentence) for thing in found.objects for sentence in thing.sentences]
    pairs = [(shifted(truth, sentence), truth) for truth, sentence in told]
    shared, either = (sum(int(op(a, b).sum()) for a, b in pairs) for op in (np.logical_and, np.logical_or))
    assert figures["refer/oIoU"] == shared / either
    assert figures["refer/mIoU"] == pytest.approx(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))
    small = [(s["pred_view_mask"], s["gt_mask"]) for s in samples]
    assert figures["refer/oIoU_view"] == sum(int((a & b).sum()) for a, b in small) / sum(
        int((a | b).sum()) for a, b in small
    )
    assert figures["refer/oIoU_view"] != figures["refer/oIoU"]
    assert evaluate(metric(files), answers(files, lambda truth, _: truth)) == dict.fromkeys(
        (f"refer/{name}" for name in ("oIoU", "mIoU", *(f"Pr@{t}" for t in PRECISION_AT))), 1.0
    )


def test_samples_of_a_data_set_through_an_evaluator(tmp_path):
    """What mmengine does in a validation: samples become dicts on their way."""
    files = write_refs(tmp_path, REFS)
    pipeline = [{"type": ResizeToSquare, "size": 24}, {"type": PackReferred}]
    data = CheckedReferDataset(pipeline=pipeline, **files.settings(epoch="expression", sentence="all", text="raw"))
    evaluator = Evaluator(metric(files, resolutions=("native", "view"), smallest=(10,)))
    evaluator.dataset_meta = data.metainfo
    for index in range(len(data)):
        sample = data[index]["data_samples"]
        sample.pred_view_mask = sample.gt_mask
        truth = data.record(index)["gt_mask"]
        sample.pred_mask = torch.from_numpy(truth if sample.ref_id != 2 else ~truth)
        sample.set_field(0.0, "pred_no_target", dtype=float)
        evaluator.process(data_samples=[sample], data_batch=None)
    figures = evaluator.evaluate(len(data))
    assert figures["refer/mIoU"] == pytest.approx(6 / 7)
    assert figures["refer/oIoU_smallest10"] == figures["refer/oIoU_view"] == figures["refer/Pr@0.9_view"] == 1


def test_metric_on_the_smallest_objects(tmp_path):
    files = write_refs(tmp_path, REFS)
    samples = answers(files, lambda truth, s: truth if s.sentence_id == 400 else ~truth)  # ref 4 is the smallest
    figures = evaluate(metric(files, smallest=(5, 100)), samples)
    assert figures["refer/oIoU_smallest5"] == 1
    assert figures["refer/oIoU_smallest100"] == figures["refer/oIoU"] < 0.2


def test_metric_of_expressions_without_target(tmp_path):
    refs = [ref(1, 11, [-1], "nobody", "a kite"), ref(2, 11, [1, 2], "both men")]
    files = write_refs(tmp_path, refs)
    samples = answers(files, lambda truth, s: truth if s.sentence_id != 101 else ~truth)
    figures = evaluate(metric(files, generalised=True), samples)
    assert figures["refer/N-acc"] == 0.5
    assert figures["refer/T-acc"] == figures["refer/oIoU"] == 1
    assert figures["refer/gIoU"] == pytest.approx(2 / 3)
    assert 0 < figures["refer/cIoU"] < 1
    believed = [{**sample, "pred_no_target": 0.9} for sample in samples]
    assert evaluate(metric(files, generalised=True), believed)["refer/N-acc"] == 1
    with pytest.raises(ConfigError, match=r"1 of 2 objects.*ref 1[\s\S]*generalised=True"):
        metric(files)
    with pytest.raises(ConfigError, match="generalised"):
        metric(files).process({}, samples)


def test_a_network_without_a_word_for_nothing_is_not_believed_on_classic_sets(tmp_path):
    files = write_refs(tmp_path, REFS)
    samples = [{**sample, "pred_no_target": 0.99} for sample in answers(files, lambda truth, _: truth)]
    assert evaluate(metric(files), samples)["refer/oIoU"] == 1


def test_metric_refuses_what_would_be_counted_wrongly(tmp_path):
    files = write_refs(tmp_path, REFS)
    samples = answers(files, shifted)
    with pytest.raises(ConfigError, match="counted twice"):
        evaluate(metric(files), [*samples, samples[0]])
    with pytest.raises(ConfigError, match="do not have"):
        metric(files, changes={"split": "val"}).process({}, samples)
    with pytest.raises(ConfigError, match="resolutions"):
        metric(files, resolutions=("480",))
    with pytest.raises(AnnotationError, match="not found"):
        metric(files, changes={"annotation_file": str(tmp_path / "none.json")})


# --- small objects, costs, tokens


def test_smallest_objects_of_either_unit(tmp_path):
    found = load_refer_set(**write_refs(tmp_path, REFS).settings())
    areas = {thing.ref_id: int(found.truth(thing).sum()) for thing in found.objects}
    assert sorted(areas, key=areas.get) == [4, 3, 1, 2]
    assert areas == {1: 480, 2: 500, 3: 450, 4: 100}
    assert smallest_objects(found, 5) == {(4, 400)}
    assert smallest_objects(found, 50) == {(4, 400), (3, 300), (3, 301)}  # the floor of 3.5 of 7 expressions
    by_object = SmallObjectProtocol(unit="object")
    assert smallest_objects(found, 50, by_object) == {(4, 400), (3, 300), (3, 301), (3, 302)}
    assert len(smallest_objects(found, 100)) == 7
    # Of a smaller image the same pixels are more: 480 of 48 x 48 against 500 of 40 x 60.
    shares = {t.ref_id: areas[t.ref_id] / np.prod(SIZES[t.image_id]) for t in found.objects}
    assert sorted(shares, key=shares.get) == [4, 3, 1, 2]
    with pytest.raises(InputError, match="percent"):
        smallest_objects(found, 0)
    with pytest.raises(ConfigError, match="unit"):
        SmallObjectProtocol(unit="image")


def test_area_of_the_square_orders_by_the_share_of_the_image(tmp_path):
    refs = [ref(1, 13, 5, "90 of 1500 pixels"), ref(2, 12, 3, "100 of 2304"), ref(3, 14, [-1], "nothing")]
    low = {**ANNOTATIONS[4], "segmentation": [[0, 0, 9, 0, 9, 10, 0, 10]]}
    files = write_refs(tmp_path, refs, annotations=[low, ANNOTATIONS[2]])
    found = load_refer_set(**files.settings())
    assert [found.truth_area(thing) for thing in found.objects] == [90, 100, 0]
    assert smallest_objects(found, 50) == {(1, 100)}
    assert smallest_objects(found, 50, SmallObjectProtocol(area="square")) == {(2, 200)}


def test_labelling_cost(tmp_path):
    refs = [*REFS[:4], ref(8, 11, [1, 2], "both men")]
    source = open_refer_files(**write_refs(tmp_path, refs).settings())
    whole = labelling_cost(source)
    assert (whole.num_images, whole.num_objects, whole.num_masks, whole.num_sentences) == (2, 5, 4, 8)
    assert whole.num_vertices == 5 * 4  # five rectangles
    assert whole.hours == pytest.approx(4 * 79.2 / 3600)
    part = labelling_cost(source, source.sentences.of_images([12]), seconds_per_mask=3600)
    assert (part.num_images, part.num_masks, part.num_sentences, part.hours) == (1, 2, 3, 2)
    table = cost_table({"50 %": part, "all": whole}).splitlines()
    assert table[2] == "| 50 % | 1 | 2 | 2 | 3 | 8 | 2.00 |"
    assert len(table) == 4


def test_labelling_cost_of_masks_that_are_no_polygons(tmp_path):
    scenes = small_scenes(tmp_path / "scenes", num_train=3)
    source = open_refer_files(
        expressions_file=scenes.expressions("train"),
        annotation_file=scenes.annotations("train"),
        image_root=scenes.image_root,
        split="train",
    )
    cost = labelling_cost(source)
    assert cost.num_vertices is None
    assert cost.num_masks == cost.num_objects
    assert "| - |" in cost_table({"all": cost})


def test_token_statistics(tmp_path):
    found = load_refer_set(**write_refs(tmp_path, REFS).settings())
    statistics = token_statistics(found, lambda text: len(text.split()) + 2, max_tokens=5)
    assert (statistics.num_sentences, statistics.longest, statistics.num_cut) == (7, 6, 3)
    assert statistics.mean == pytest.approx((4 + 6 + 4 + 6 + 6 + 4 + 4) / 7)
    assert token_statistics(found, lambda text: int(text.istitle()), text="raw").longest == 1
    assert token_statistics(found, lambda text: int(text.istitle())).longest == 0
