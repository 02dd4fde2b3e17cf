"""One contract for all refiners; the matching rules against hand-made numbers and a loop over pixels."""

import numpy as np
import pytest

from pipeline.errors import ConfigError, InputError, PipelineError
from pipeline.masks import rle
from pipeline.masks.library import MaskLibrary
from pipeline.refine.build import LIBRARY_REFINERS, REFINER_NAMES, build_refiner
from pipeline.refine.cpi import accept_cpi
from pipeline.refine.interface import TeacherMasks
from pipeline.refine.iom import accept_iom
from pipeline.refine.matching import Overlaps
from tests.fakes import FakeSam


class FakeLibrary:
    """Proposals of images, held in memory; an image never asked for raises as the store does."""

    def __init__(self, masks_by_image):
        self.masks_by_image = masks_by_image

    def read_masks(self, image_id):
        if image_id not in self.masks_by_image:
            raise PipelineError(f"no proposals for image {image_id}")
        masks = np.asarray(self.masks_by_image[image_id])
        return MaskLibrary.from_rles(rle.encode_many(masks), size_hw=masks.shape[1:])


def teacher_of(masks, visible=None, confidence=0.9):
    masks = np.asarray(masks, dtype=bool)
    visible = np.ones(masks.shape[1:], dtype=bool) if visible is None else visible
    probabilities = np.where(masks & visible, confidence, np.where(visible, 0.1, 0.0)).astype(np.float32)
    count = len(masks)
    return TeacherMasks(probabilities, visible, np.arange(count), np.full(count, 0.8, dtype=np.float32))


def random_blobs(rng, count, height=24, width=30):
    """Ellipses, so that masks and proposals overlap by every share."""
    y, x = np.mgrid[:height, :width]
    blobs = np.zeros((count, height, width), dtype=bool)
    for blob in blobs:
        (cy, cx), (ry, rx) = rng.random(2) * [height, width], rng.uniform(1, 14, size=2)
        blob[:] = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    return blobs


NOTHING = np.zeros((0, 24, 30), dtype=bool)


def build(name, proposals=NOTHING, **settings):
    return build_refiner(name, proposals=FakeLibrary({1: proposals}), sam=FakeSam(), **settings)


def refine(refiner, teacher, image=None, seed=0):
    return refiner.refine(1, image, teacher, np.random.default_rng(seed))


