"""The bench of opening a store, in small: that both ways say the same, and what opening leaves alone."""

import subprocess
import sys

import pytest

from jobs.bench.run import compare
from jobs.bench.stores import IMAGES_PER_SHARD, open_cases, write_records
from pipeline.stores.index import StoreIndex


def test_both_ways_know_the_same_images(tmp_path):
    num_images = 2 * IMAGES_PER_SHARD + 5
    (case,) = open_cases(tmp_path, num_images=num_images)
    assert (case.sizes["images"], case.sizes["shards"]) == (num_images, 3)
    assert {"open, ms", "a random find, us", "added memory, MB", "open without the index, s"} <= set(case.sizes)
    compare(case, rounds=1)
    theirs = case.other()
    theirs[3] = (99, "another file")
    with pytest.raises(AssertionError):
        case.check(case.ours(), theirs)


def test_the_synthetic_store_is_one_that_opens(tmp_path):
    index = StoreIndex.open(write_records(tmp_path / "store", num_images=70), "proposals")
    assert index.image_ids == [3 * i for i in range(70)]
    entry = index.find(3 * 66)
    assert (entry.shard_index, entry.slot, entry.outcome.rows) == (1, 2, 198)
    assert entry.image.file_name == "train2017/000000000198.jpg"


def test_opening_and_asking_for_a_name_imports_no_pandas(tmp_path):
    """It costs a second and 40 MB, in every process that reads."""
    store = write_records(tmp_path / "store", num_images=70)
    code = (
        "import sys; from pipeline.stores.index import StoreIndex; i = StoreIndex.open(sys.argv[1], 'proposals');"
        "print(i.find(3).image.file_name, i.find(3).files[0].num_bytes, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["train2017/000000000003.jpg", "20", "False"]
