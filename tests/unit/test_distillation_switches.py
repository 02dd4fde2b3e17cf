"""The switches of S4M's ablations: SAM's encoder or decoder, structure or features, a store or a SAM in the step."""

from dataclasses import replace

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.datasets.transforms import RandomCrop, RandomFlip
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from toy_models import build_detector, sample_of

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, StoreIdentity
from data_schemas.similarity import MAX_QUANTISATION_ERROR, SimilarityLayout, features_of
from pipeline.data.instance_dataset import seeded
from pipeline.data.transforms import DrawTargetPoints, LoadSimilarityTargets, PackSample
from pipeline.distill import live_sam
from pipeline.distill.feature_loss import feature_loss
from pipeline.distill.live_sam import LiveSam, LiveSamSettings, Shown
from pipeline.distill.self_similarity import View
from pipeline.errors import ConfigError, StoreMismatchError
from pipeline.models.mask2former import captured_output
from pipeline.models.weights import load_network
from pipeline.sam.decoder_features import cells_of_points, features_at_points, rows_at_points, similarity_targets
from pipeline.sam.sam2_backend import SCENES_NANO, build_backend
from pipeline.stores.similarity_store import commit_similarity
from pipeline.stores.writer import StoreWriter
from tests.fakes import FakeSam

SIZE_HW, GRID_HW = (48, 64), (6, 8)
IMAGE_ID = 3


class GridSam(FakeSam):
    """A FakeSam that keeps the interface's promise about the encoder: mean colours and a constant on the grid."""

    def __init__(self):
        super().__init__(grid_hw=GRID_HW)

    def embed(self, images):
        found = super().embed(images)
        return [replace(e, tokens=pooled(e.tokens), high_resolution=(e.tokens,)) for e in found]

    def decoder_tokens(self, embedding, points_xy):
        return super().decoder_tokens(replace(embedding, tokens=embedding.high_resolution[0]), points_xy)


def pooled(pixels):
    colours = F.adaptive_avg_pool2d(pixels.float() / 255, GRID_HW)
    return torch.cat([colours, torch.full_like(colours[:, :1], 0.5)], 1)


def picture(seed=0):
    """[48, 64, 3]: flat blocks of 12 x 16 pixels, no two alike."""
    return np.kron(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8), np.ones((12, 16, 1), np.uint8))


@pytest.fixture
def sam(monkeypatch):
    backend = GridSam()
    monkeypatch.setattr(live_sam, "build_backend", lambda *_args, **_kwargs: backend)
    return backend


def quantisation(loss):
    """How far a loss may be off where every stored cosine is off by 1/255.

    The square of Huber's slope is at most twice its value, so the mean slope is at most the root of twice the loss;
    the rest is the square of the error, and rounding of positions.
    """
    return MAX_QUANTISATION_ERROR * (2 * loss) ** 0.5 + MAX_QUANTISATION_ERROR**2 / 2 + 1e-5


POINTS = np.array([[2.5, 3.5], [40.5, 9.5], [63.5, 47.5], [20.5, 30.5], [21.5, 30.5]], np.float32)


@pytest.fixture(scope="module")
def nano():
    return build_backend(SCENES_NANO)


def test_encoder_rows_equal_a_literal_loop_on_the_encoders_tokens(nano):
    image = picture()
    embedding = nano.embed([image])[0]
    rows = rows_at_points(nano, embedding, POINTS, features="encoder")
    tokens = embedding.tokens[0].double().numpy()
    gh, gw = nano.grid_hw
    assert tokens.shape[1:] == (gh, gw)
    for row, (x, y) in zip(rows.numpy(), POINTS, strict=True):
        own = tokens[:, int(y * gh / 48), int(x * gw / 64)]
        for i in range(gh):
            for j in range(gw):
                other = tokens[:, i, j]
                assert row[i, j] == pytest.approx(own @ other / np.sqrt((own @ own) * (other @ other)), abs=1e-5)
    decoder = rows_at_points(nano, embedding, POINTS)
    assert (rows - decoder).abs().mean() > 0.02, "the switch would prove nothing"


