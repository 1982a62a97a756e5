"""Groups of sentences of similar length hold every token once, and no more padding than is allowed."""

import itertools

import numpy as np
import pytest
from tests.unit.engine.fake_executor import ids

from tritonembed_engine.executors.padding import Grouping
from tritonembed_engine.token_ids import TokenIds

PAD = 7


def batch_of(lengths: list[int]) -> TokenIds:
    """Each token has an id of its own, from 100 on."""
    ends = np.cumsum([0, *lengths]) + 100
    return TokenIds.join([ids(*range(start, stop)) for start, stop in itertools.pairwise(ends)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("most_padding", "most_tokens"), [(0, 10**9), (20, 200), (64, 1024), (10**9, 10**9)])
def test_every_sentence_is_in_one_group_with_its_own_tokens(seed: int, most_padding: int, most_tokens: int) -> None:
    sentences = batch_of(np.random.default_rng(seed).integers(1, 60, 50).tolist())
    grouping = Grouping(most_padding, most_tokens)
    seen = []
    for group in grouping.groups(sentences, PAD):
        assert (group.ids[~group.mask] == PAD).all()
        assert (~group.mask).sum() <= most_padding
        assert group.ids.size <= most_tokens or len(group.rows) == 1
        assert group.has_padding == (~group.mask).any()
        assert group.cu_seqlens.tolist() == [0, *np.cumsum(group.mask.sum(1))]
        for row, own, mask in zip(group.rows, group.ids, group.mask, strict=True):
            seen.append(int(row))
            assert own[mask].tolist() == list(sentences)[row].tolist()
            assert mask.tolist() == sorted(mask, reverse=True), "padding stands at the end"
    assert sorted(seen) == list(range(50))


def test_sentences_of_one_length_share_a_group() -> None:
    groups = list(Grouping(0, 1024).groups(batch_of([5, 9, 5, 9, 9, 5]), PAD))
    assert [group.rows.tolist() for group in groups] == [[1, 3, 4], [0, 2, 5]]
    assert not any(group.has_padding for group in groups)


def test_a_sentence_over_the_limit_of_tokens_is_a_group_of_its_own() -> None:
    groups = list(Grouping(10**9, 100).groups(batch_of([300, 40, 40, 40]), PAD))
    assert [group.ids.shape for group in groups] == [(1, 300), (2, 40), (1, 40)]
