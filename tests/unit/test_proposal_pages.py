"""Reading a row group by hand gives what pyarrow reads from the same file, whatever is in it."""

import dataclasses
import io

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_schemas.proposals import PROPOSAL_SCHEMA, Proposal
from pipeline.errors import EnvironmentProblemError, InputError
from pipeline.stores import proposal_pages
from pipeline.stores.parquet_page import header_end, page_sizes
from pipeline.stores.proposal_pages import (
    MAX_ROWS,
    PageError,
    RowGroups,
    check_row_group,
    codes_of,
    encode_shard,
    numbers_of,
)

float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
int32 = st.integers(0, 2**31 - 1)
proposals = st.builds(
    Proposal,
    rle_counts=st.text(st.characters(min_codepoint=48, max_codepoint=111), min_size=1, max_size=40),
    height=int32,
    width=int32,
    area=st.integers(0, 2**63 - 1),
    bbox_xywh=st.tuples(float32, float32, float32, float32),
    predicted_iou=float32,
    stability_score=float32,
    point_xy=st.tuples(float32, float32),
)
shards = st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.lists(proposals, max_size=8), max_size=5)


def assert_as_pyarrow_reads(data):
    """Every value of every column; and that the index says of the file what its own footer says."""
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    groups = RowGroups.of_footer(data[-(int.from_bytes(data[-8:-4], "little") + 8) :])
    assert len(groups) == file.num_row_groups
    for number in range(file.num_row_groups):
        group, table = groups[number], file.read_row_group(number)
        assert table.schema.equals(PROPOSAL_SCHEMA)
        mine = data[group.start : group.start + group.ends[-1]]
        check_row_group(mine, group)
        assert group.rows == table.num_rows
        assert table.column("image_id").to_pylist() == [group.image_id] * group.rows
        for place, name in enumerate(PROPOSAL_SCHEMA.names):
            stated = file.metadata.row_group(number).column(place)
            assert stated.data_page_offset + stated.total_compressed_size == group.start + group.ends[place]
            if name == "rle_counts":
                assert [code.decode() for code in codes_of(mine, group)] == table.column(name).to_pylist()
            else:
                np.testing.assert_array_equal(numbers_of(mine, group, name), table.column(name).to_numpy())
    return groups


@settings(max_examples=60, deadline=None)
@given(shards)
def test_any_shard_reads_as_pyarrow_reads_it(groups):
    read = assert_as_pyarrow_reads(encode_shard(groups, shard_id="x"))
    assert [(read[k].image_id, read[k].rows) for k in range(len(read))] == [(i, len(g)) for i, g in groups.items() if g]


def many(count, code_length, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Proposal(
            "".join(map(chr, rng.integers(48, 112, rng.integers(1, code_length)))),
            *(9, 9, int(rng.integers(0, 2**40))),
            tuple(float(v) for v in rng.random(4, np.float32)),
            *(float(v) for v in rng.random(2, np.float32)),
            tuple(float(v) for v in rng.random(2, np.float32)),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(("count", "code_length"), [(1, 2), (5_000, 30), (MAX_ROWS, 2), (12, 400_000)])
def test_thousands_of_rows_and_megabytes_of_codes_are_one_page(count, code_length):
    assert_as_pyarrow_reads(encode_shard({3: many(2, 9), 7: many(count, code_length), 9: many(3, 9)}, shard_id="x"))


def test_more_rows_than_a_page_takes_are_refused():
    (row,) = many(1, 9)
    with pytest.raises(InputError, match="image 4"):
        encode_shard({4: [row] * (MAX_ROWS + 1)}, shard_id="x")


def test_pages_of_another_layout_are_not_stored(monkeypatch):
    real = pq.ParquetWriter
    for options in ({"data_page_size": 64, "write_batch_size": 8}, {"use_dictionary": ["area"]}):
        monkeypatch.setattr(
            proposal_pages.pq, "ParquetWriter", lambda *a, options=options, **k: real(*a, **{**k, **options})
        )
        with pytest.raises(EnvironmentProblemError, match=f"pyarrow {pa.__version__}"):
            encode_shard({4: many(40, 9)}, shard_id="x")


def test_bytes_of_another_row_group_are_refused():
    data = encode_shard({1: many(3, 9), 2: many(3, 9, seed=1)}, shard_id="x")
    first, second = (assert_as_pyarrow_reads(data)[k] for k in (0, 1))
    mine = data[first.start : second.start]
    check_row_group(mine, first)
    for wrong in (data[second.start : second.start + second.ends[-1]], mine[:-1], mine + b"\0", b""):
        with pytest.raises(PageError, match="crc32c"):
            check_row_group(wrong, first)
    forged = dataclasses.replace(first, crc32c=google_crc32c.value(mine) ^ 1)
    with pytest.raises(PageError):
        check_row_group(mine, forged)


def test_a_parquet_file_of_someone_else_has_no_index():
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), sink)
    for data in (sink.getvalue(), b"", b"PAR1"):
        with pytest.raises(PageError, match="index"):
            RowGroups.of_footer(data)


def test_page_headers_of_other_writers_are_read_to_their_end():
    """Statistics, checksum and nested structs of a header are passed over: the values begin where they begin."""
    sink, values = io.BytesIO(), np.arange(50, dtype=np.int64)
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False)])
    table = pa.table({"a": values}, schema=schema)
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_page_checksum=True)
    data = sink.getvalue()
    assert page_sizes(data, 4) == (values.nbytes, values.nbytes)
    assert data[header_end(data, 4) :].startswith(values.tobytes())


def test_what_is_no_page_header_is_refused():
    with pytest.raises(ValueError, match="no page header at byte 1"):
        page_sizes(b"xPAR1", 1)
    with pytest.raises(ValueError, match="kind 13"):
        header_end(bytes([0x1D, 0]), 0)
    with pytest.raises(IndexError):
        header_end(bytes([0x15, 0x80]), 0)
    # A field with its number written out, a flag, a byte and a double, then the end.
    assert header_end(bytes([0x05, 0x02, 0x01, 0x11, 0x13, 9, 0x17, *range(8), 0x00]), 0) == 16
