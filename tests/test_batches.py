import pytest

from dfscan.train.batches import Key, Pool, draw_epoch, num_steps, plan_epoch


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


def test_a_last_batch_with_one_face_is_dropped() -> None:
    assert [len(batch) for batch in plan_epoch([1] * 9, epoch=0, seed=0, batch_size=4)] == [4, 4]
    assert [len(batch) for batch in plan_epoch([2] * 9, epoch=0, seed=0, batch_size=8)] == [4, 4, 1]


def test_order_depends_only_on_seed_and_epoch() -> None:
    def plan(**changes: int) -> object:
        return plan_epoch([1] * 50, **{"epoch": 0, "seed": 0, "batch_size": 8, **changes})

    def order(**changes: int) -> list[int]:
        return [key.sample for batch in plan(**changes) for key in batch]

    assert plan() == plan()
    assert order() != order(seed=1)
    assert order() != order(epoch=1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_devices_divide_the_batches_of_a_single_device(world_size: int) -> None:
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
    ("num_batches", "grad_accumulation", "world_size", "steps"),
    [(10, 2, 1, 5), (11, 2, 1, 6), (11, 4, 1, 3), (12, 2, 3, 2), (1, 2, 1, 1), (0, 2, 1, 0)],
)
def test_a_partial_accumulation_window_counts_as_a_step(
    num_batches: int, grad_accumulation: int, world_size: int, steps: int
) -> None:
    assert num_steps(num_batches, grad_accumulation=grad_accumulation, world_size=world_size) == steps


def pool() -> Pool:
    """Return 100 portraits of 50 people, a page with a real and two fakes of one person, and a page with fakes only."""
    sources = [f"portrait{i // 2}" for i in range(100)] + ["take", "swap1", "swap2", "alone"]
    groups = [f"person{i // 2}" for i in range(100)] + ["star"] * 3 + ["avatar"]
    domains = ["portraits"] * 100 + ["page"] * 3 + ["fakes only"]
    return Pool([False] * 101 + [True] * 3, domains, groups, sources)


def drawn(**changes: object) -> list[tuple[Key, ...]]:
    settings = {"epoch": 0, "seed": 0, "batch_size": 8, "num_faces": 4000, "fake_share": 0.5, "domain_exponent": 0.0}
    return draw_epoch(pool(), **{**settings, **changes})  # type: ignore[arg-type]


def test_drawn_batches_hold_equal_numbers_of_reals_and_fakes() -> None:
    is_fake = pool().is_fake
    for batch in drawn():
        reals = sum(not is_fake[key.sample] for key in batch)
        made = sum(key.is_forged for key in batch)
        fakes = sum(is_fake[key.sample] for key in batch)
        assert (reals, made + fakes) == (4, 4)
        assert not any(key.is_forged for key in batch if is_fake[key.sample])


def test_domains_are_drawn_evenly_or_by_their_number_of_groups() -> None:
    domains = pool().domains

    def portion(exponent: float) -> float:
        reals = [key for batch in drawn(fake_share=0.0, domain_exponent=exponent) for key in batch]
        return sum(domains[key.sample] == "portraits" for key in reals) / len(reals)

    assert portion(0.0) == pytest.approx(1 / 2, abs=0.04)
    assert portion(1.0) == pytest.approx(50 / 51, abs=0.02)


def test_a_true_fake_is_paired_with_a_real_of_its_own_domain_if_there_is_one() -> None:
    facts = pool()
    pairs = [
        (fake.sample, real.sample)
        for batch in drawn(fake_share=1.0)
        for fake, real in zip(batch[::2], batch[1::2], strict=True)
    ]
    assert {facts.domains[real] for fake, real in pairs if facts.domains[fake] == "page"} == {"page"}
    assert {facts.domains[real] for fake, real in pairs if facts.domains[fake] == "fakes only"} == {"portraits", "page"}
    assert len({fake for fake, _ in pairs}) == 3


def test_drawn_epochs_depend_on_seed_and_epoch_and_are_divided_among_devices() -> None:
    assert drawn() == drawn()
    assert drawn() != drawn(epoch=1)
    assert drawn() != drawn(seed=1)
    assert len(drawn(num_faces=100, world_size=4)) == 12


def test_without_true_fakes_every_pair_has_a_made_fake() -> None:
    facts = Pool([False] * 4, ["d"] * 4, list("abcd"), list("abcd"))
    batches = draw_epoch(
        facts, epoch=0, seed=0, batch_size=4, num_faces=16, fake_share=0.5, domain_exponent=0.5, world_size=1
    )
    assert [len(batch) for batch in batches] == [2] * 4
    assert all(key.is_forged for batch in batches for key in batch)


def test_a_fake_video_is_paired_with_a_real_video_if_its_domain_has_no_reals() -> None:
    sources = [f"portrait{i}" for i in range(50)] + ["real clip"] * 3 + ["fake clip"] * 3 + ["fake picture"]
    domains = ["portraits"] * 50 + ["clips"] * 3 + ["fakes only"] * 4
    facts = Pool([False] * 53 + [True] * 4, domains, sources, sources)
    batches = draw_epoch(
        facts, epoch=0, seed=0, batch_size=8, num_faces=800, fake_share=1.0, domain_exponent=1.0, world_size=1
    )
    keys = [key.sample for batch in batches for key in batch]
    pairs = list(zip(keys[::2], keys[1::2], strict=True))
    partners_of_clip = {sources[real] for fake, real in pairs if sources[fake] == "fake clip"}
    partners_of_picture = {sources[real] for fake, real in pairs if sources[fake] == "fake picture"}
    assert partners_of_clip == {"real clip"}
    assert len(partners_of_picture) > 10