def test_features_are_those_of_the_cell_of_each_point_in_its_own_map(nano):
    embedding = nano.embed([picture()])[0]
    cells = cells_of_points(POINTS, SIZE_HW, nano.grid_hw)
    tokens = nano.decoder_tokens(embedding, torch.from_numpy(POINTS))
    expected = torch.stack([tokens[i, :, r, c] for i, (r, c) in enumerate(cells)])
    found = features_at_points(nano, embedding, POINTS, prompts_per_batch=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    expected = torch.stack([embedding.tokens[0, :, r, c] for r, c in cells])
    torch.testing.assert_close(features_at_points(nano, embedding, POINTS, features="encoder"), expected)
    for features in ("decoder", "encoder"):
        none = features_at_points(nano, embedding, POINTS[:0], features=features)
        assert none.shape == (0, embedding.tokens.shape[1])


def write_store(uri, image, settings, *, features="decoder"):
    """The store of one image, as the stage writes it: half of the points marked as inside."""
    sam = GridSam()
    rng = np.random.default_rng(4)
    points = (np.floor(rng.random((32, 2)) * [64, 48]) + 0.5).astype(np.float32)
    kinds = np.repeat(np.array([0, 1], np.uint8), 16)
    targets = similarity_targets(sam, sam.embed([image])[0], points, kinds, features=features)
    identity = StoreIdentity("similarity", SCHEMA_VERSIONS["similarity"], "d" * 64, "fake", "f" * 64, settings)
    layout = SimilarityLayout(32, GRID_HW, 16)
    images = [ImageKey(IMAGE_ID, "3.png", *SIZE_HW)]
    with StoreWriter.create_or_open(uri, identity, images, images_per_shard=1, layout=layout) as writer:
        (task,) = writer.missing().tasks
        commit_similarity(task, {IMAGE_ID: targets})
    return str(uri)


def record(image):
    masks = np.zeros((2, *SIZE_HW), np.uint8)
    masks[0, 12:24, 16:32] = 1
    masks[1, 30:40, 40:60] = 1
    return {
        "img": image,
        "img_id": IMAGE_ID,
        "img_path": "3.png",
        "img_shape": SIZE_HW,
        "ori_shape": SIZE_HW,
        "homography_matrix": np.eye(3, dtype=np.float32),
        "gt_masks": BitmapMasks(masks, *SIZE_HW),
        "gt_bboxes": HorizontalBoxes(np.array([[16, 12, 32, 24], [40, 30, 60, 40]], np.float32)),
        "gt_bboxes_labels": np.array([0, 2]),
        "gt_ignore_flags": np.zeros(2, bool),
    }


def packed(results, *transforms, seed=0):
    with seeded([seed]):
        for transform in (*transforms, PackSample()):
            results = transform.transform(results)
    return results


def loss_of(model, batch):
    """The step's losses; the same seed samples the same points for the mask losses."""
    torch.manual_seed(0)
    ready = model.data_preprocessor({key: [each[key] for each in batch] for key in ("inputs", "data_samples")}, True)
    return model.loss(ready["inputs"], ready["data_samples"])


def structural(model, sample):
    return float(loss_of(model.train(), [sample])["loss_structural"].detach())


@pytest.mark.parametrize("features", ["decoder", "encoder"])
@pytest.mark.parametrize("flip", [False, True])
def test_store_and_live_sam_agree_where_the_view_keeps_the_image(sam, tmp_path, features, flip):
    """The offline approximation: on the whole image, as it is or mirrored, only quantisation is lost."""
    image = picture()
    settings = {} if features == "decoder" else {"features": features}
    store = write_store(tmp_path / "store", image, settings, features=features)
    load = LoadSimilarityTargets(store, num_inside=8, num_uniform=8, features=features, keep_view=True)
    turn = [RandomFlip(prob=1.0, direction="horizontal")] if flip else []
    sample = packed(record(image), *turn, load)
    stored = structural(build_detector(), sample)
    live = structural(build_detector(live_sam={"name": "any", "features": features}), sample)
    assert sam.embedded == [SIZE_HW]
    assert abs(stored - live) <= quantisation(stored)
    other = write_store(tmp_path / "other", np.full_like(image, 128), settings, features=features)
    load = LoadSimilarityTargets(other, num_inside=8, num_uniform=8, features=features)
    wrong = structural(build_detector(), packed(record(image), *turn, load))
    assert abs(wrong - live) > 3 * quantisation(wrong), "any target would do"


def test_a_live_sam_sees_the_crop_alone_and_points_outside_it_are_left_out(sam):
    """Against the loss written out: rows from a SAM on the crop, cells of the crop's own grid, features under them."""
    image = picture()
    crop, height, width = (20, 16), 24, 40  # of columns and rows that are cut off left and above
    results = record(image)
    results["img"] = image[crop[1] : crop[1] + height, crop[0] : crop[0] + width].copy()
    results["img_shape"] = (height, width)
    results["homography_matrix"] = np.array([[1, 0, -crop[0]], [0, 1, -crop[1]], [0, 0, 1]], np.float32)
    results["gt_masks"] = BitmapMasks(np.ones((1, height, width), np.uint8), height, width)
    results["gt_bboxes"] = HorizontalBoxes(np.array([[0, 0, width, height]], np.float32))
    results["gt_bboxes_labels"], results["gt_ignore_flags"] = np.array([1]), np.zeros(1, bool)
    results["similarity_points"], results["keep_view"] = POINTS, True
    model = build_detector(live_sam={"name": "any"}).train()
    with captured_output(model.panoptic_head.pixel_decoder) as captured:
        found = loss_of(model, [packed(results)])["loss_structural"]
    assert sam.embedded == [(height, width)]
    inside = [(x - 20, y - 16) for x, y in POINTS if 20 <= x < 60 and 16 <= y < 40]
    assert len(inside) == 2
    points = np.array(inside, np.float32)
    rows = rows_at_points(sam, sam.embed([results["img"]])[0], points).flatten(1)
    features = captured[0][0].detach()[0]  # [C, 8, 16]: 32 x 64 pixels, padding included
    y, x = torch.meshgrid(torch.arange(6) * 4 + 2.0, torch.arange(8) * 5 + 2.5, indexing="ij")
    where = torch.stack([2 * x.flatten() / 64 - 1, 2 * y.flatten() / 32 - 1], 1)[None, None]
    assert features.shape[1:] == (8, 16)
    sampled = F.grid_sample(features[None], where, align_corners=False, padding_mode="border")[0, :, 0].T
    unit = F.normalize(sampled, dim=1)
    own = [int(py // 4) * 8 + int(px // 5) for px, py in points]
    expected = F.huber_loss(unit[own] @ unit.T, rows)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_drawn_points_lie_in_the_view_and_half_of_them_on_its_objects(sam):
    results = record(picture())
    with seeded([3]):
        turned = RandomFlip(prob=1.0, direction="horizontal").transform(results)
        turned = RandomCrop((40, 30), crop_type="absolute", allow_negative_crop=True).transform(turned)
        found = DrawTargetPoints(num_inside=20, num_uniform=10).transform(turned)
    points = found["similarity_points"]
    assert points.shape == (30, 2)
    assert points.dtype == np.float32
    assert found["keep_view"]
    homography = found["homography_matrix"].astype(float)
    view = np.column_stack([points, np.ones(30)]) @ homography.T
    columns, rows = np.floor(view[:, :2]).astype(int).T
    np.testing.assert_allclose(view[:, :2] % 1, 0.5, atol=1e-3)
    assert columns.min() >= 0
    assert rows.min() >= 0
    masks = found["gt_masks"].masks.any(0)
    assert masks[rows[:20], columns[:20]].all()
    assert not masks[rows[20:], columns[20:]].all()
    canonical = record(picture())["gt_masks"].masks.any(0)
    assert canonical[points[:20, 1].astype(int), points[:20, 0].astype(int)].all()


def test_drawn_points_repeat_with_the_streams_seed_and_differ_from_image_to_image():
    drawn = [packed(record(picture()), DrawTargetPoints(4, 4), seed=seed)["data_samples"] for seed in (0, 0, 1)]
    first, again, other = (sample.sam_targets.points_xy for sample in drawn)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(drawn[0].sam_view, torch.from_numpy(picture()))
    assert "rows" not in drawn[0].sam_targets


def test_the_feature_loss_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    found = [3 * torch.randn(count, 4, generator=generator) for count in (2, 0, 3)]
    targets = [torch.randn(count, 4, generator=generator) for count in (2, 0, 3)]
    gaps = (torch.cat(found) - torch.cat(targets)).abs().flatten().tolist()
    expected = sum(0.5 * gap**2 if gap < 1 else gap - 0.5 for gap in gaps) / 20
    assert float(feature_loss(found, targets)) == pytest.approx(expected, rel=1e-5)
    nothing = torch.zeros(0, 4, requires_grad=True)
    feature_loss([nothing], [torch.zeros(0, 4)]).backward()
    assert nothing.grad is not None


@pytest.mark.parametrize(
    ("features", "network", "channels"),
    [("decoder", "decoder", 5), ("encoder", "encoder", 4), ("encoder", "decoder", 4)],
)
def test_feature_matching_compares_projected_features_with_sams_at_the_points(sam, features, network, channels):
    live = {"name": "any", "features": features, "channels": channels}
    model = build_detector(
        live_sam=live, distillation="feature", structural_feature=network, structural_weight=0.5
    ).train()
    image = picture()
    results = record(image) | {"similarity_points": POINTS, "keep_view": True}
    source = model.backbone if network == "encoder" else model.panoptic_head.pixel_decoder
    with captured_output(source) as captured:
        losses = loss_of(model, [packed(results)])
    assert "loss_structural" not in losses
    maps = captured[0][-1] if network == "encoder" else captured[0][0]
    assert len(model.feature_projection.weight[0]) == maps.shape[1]
    total = 0.0
    wanted = features_at_points(sam, sam.embed([image])[0], POINTS, features=features)
    for (x, y), target in zip(POINTS, wanted, strict=True):
        centre = torch.tensor([(int(x // 8) * 8 + 4) / 32 - 1, (int(y // 8) * 8 + 4) / 32 - 1])  # canvas 64 x 64
        feature = F.grid_sample(maps, centre[None, None, None], align_corners=False, padding_mode="border")
        total += F.huber_loss(model.feature_projection(feature[0, :, 0, 0]), target)
    assert float(losses["loss_feature"]) == pytest.approx(0.5 * float(total) / len(POINTS), rel=1e-4)
    losses["loss_feature"].backward()
    assert model.feature_projection.weight.grad.abs().sum() > 0
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


def test_steps_of_feature_matching_bring_the_features_closer(sam):
    live = {"name": "any", "channels": 5}
    model = build_detector(live_sam=live, distillation="feature").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sample = packed(record(picture()) | {"similarity_points": POINTS, "keep_view": True})
    course = []
    for _ in range(12):
        loss = loss_of(model, [sample])["loss_feature"]
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        course.append(float(loss))
    assert course[-1] < 0.5 * course[0]


def test_a_store_cannot_serve_feature_matching_and_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"needs SAM in the training step[\s\S]*cosines"):
        build_detector(distillation="feature")
    with pytest.raises(ConfigError, match="unknown distillation"):
        build_detector(distillation="features")


@pytest.mark.parametrize("change", [{"features": "neck"}, {"channels": 0}, {"prompts_per_batch": 0}])
def test_settings_of_a_live_sam_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match="out of range"):
        LiveSamSettings("any", **change)


def test_another_number_of_channels_is_told_with_the_right_one(sam):
    model = build_detector(live_sam={"name": "any"}, distillation="feature").train()
    sample = packed(record(picture()) | {"similarity_points": POINTS, "keep_view": True})
    with pytest.raises(ConfigError, match=r"live_sam.channels=5"):
        loss_of(model, [sample])


def test_what_the_samples_lack_is_told(sam):
    drawn = packed(record(picture()), DrawTargetPoints(4, 4))
    with pytest.raises(ConfigError, match="points and no similarity rows"):
        loss_of(build_detector().train(), [drawn])
    bare = sample_of(np.ones((1, 64, 64), np.uint8), [0])
    bare.sam_targets = InstanceData(points_xy=torch.from_numpy(POINTS))
    with pytest.raises(ConfigError, match="pixels of the view"):
        build_detector(live_sam={"name": "any"}).train().loss(torch.zeros(1, 3, 64, 64), [bare])


def test_sam_is_loaded_at_the_first_step_where_the_network_is(monkeypatch):
    asked = []

    def build(name, **settings):
        asked.append((name, settings))
        return GridSam()

    monkeypatch.setattr(live_sam, "build_backend", build)
    live = LiveSam(LiveSamSettings("mine", config="c.yaml"))
    assert asked == []
    view = View(torch.eye(3), SIZE_HW, SIZE_HW, SIZE_HW)
    shown = Shown(torch.rand(2, 12, 16), view, picture(), torch.from_numpy(POINTS))
    first, both = live.structural([shown]), live.structural([shown, replace(shown, points_xy=torch.zeros(0, 2))])
    torch.testing.assert_close(first, both)  # an image without a point in view does not count
    assert asked == [("mine", {"device": "cpu", "config": "c.yaml", "precision": "fp32"})]


def test_the_projection_is_in_the_checkpoint_and_networks_without_it_take_the_rest():
    matching = build_detector(live_sam={"name": "any"}, distillation="feature", seed=1)
    plain = build_detector(seed=2)
    load_network(plain, matching.state_dict(), where="here")
    assert all(torch.equal(value, matching.state_dict()[name]) for name, value in plain.state_dict().items())
    other = build_detector(live_sam={"name": "any"}, distillation="feature", seed=3)
    own = other.feature_projection.weight.clone()
    load_network(other, build_detector(seed=2).state_dict(), where="here")
    assert torch.equal(other.feature_projection.weight, own)
    load_network(other, matching.state_dict(), where="here")
    assert torch.equal(other.feature_projection.weight, matching.feature_projection.weight)


@pytest.mark.parametrize(
    ("settings", "asked"), [({}, "encoder"), ({"features": "encoder"}, "decoder"), ({"features": "decoder"}, "encoder")]
)
def test_targets_of_the_other_features_are_refused(tmp_path, settings, asked):
    store = write_store(tmp_path / "store", picture(), settings)
    with pytest.raises(StoreMismatchError, match="other features of SAM") as caught:
        packed(record(picture()), LoadSimilarityTargets(store, 4, 4, features=asked))
    assert f"similarity.features={asked}" in str(caught.value)
    packed(record(picture()), LoadSimilarityTargets(store, 4, 4, features=features_of(settings)))
