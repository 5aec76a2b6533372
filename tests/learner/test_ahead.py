"""The next item is made while the last one is in use."""

import threading

import pytest

from bandpo.learner.ahead import one_ahead


def test_items_come_in_order_and_the_next_is_made_before_the_last_is_handed_back():
    made = {index: threading.Event() for index in range(5)}

    def make(index):
        made[index].set()
        return index * index

    for index, square in enumerate(one_ahead(make, range(5))):
        assert square == index * index
        if index < 4:
            assert made[index + 1].wait(10)
        assert not any(made[later].is_set() for later in range(index + 2, 5))
    assert index == 4
    assert list(one_ahead(make, [])) == []


def test_an_error_is_raised_where_its_item_would_come():
    def make(index):
        if index == 2:
            raise ValueError("injected")
        return index

    items, seen = one_ahead(make, range(4)), []
    with pytest.raises(ValueError, match="injected"):
        for item in items:
            seen.append(item)
    assert seen == [0, 1]


def test_a_consumer_that_stops_early_leaves_no_thread():
    items = one_ahead(lambda index: index, range(100))
    assert next(items) == 0
    items.close()
    assert not any(thread.name.startswith("bandpo-layout") for thread in threading.enumerate())
