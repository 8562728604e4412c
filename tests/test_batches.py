import pytest

from dfscan.train.batches import num_steps, plan_epoch


def test_every_view_is_seen_once() -> None:
    batches = plan_epoch([1] * 10, epoch=2, seed=5, batch_size=4, repeat=3)
    keys = [key for batch in batches for key in batch]
    assert sorted((key.sample, key.view) for key in keys) == [(i, v) for i in range(10) for v in range(3)]
    assert {key.epoch for key in keys} == {2}
    assert [len(batch) for batch in batches] == [4] * 7 + [2]


def test_a_pair_counts_as_two_faces() -> None:
    batches = plan_epoch([2] * 6 + [1] * 5, epoch=0, seed=0, batch_size=4)
    weights = [2] * 6 + [1] * 5
    sizes = [sum(weights[key.sample] for key in batch) for batch in batches]
    assert all(2 <= size <= 4 for size in sizes)
    assert sum(len(batch) for batch in batches) == 11


def test_the_last_single_face_is_left_out() -> None:
    assert [len(batch) for batch in plan_epoch([1] * 9, epoch=0, seed=0, batch_size=4)] == [4, 4]
    assert [len(batch) for batch in plan_epoch([2] * 9, epoch=0, seed=0, batch_size=8)] == [4, 4, 1]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def plan(**changes: int) -> object:
        return plan_epoch([1] * 50, **{"epoch": 0, "seed": 0, "batch_size": 8, **changes})

    def order(**changes: int) -> list[int]:
        return [key.sample for batch in plan(**changes) for key in batch]

    assert plan() == plan()
    assert order() != order(seed=1)
    assert order() != order(epoch=1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_devices_share_the_batches_of_one(world_size: int) -> None:
    alone = plan_epoch([1] * 70, epoch=0, seed=0, batch_size=4)
    together = plan_epoch([1] * 70, epoch=0, seed=0, batch_size=4, world_size=world_size)
    parts = [together[rank::world_size] for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    assert together == alone[: len(together)]
    assert len(alone) - len(together) < world_size


def test_too_few_faces_give_no_batch() -> None:
    assert plan_epoch([1], epoch=0, seed=0, batch_size=4) == []
    assert plan_epoch([], epoch=0, seed=0, batch_size=4) == []


@pytest.mark.parametrize(
    ("num_batches", "accumulate", "world_size", "steps"),
    [(10, 2, 1, 5), (11, 2, 1, 6), (11, 4, 1, 3), (12, 2, 3, 2), (1, 2, 1, 1), (0, 2, 1, 0)],
)
def test_steps_count_windows_and_the_partial_one(
    num_batches: int, accumulate: int, world_size: int, steps: int
) -> None:
    assert num_steps(num_batches, accumulate=accumulate, world_size=world_size) == steps
