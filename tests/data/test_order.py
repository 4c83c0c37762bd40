import itertools
import sys
import tracemalloc

import numpy as np
import pytest

from cmdist.data import order as order_module
from cmdist.data.order import Order, permutation, schedule
from cmdist.errors import DataError

LAYOUTS = [([10], 8), ([3, 4, 5], 1), ([7] * 20, 8), ([1, 100, 2, 30, 0, 5], 4), ([5, 5, 5], 100)]


@pytest.mark.parametrize(("counts", "block"), LAYOUTS)
def test_every_sample_comes_once_in_each_epoch_and_epochs_follow_without_a_gap(counts, block):
    order = Order(counts, seed=3, block_shards=block)
    n = sum(counts)
    whole = order.ids(0, 3 * n)
    epochs = whole.reshape(3, n)
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(n))
    assert not np.array_equal(epochs[0], epochs[1])
    pieces = [order.ids(start, 7) for start in range(0, 3 * n, 7)]
    assert np.array_equal(np.concatenate(pieces)[: 3 * n], whole)
    assert [order.epoch(p) for p in (0, n - 1, n, 3 * n - 1)] == [0, 0, 1, 2]


def test_order_is_a_function_of_its_arguments():
    counts = [10] * 20
    a, b = Order(counts, seed=5, block_shards=4), Order(counts, seed=5, block_shards=4)
    b.ids(10**9, 64)  # where one has been makes no difference
    assert np.array_equal(a.ids(150, 120), b.ids(150, 120))
    assert not np.array_equal(a.ids(0, 64), Order(counts, seed=6, block_shards=4).ids(0, 64))


def test_golden_values_hold_for_every_version_of_numpy():
    assert permutation(8, 0, "shards", 0).tolist() == [6, 3, 5, 7, 4, 2, 0, 1]
    assert Order([4, 4, 4], seed=0, block_shards=2).ids(10**12, 6).tolist() == [7, 4, 6, 0, 11, 8]


def test_few_shards_are_in_use_at_a_time():
    order = Order([10] * 20, seed=1, block_shards=4)
    shards = order.ids(0, 200) // 10
    for start in range(0, 200, 40):
        assert len(set(shards[start : start + 40])) == 4
        assert (np.diff(shards[start : start + 40]) != 0).sum() > 15  # and mixed with one another


def test_any_position_takes_the_same_work():
    """Lines run, permutations drawn and memory of a look-up in 3 million samples; clocks of busy machines say less."""

    def work(position):
        order, lines, drawn = Order([5000] * 600, seed=0), 0, []

        def trace(frame, event, argument):
            nonlocal lines
            if event == "call" and frame.f_code is permutation.__code__:
                drawn.append(frame.f_locals["n"])
            lines += event == "line" and frame.f_code.co_filename == order_module.__file__
            return trace

        tracemalloc.start()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            order.ids(position, 64)
        finally:
            sys.settrace(before)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return lines, drawn, peak

    work(0)  # what only a first call costs
    lines, drawn, peak = work(100)
    assert drawn == [600, 8 * 5000]  # the epoch's shards, one block's samples
    for position in (2_999_000, 10**12 + 100):
        far = work(position)
        assert far[:2] == (lines, drawn) and far[2] < 1.5 * peak


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="the data set is empty: none of its shards has a sample"):
        Order([0, 0], seed=0)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_out_all_micro_batches_in_order_of_steps(world):
    taken = [
        list(itertools.islice(schedule(5, 4, rank, world), 3 * len(range(rank, 4, world)))) for rank in range(world)
    ]
    assert sorted(itertools.chain(*taken)) == list(range(20, 32))
    for rank, numbers in enumerate(taken):
        assert numbers == sorted(numbers) and {g % 4 % world for g in numbers} == {rank}
