"""The head's pixel weights against the stock head and a slow version; the structural loss against its formula."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.dense_heads.mask2former_head import Mask2FormerHead
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from toy_models import NUM_CLASSES, blocks, build_detector, build_head, detector_config, preprocessor_config, sample_of

from pipeline.errors import ConfigError
from pipeline.models.mask2former import WeightedMask2FormerHead, captured_output, view_of

QUERIES, SIZE = 6, (16, 24)


def outputs(counts=(2, 3), *, seed=0):
    """Random predictions of a layer and ground truth of ``counts`` instances per image."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(len(counts), QUERIES, NUM_CLASSES + 1, generator=generator)
    masks = torch.randn(len(counts), QUERIES, 8, 12, generator=generator)
    truth = [
        InstanceData(
            labels=torch.arange(count) % NUM_CLASSES,
            masks=torch.from_numpy(blocks(count, SIZE, seed=image)).long(),
        )
        for image, count in enumerate(counts)
    ]
    return classes.requires_grad_(), masks.requires_grad_(), truth


def losses(head, classes, masks, truth):
    torch.manual_seed(11)
    return head._loss_by_feat_single(classes, masks, truth, [{} for _ in truth])


@pytest.fixture(scope="module")
def heads():
    return build_head(Mask2FormerHead), build_head(WeightedMask2FormerHead)


@pytest.mark.parametrize("counts", [(2, 3), (0, 3), (0, 0), (1, 6)])
def test_without_weights_the_head_is_the_stock_one(heads, counts):
    stock, weighted = (losses(head, *outputs(counts)) for head in heads)
    assert all(torch.equal(a, b) for a, b in zip(stock, weighted, strict=True))


