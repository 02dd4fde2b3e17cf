import numpy as np
import pytest

from pipeline.errors import AnnotationError, InputError
from pipeline.masks import rle
from pipeline.masks.library import MaskLibrary


def test_masks_are_measured_and_decoded():
    masks = np.random.default_rng(0).random((6, 9, 11)) < 0.3
    masks[2] = False
    codes = rle.encode_many(masks)
    library = MaskLibrary.from_rles(codes, size_hw=(9, 11))
    assert len(library) == 6
    assert library.areas.dtype == np.int64
    np.testing.assert_array_equal(library.areas, masks.sum(axis=(1, 2)))
    assert [tuple(box) for box in library.boxes_xywh.tolist()] == [rle.bbox_xywh(code) for code in codes]
    assert library.rles(np.array([4, 0])) == [codes[4], codes[0]]
    np.testing.assert_array_equal(library.union(np.array([1, 4, 0])), masks[[1, 4, 0]].any(axis=0))
    assert not library.union(np.zeros(0, np.int64)).any()


def test_a_library_may_be_empty():
    library = MaskLibrary.from_rles([], size_hw=(4, 5))
    assert (len(library), library.boxes_xywh.shape, library.codes) == (0, (0, 4), ())
    assert library.union(np.zeros(0, np.int64)).shape == (4, 5)


def test_masks_of_another_size_and_malformed_codes_are_refused():
    code = rle.encode(np.ones((4, 5), dtype=bool))
    with pytest.raises(InputError, match="another size"):
        MaskLibrary.from_rles([code], size_hw=(5, 4))
    with pytest.raises(AnnotationError):
        MaskLibrary.from_rles([{"size": [4, 5], "counts": "0"}], size_hw=(4, 5))
