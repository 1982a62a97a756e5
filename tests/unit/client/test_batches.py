import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonembed._batches import batches, check_batch_size


def identity(part, _first):
    return part


@given(st.lists(st.binary(max_size=20)), st.integers(1, 7), st.integers(1, 50))
def test_batches_keep_order_and_respect_both_limits(elements, batch_size, max_bytes):
    parts = list(batches(elements, identity, batch_size, max_bytes))
    assert [element for part in parts for element in part] == elements
    assert all(1 <= len(part) <= batch_size for part in parts)
    assert all(len(part) == 1 or sum(map(len, part)) <= max_bytes for part in parts)


def test_full_batches_are_as_few_as_possible():
    assert [len(part) for part in batches([b""] * 130, identity, 64)] == [64, 64, 2]


def test_only_what_the_next_batch_needs_is_taken_from_an_endless_source():
    taken = itertools.count()
    parts = batches((str(number).encode() for number in taken), identity, 3)
    assert next(parts) == [b"0", b"1", b"2"]
    assert next(taken) == 3


def test_each_part_is_encoded_with_the_index_of_its_first_input():
    seen = []
    list(batches([b"x"] * 5, lambda part, first: seen.append((first, len(part))) or part, 2))
    assert seen == [(0, 2), (2, 2), (4, 1)]


@pytest.mark.parametrize("batch_size", [0, -1, 1025])
def test_a_batch_size_that_the_server_refuses_is_a_value_error(batch_size):
    with pytest.raises(ValueError, match="from 1 to 1024"):
        check_batch_size(batch_size)