@pytest.mark.parametrize("counts", [(2, 3), (0, 3), (0, 0), (1, 6)])
def test_weights_of_one_change_nothing_but_float_order(heads, counts):
    plain, weighted = outputs(counts), outputs(counts)
    for instances in weighted[2]:
        instances.pixel_weights = torch.ones(instances.masks.shape)
    expected, found = losses(heads[0], *plain), losses(heads[1], *weighted)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a.sum(), b.sum(), rtol=1e-6, atol=1e-6)  # the stock one is [1]
    sum(expected).backward()
    sum(found).backward()
    for a, b in zip(plain[:2], weighted[:2], strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_weights_scale_the_cross_entropy_of_their_instance_only(heads):
    """A constant weight per instance: the loss is the weighted mean of the instances' own cross entropies."""
    classes, masks, truth = outputs((2, 1))
    single = []
    for image, instance in ((0, 0), (0, 1), (1, 0)):  # the same points and matches; all others weigh nothing
        for number, instances in enumerate(truth):
            instances.pixel_weights = torch.zeros(instances.masks.shape)
            if number == image:
                instances.pixel_weights[instance] = 1
        single.append(losses(heads[1], classes, masks, truth))
    factors = (0.5, 2.0, 0.25)
    truth[0].pixel_weights = torch.ones(truth[0].masks.shape) * torch.tensor(factors[:2])[:, None, None]
    truth[1].pixel_weights = torch.full(truth[1].masks.shape, factors[2])
    found = losses(heads[1], classes, masks, truth)
    expected = sum(factor * one[1] for factor, one in zip(factors, single, strict=True))
    torch.testing.assert_close(found[1], expected)
    assert all(value[1] > 0 for value in single)
    assert torch.equal(found[0], single[0][0])  # classes
    assert torch.equal(found[2], single[0][2])  # dice


def test_the_weighted_loss_is_the_literal_sum_over_points(heads, monkeypatch):
    classes, masks, truth = outputs((2, 1))
    generator = torch.Generator().manual_seed(3)
    for instances in truth:
        instances.pixel_weights = torch.rand(instances.masks.shape, generator=generator)
    # Points on pixel centres of the ground truth, so that sampling it is a look-up.
    rows, columns = torch.randint(0, SIZE[0], (3, 48)), torch.randint(0, SIZE[1], (3, 48))
    points = torch.stack([(columns + 0.5) / SIZE[1], (rows + 0.5) / SIZE[0]], dim=-1)
    monkeypatch.setattr("pipeline.models.mask2former.get_uncertain_point_coords_with_randomness", lambda *args: points)
    torch.manual_seed(11)
    matches = [heads[1]._get_targets_single(c, m, g, {})[6] for c, m, g in zip(classes, masks, truth, strict=True)]
    total, k = 0.0, 0
    for image, match in enumerate(matches):
        for query, instance in zip(match.pos_inds, match.pos_assigned_gt_inds, strict=True):
            large = F.grid_sample(masks[image, query][None, None], 2 * points[k][None, None] - 1, align_corners=False)
            for point in range(48):
                row, column, logit = int(rows[k, point]), int(columns[k, point]), float(large[0, 0, 0, point])
                wanted = float(truth[image].masks[instance, row, column])
                weight = float(truth[image].pixel_weights[instance, row, column])
                probability = 1 / (1 + np.exp(-logit))
                total -= weight * (wanted * np.log(probability) + (1 - wanted) * np.log(1 - probability))
            k += 1
    found = losses(heads[1], classes, masks, truth)
    assert k == 3
    assert float(found[1]) == pytest.approx(5.0 * total / (3 * 48), rel=1e-5)


def test_weights_survive_the_preparation_of_ground_truth(heads):
    weighted, plain = sample_of(blocks(2, SIZE), [0, 1]), sample_of(blocks(1, SIZE), [2])
    weighted.gt_instances.pixel_weights = torch.rand(2, *SIZE)
    prepared = heads[1].preprocess_gt([weighted.gt_instances, plain.gt_instances], [None, None])
    assert torch.equal(prepared[0].pixel_weights, weighted.gt_instances.pixel_weights)
    assert "pixel_weights" not in prepared[1]
    assert torch.equal(prepared[0].masks, torch.from_numpy(blocks(2, SIZE)).long())


@pytest.mark.parametrize("with_weights", [False, True])
def test_a_query_that_lies_on_something_unsure_is_not_told_that_it_is_nothing(heads, with_weights):
    """Only its own classes are left in peace: not those of other queries, nor any query that has an object."""
    classes, masks, truth = outputs((2, 1))
    if with_weights:
        for instances in truth:
            instances.pixel_weights = torch.ones(instances.masks.shape)
    torch.manual_seed(11)
    matches = [heads[1]._get_targets_single(c, m, g, {})[6] for c, m, g in zip(classes, masks, truth, strict=True)]
    taught = matches[0].pos_inds[0]
    free = next(query for query in range(QUERIES) if query not in matches[0].pos_inds)
    unsure = masks[0, [taught, free]].detach() > 0

    def gradients(**meta):
        classes.grad = masks.grad = None
        torch.manual_seed(11)
        found = heads[1]._loss_by_feat_single(classes, masks, truth, [meta, {}])
        sum(value.sum() for value in found).backward()
        return classes.grad.clone(), masks.grad.clone()

    (plain, of_masks), (excused, of_masks_then) = gradients(), gradients(unsure_masks=unsure)
    assert plain[0, free].abs().sum() > 0
    assert excused[0, free].abs().sum() == 0
    excused[0, free] = plain[0, free]
    assert torch.equal(excused, plain)
    assert torch.equal(of_masks, of_masks_then)
    nothing = gradients(unsure_masks=unsure[:0])
    assert torch.equal(nothing[0], plain)


FLIP_CROP = np.array([[-1.5, 0, 70], [0, 1.5, -9], [0, 0, 1]], np.float32)
"""Enlarge by 1.5, flip (view width 84 - 0), cut 14 columns and 9 rows off: canonical 40 x 56 to a 48 x 64 window."""
GRID = (6, 7)


def distilled_sample(*, image_id=1, valid_hw=(48, 60)):
    sample = sample_of(
        blocks(2, valid_hw, seed=image_id),
        [0, 2],
        homography=FLIP_CROP,
        canonical_hw=(40, 56),
        canvas_hw=(64, 64),
        image_id=image_id,
    )
    rng = np.random.default_rng(image_id)
    cells = torch.from_numpy(rng.integers(0, GRID[0] * GRID[1], 9))
    rows = torch.from_numpy(rng.uniform(-1, 1, (9, *GRID)).astype(np.float32))
    sample.sam_targets = InstanceData(cells=cells, rows=rows)
    return sample


def literal_structural_loss(features, samples):
    """Loops over points and cells, with bilinear interpolation written out: the released loss on visible cells."""
    means = []
    for feature, sample in zip(features, samples, strict=True):
        _, h, w = feature.shape
        valid_h, valid_w = sample.img_shape
        canvas_h, canvas_w = sample.batch_input_shape
        vectors, seen = [], []
        for i in range(GRID[0]):
            for j in range(GRID[1]):
                centre = [(j + 0.5) * 56 / GRID[1], (i + 0.5) * 40 / GRID[0], 1.0]
                x, y, _ = sample.homography_matrix.astype(np.float64) @ centre
                seen.append(0 <= x < valid_w and 0 <= y < valid_h)
                fx, fy = np.clip(x * w / canvas_w - 0.5, 0, w - 1), np.clip(y * h / canvas_h - 0.5, 0, h - 1)
                x0, y0 = int(fx), int(fy)
                x1, y1 = min(x0 + 1, w - 1), min(y0 + 1, h - 1)
                ax, ay = fx - x0, fy - y0
                vectors.append(
                    (feature[:, y0, x0] * (1 - ax) + feature[:, y0, x1] * ax) * (1 - ay)
                    + (feature[:, y1, x0] * (1 - ax) + feature[:, y1, x1] * ax) * ay
                )
        gaps = []
        for point, target in zip(sample.sam_targets.cells.tolist(), sample.sam_targets.rows, strict=True):
            for cell in range(GRID[0] * GRID[1]):
                if not (seen[point] and seen[cell]):
                    continue
                a, b = vectors[point], vectors[cell]
                gap = abs(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) - float(target.flatten()[cell]))
                gaps.append(0.5 * gap**2 if gap < 1 else gap - 0.5)
        means.append(np.mean(gaps))
    return np.mean(means)