def flat_image(teacher):
    image = np.zeros((*teacher.size_hw, 3), dtype=np.uint8)
    image[: teacher.size_hw[0] // 2] = [200, 30, 30]
    return image


@pytest.mark.parametrize("name", REFINER_NAMES)
class TestRefinerContract:
    """What every refiner promises."""

    def case(self, seed):
        rng = np.random.default_rng(seed)
        visible = np.zeros((24, 30), dtype=bool)
        visible[3:20, 5:28] = True
        masks = random_blobs(rng, 6)
        masks[4] = False
        probabilities = np.where(masks & visible, rng.uniform(0.51, 1, masks.shape), rng.uniform(0, 0.5, masks.shape))
        labels, scores = rng.integers(0, 9, 6), rng.random(6, dtype=np.float32)
        teacher = TeacherMasks((probabilities * visible).astype(np.float32), visible, labels, scores)
        return teacher, random_blobs(rng, 15)

    def test_number_order_and_shapes_are_kept(self, name):
        teacher, proposals = self.case(0)
        refined = refine(build(name, proposals), teacher, flat_image(teacher))
        assert refined.masks.shape == teacher.probabilities.shape
        assert refined.masks.dtype == bool
        assert len(refined.outcomes) == len(refined.weights) == len(teacher)
        assert set(refined.outcomes) <= {"matched", "kept", "empty"}
        for index, outcome in enumerate(refined.outcomes):
            assert (outcome == "empty") == (not refined.masks[index].any())
            if outcome == "kept":
                np.testing.assert_array_equal(refined.masks[index], teacher.masks[index])

    def test_one_instance_alone_gets_what_it_gets_among_others(self, name):
        """Order: the answer at place i belongs to instance i (library refiners and none draw nothing)."""
        if name == "points":
            pytest.skip("draws from a shared generator; its order is tested in test_point_prompt")
        teacher, proposals = self.case(1)
        together = refine(build(name, proposals), teacher)
        for index in range(len(teacher)):
            part = slice(index, index + 1)
            single = TeacherMasks(
                teacher.probabilities[part], teacher.visible, teacher.labels[part], teacher.scores[part]
            )
            alone = refine(build(name, proposals), single)
            np.testing.assert_array_equal(alone.masks[0], together.masks[index])
            assert alone.outcomes[0] == together.outcomes[index]

    def test_masks_stay_inside_the_visible_region(self, name):
        for seed in range(5):
            teacher, proposals = self.case(seed)
            proposals[0] = True
            refined = refine(build(name, proposals), teacher, flat_image(teacher))
            assert not refined.masks[:, ~teacher.visible].any()

    def test_no_instances(self, name):
        _, proposals = self.case(0)
        refined = refine(build(name, proposals), teacher_of(np.zeros((0, 24, 30))), np.zeros((24, 30, 3), np.uint8))
        assert refined.masks.shape == (0, 24, 30)
        assert refined.outcomes == refined.weights == []

    def test_no_proposals(self, name):
        teacher, _ = self.case(0)
        refined = refine(build(name, NOTHING), teacher, flat_image(teacher))
        if name == "points":  # it asks SAM, not the library
            again = refine(build(name, self.case(0)[1]), teacher, flat_image(teacher))
            np.testing.assert_array_equal(refined.masks, again.masks)
            assert refined.outcomes == again.outcomes
        else:
            np.testing.assert_array_equal(refined.masks, teacher.masks)
            assert "matched" not in refined.outcomes

    def test_same_seed_same_result_and_inputs_untouched(self, name):
        teacher, proposals = self.case(2)
        before = teacher.probabilities.copy()
        first = refine(build(name, proposals), teacher, flat_image(teacher), seed=7)
        second = refine(build(name, proposals), teacher, flat_image(teacher), seed=7)
        np.testing.assert_array_equal(first.masks, second.masks)
        assert first.outcomes == second.outcomes
        np.testing.assert_array_equal(teacher.probabilities, before)

    def test_weights_where_the_scope_says(self, name):
        teacher, proposals = self.case(0)
        for scope, expected in (
            ("off", set()),
            ("unmatched", {"kept", "empty"}),
            ("all", {"kept", "empty", "matched"}),
        ):
            refined = refine(build(name, proposals, pixel_weights=scope), teacher, flat_image(teacher))
            for weights, outcome in zip(refined.weights, refined.outcomes, strict=True):
                assert (weights is not None) == (outcome in expected)
                assert weights is None or (weights.shape == teacher.size_hw and weights.dtype == np.float32)


class TestAcceptanceVectors:
    """A_c = 100 against a (I 60, A 60), b (80, 200), d (0, 30), from the specification."""

    VECTORS = Overlaps(np.array([60, 80, 0]), np.array([60, 200, 30]), 100)

    @pytest.mark.parametrize(("cases", "accepted"), [("both", [0, 1]), ("under", [1]), ("over", [0])])
    def test_cpi(self, cases, accepted):
        assert accept_cpi(self.VECTORS, cases=cases).tolist() == accepted

    def test_iom(self):
        assert accept_iom(self.VECTORS).tolist() == [0]

    def test_iom_threshold_is_strict(self):
        assert accept_iom(Overlaps(np.array([50]), np.array([50]), 100)).tolist() == []
        assert accept_iom(Overlaps(np.array([51]), np.array([51]), 100)).tolist() == [0]

    def test_iom_first_wins_on_a_tie(self):
        assert accept_iom(Overlaps(np.array([30, 60, 60]), np.array([90, 60, 60]), 100)).tolist() == [1]

    def test_cpi_thresholds_are_strict(self):
        borderline = Overlaps(np.array([70, 70]), np.array([1000, 100]), 100)
        assert accept_cpi(borderline).tolist() == []
        above = Overlaps(np.array([71, 71]), np.array([1000, 101]), 100)
        assert accept_cpi(above, cases="under").tolist() == [0, 1]
        assert accept_cpi(above, cases="over").tolist() == [1]

    def test_proposal_without_a_visible_pixel_is_never_accepted(self):
        assert accept_cpi(Overlaps(np.array([0]), np.array([0]), 100)).tolist() == []

    def test_thresholds_are_settings(self):
        assert accept_iom(self.VECTORS, iou_threshold=0.6).tolist() == []
        assert accept_cpi(self.VECTORS, under_threshold=0.5, cases="under").tolist() == [0, 1]
        assert accept_cpi(self.VECTORS, over_threshold=0.3, cases="over").tolist() == [0, 1]

    def test_as_masks_end_to_end(self):
        mask, part, whole, elsewhere = np.zeros((4, 20, 30), dtype=bool)
        mask.reshape(-1)[:100] = True
        part.reshape(-1)[:60] = True
        whole.reshape(-1)[20:220] = True
        elsewhere.reshape(-1)[400:430] = True
        expected = {"iom": part, "cpi": part | whole, "cpi_u": whole, "cpi_o": part}
        for name, union in expected.items():
            refined = refine(build(name, [part, whole, elsewhere]), teacher_of([mask]))
            assert refined.outcomes == ["matched"]
            np.testing.assert_array_equal(refined.masks[0], union)
            assert refined.weights == [None]


def slow_accept(name, mask, proposals):
    """The rules as printed, pixel by pixel in float64, for one mask and clipped proposals."""
    accepted, best = [], 0.5
    for index, proposal in enumerate(proposals):
        shared, area = (mask & proposal).sum(), proposal.sum()
        if name == "iom":
            iou = shared / (mask | proposal).sum()
            if iou > best:
                accepted, best = [index], iou
            continue
        under = shared / (mask.sum() + 1e-9) > 0.7
        over = area > 0 and shared / area > 0.7
        if (name in ("cpi", "cpi_u") and under) or (name in ("cpi", "cpi_o") and over):
            accepted.append(index)
    return accepted


@pytest.mark.parametrize("name", LIBRARY_REFINERS)
def test_run_lengths_accept_what_the_dense_loop_accepts(name):
    rng = np.random.default_rng(3)
    matched = 0
    for trial in range(40):
        masks, proposals = random_blobs(rng, 3), random_blobs(rng, 25)
        proposals[0] = masks[0]
        visible = np.zeros((24, 30), dtype=bool)
        top, left = rng.integers(0, 12, size=2)
        visible[top : top + 16, left : left + 18] = True
        visible |= trial % 2 == 0  # every other trial sees the whole image
        teacher = teacher_of(masks, visible)
        refined = refine(build(name, proposals), teacher)
        clipped = proposals & visible
        for index, mask in enumerate(masks & visible):
            accepted = slow_accept(name, mask, clipped) if mask.any() else []
            expected = clipped[accepted].any(axis=0) if accepted else mask
            np.testing.assert_array_equal(refined.masks[index], expected)
            assert (refined.outcomes[index] == "matched") == bool(accepted)
            matched += bool(accepted)
    assert matched > 20  # the trials do exercise acceptance


@pytest.mark.parametrize("name", LIBRARY_REFINERS)
def test_result_does_not_depend_on_the_view(name):
    """An image seen through a crop gives what the cropped image with cropped proposals gives."""
    rng = np.random.default_rng(4)
    for _ in range(15):
        masks, proposals = random_blobs(rng, 4), random_blobs(rng, 20)
        visible = np.zeros((24, 30), dtype=bool)
        visible[4:19, 7:25] = True
        through_crop = refine(build(name, proposals), teacher_of(masks, visible))
        cropped = refine(build(name, proposals[:, 4:19, 7:25]), teacher_of(masks[:, 4:19, 7:25]))
        np.testing.assert_array_equal(through_crop.masks[:, 4:19, 7:25], cropped.masks)
        assert through_crop.outcomes == cropped.outcomes
        # What the proposals do outside the visible region changes nothing.
        grown = refine(build(name, proposals | ~visible), teacher_of(masks, visible))
        np.testing.assert_array_equal(grown.masks, through_crop.masks)


@pytest.mark.parametrize("name", LIBRARY_REFINERS)
def test_empty_teacher_mask_is_never_matched(name):
    refined = refine(build(name, np.ones((2, 24, 30), dtype=bool)), teacher_of(np.zeros((1, 24, 30))))
    assert refined.outcomes == ["empty"]
    assert not refined.masks.any()


def square(top, left, side):
    mask = np.zeros((40, 40), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


class TestGuards:
    """Off by default; each does one thing."""

    def test_background_floods_cpi_u_unless_its_area_is_limited(self):
        mask, everything = square(10, 10, 6), np.ones((40, 40), dtype=bool)
        assert refine(build("cpi_u", [everything]), teacher_of([mask])).masks.all()
        guarded = refine(build("cpi_u", [everything], max_area_ratio=4.0), teacher_of([mask]))
        assert guarded.outcomes == ["kept"]
        np.testing.assert_array_equal(guarded.masks[0], mask)

    def test_area_limit_keeps_the_right_indices(self):
        mask, everything, fitting = square(10, 10, 6), np.ones((40, 40), dtype=bool), square(9, 9, 8)
        guarded = refine(build("cpi_u", [everything, fitting], max_area_ratio=4.0), teacher_of([mask]))
        np.testing.assert_array_equal(guarded.masks[0], fitting)

    def test_minimum_iou_with_the_teacher(self):
        mask, part = square(10, 10, 10), square(10, 10, 5)
        assert refine(build("cpi_o", [part]), teacher_of([mask])).outcomes == ["matched"]
        assert refine(build("cpi_o", [part], min_iou_with_teacher=0.25), teacher_of([mask])).outcomes == ["matched"]
        assert refine(build("cpi_o", [part], min_iou_with_teacher=0.26), teacher_of([mask])).outcomes == ["kept"]

    def test_union_with_the_teacher(self):
        mask, shifted = square(10, 10, 10), square(11, 10, 10)
        plain = refine(build("cpi_u", [shifted]), teacher_of([mask]))
        np.testing.assert_array_equal(plain.masks[0], shifted)
        united = refine(build("cpi_u", [shifted], union_with_teacher=True), teacher_of([mask]))
        np.testing.assert_array_equal(united.masks[0], mask | shifted)


class TestBuild:
    def test_names_build(self):
        for name in REFINER_NAMES:
            assert hasattr(build(name), "refine")

    def test_settings_reach_the_refiner(self):
        refiner = build("cpi_u", under_threshold=0.6, max_area_ratio=3.0)
        assert (refiner.cases, refiner.under_threshold, refiner.settings.max_area_ratio) == ("under", 0.6, 3.0)
        assert build("points", num_points=5, sampling="softmax").settings.num_points == 5
        assert build("iom").iou_threshold == 0.5
        assert build("iom").settings.pixel_weights == "unmatched"

    @pytest.mark.parametrize(
        ("name", "settings", "says"),
        [
            ("cpy_u", {}, "did you mean cpi_u"),
            ("iom", {"iou_treshold": 0.5}, "did you mean iou_threshold"),
            ("cpi_u", {"over_threshold": 0.5}, "a setting of cpi, cpi_o: leave it out"),
            ("none", {"num_points": 3}, "pixel_weights"),
            ("iom", {"iou_threshold": 1.5}, "iou_threshold"),
            ("iom", {"iou_threshold": None}, "iou_threshold"),
            ("iom", {"iou_threshold": "0.5"}, "iou_threshold"),
            ("cpi", {"max_area_ratio": -1}, "max_area_ratio"),
            ("cpi", {"pixel_weights": "some"}, "off | unmatched | all"),
            ("points", {"num_points": 0}, "num_points"),
            ("points", {"num_points": 2.5}, "num_points"),
            ("points", {"sampling": "uniform"}, "sigmoid_in_mask"),
            ("points", {"min_predicted_iou": float("nan")}, "min_predicted_iou"),
        ],
    )
    def test_bad_settings_are_refused_by_name(self, name, settings, says):
        with pytest.raises(ConfigError) as caught:
            build(name, **settings)
        assert says in str(caught.value)

    @pytest.mark.parametrize("name", [*LIBRARY_REFINERS, "points"])
    def test_missing_parts_are_named(self, name):
        with pytest.raises(ConfigError, match="needs"):
            build_refiner(name)


def test_errors_of_the_library_pass_through():
    with pytest.raises(PipelineError, match="image 2"):
        build("iom").refine(2, None, teacher_of(np.ones((1, 4, 4))), np.random.default_rng(0))
    with pytest.raises(InputError, match="another size"):
        refine(build("iom", np.ones((1, 5, 5), dtype=bool)), teacher_of(np.ones((1, 4, 4))))


def test_teacher_masks_of_odd_shapes_are_refused():
    with pytest.raises(ValueError, match="do not belong together"):
        TeacherMasks(np.zeros((2, 4, 4), np.float32), np.ones((4, 5), bool), np.zeros(2, int), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="do not belong together"):
        TeacherMasks(np.zeros((2, 4, 4), np.float32), np.ones((4, 4), bool), np.zeros(1, int), np.zeros(2, np.float32))


def test_teacher_mask_is_strictly_above_one_half():
    probabilities = np.array([[[0.5, 0.51]]], dtype=np.float32)
    teacher = TeacherMasks(probabilities, np.ones((1, 2), bool), np.zeros(1, int), np.zeros(1, np.float32))
    np.testing.assert_array_equal(teacher.masks, [[[False, True]]])


@pytest.mark.parametrize("name", LIBRARY_REFINERS)
def test_two_hundred_proposals_at_full_hd(name):
    """No clock: it is enough that this size is an ordinary unit test (a dense loop would decode 400 MB)."""
    spans = [np.array([[start * 5000, start * 5000 + 40_000]]) for start in range(200)]
    codes = [rle.from_runs(span, height=1080, width=1920) for span in spans]
    library = MaskLibrary.from_rles(codes, size_hw=(1080, 1920))
    mask = rle.dense(np.array([[100_000, 140_000]]), height=1080, width=1920)
    refiner = build_refiner(name, proposals=type("Library", (), {"read_masks": lambda self, image_id: library})())
    refined = refine(refiner, teacher_of([mask]))
    # Starts lie 5000 apart: shares of 1, 7/8 and 3/4 pass 0.7, IoU is best for the equal one.
    reach = 0 if name == "iom" else 10_000
    expected = rle.dense(np.array([[100_000 - reach, 140_000 + reach]]), height=1080, width=1920)
    np.testing.assert_array_equal(refined.masks[0], expected)