@pytest.mark.parametrize("feature", ["decoder", "encoder"])
def test_the_structural_loss_is_its_formula_on_the_features_of_the_step(feature):
    model = build_detector(structural_weight=0.5, structural_feature=feature).train()
    samples = [distilled_sample(image_id=1), distilled_sample(image_id=2, valid_hw=(40, 64))]
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    source = model.backbone if feature == "encoder" else model.panoptic_head.pixel_decoder
    with captured_output(source) as captured:
        found = model.loss(images, samples)
    features = captured[0][-1] if feature == "encoder" else captured[0][0]
    assert features.shape[1:] == ((64, 2, 2) if feature == "encoder" else (8, 16, 16))
    expected = 0.5 * literal_structural_loss(features.detach().double().numpy(), samples)
    assert float(found["loss_structural"]) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01
    found["loss_structural"].backward()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0
    assert model.panoptic_head.cls_embed.weight.grad is None


def test_no_targets_no_structural_loss_and_none_of_a_sample_without():
    model = build_detector().train()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with_targets, without = distilled_sample(image_id=1), distilled_sample(image_id=2)
    del without.sam_targets
    torch.manual_seed(0)
    assert "loss_structural" not in model.loss(images, [without, without])
    both = model.loss(images, [without, with_targets])["loss_structural"]
    alone = model.loss(images[1:], [with_targets])["loss_structural"]
    torch.testing.assert_close(both, alone)


def test_half_precision_does_not_reach_the_structural_loss():
    model = build_detector().train()
    samples = [distilled_sample(image_id=1)]
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16), captured_output(model.panoptic_head.pixel_decoder) as captured:
        found = model.loss(images, samples)["loss_structural"]
    assert found.dtype == torch.float32
    expected = literal_structural_loss(captured[0][0].detach().double().numpy(), samples)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_half_precision_does_not_reach_the_pixel_decoder():
    decoder = build_detector().eval().panoptic_head.pixel_decoder
    features = [torch.randn(1, width, side, side) for width, side in ((8, 16), (16, 8), (32, 4), (64, 2))]
    expected, _ = decoder(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, maps = decoder([each.bfloat16() for each in features])
    assert {each.dtype for each in (found, *maps)} == {torch.float32}
    # Only what came in was rounded.
    assert torch.equal(found, decoder([each.bfloat16().float() for each in features])[0])
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_reach_the_matching(dtype):
    """An object over most of the view that no query has found: its costs, of 12,544 points, are above float16's."""
    head = build_head(WeightedMask2FormerHead)
    head.num_points = 12_544
    classes = torch.zeros(QUERIES, NUM_CLASSES + 1)
    masks = torch.full((QUERIES, *SIZE), -9.0)
    masks[2, :4] = -7.0  # a little less sure that there is nothing, where the object is: the query to be matched
    truth = InstanceData(labels=torch.tensor([1]), masks=torch.ones(1, *SIZE, dtype=torch.long))
    assert torch.finfo(torch.float16).max < 12_544 * 7
    with torch.autocast("cpu", dtype=dtype):
        found = head._get_targets_single(classes.to(dtype), masks.to(dtype), truth, {})
    assert found[4].tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_step_in_half_precision_has_losses_and_gradients_near_its_own(dtype):
    def step(enabled):
        model = build_detector().train()
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            losses = model.loss(images, [distilled_sample(image_id=1)])
        total = sum(value.float().sum() for name, value in losses.items() if "loss" in name)
        total.backward()
        norm = torch.stack([p.grad.float().norm() for p in model.parameters() if p.grad is not None]).norm()
        return float(total), float(norm)

    full, half = step(enabled=False), step(enabled=True)
    assert half != full
    assert half == pytest.approx(full, rel=0.1)


def test_the_hook_is_gone_after_the_block():
    model = build_detector().eval()
    with captured_output(model.backbone) as captured:
        model.backbone(torch.zeros(1, 3, 32, 32))
    model.backbone(torch.zeros(1, 3, 32, 32))
    assert len(captured) == 1


def test_an_unknown_feature_is_refused():
    with pytest.raises(ConfigError, match="unknown feature"):
        build_detector(structural_feature="neck")


def test_more_detections_than_queries_and_classes_give_are_refused_before_training():
    detector = build_detector()
    most = detector.panoptic_head.num_queries * detector.num_classes
    config = detector_config(head=WeightedMask2FormerHead, data_preprocessor=preprocessor_config())
    config["test_cfg"]["max_per_image"] = most
    MODELS.build(config)
    config["test_cfg"]["max_per_image"] = most + 1
    with pytest.raises(ConfigError, match=rf"max_per_image[\s\S]*at most {most}[\s\S]*{most + 1}"):
        MODELS.build(config)


def test_the_view_of_a_sample_is_its_metainfo():
    view = view_of(distilled_sample().metainfo)
    assert (view.canonical_hw, view.valid_hw, view.canvas_hw) == ((40, 56), (48, 60), (64, 64))
    assert np.array_equal(view.homography.numpy(), FLIP_CROP)
