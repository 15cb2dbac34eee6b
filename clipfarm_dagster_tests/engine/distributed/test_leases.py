"""Each item gets one outcome, whichever actors are lost, and only what ends processes is blamed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from clipfarm_dagster.engine.distributed.leases import ENDS_ALONE, LeaseBook


@dataclass
class World:
    """Actors that compute what they are lent, one item at a time, and end with poison."""

    book: LeaseBook
    poison: set[str]
    computed: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    blamed: list[str] = field(default_factory=list)
    actors: int = 0
    hands: dict[str, list[tuple[object, list[str]]]] = field(default_factory=dict)

    def start(self) -> None:
        self.actors += 1
        name = f"actor {self.actors}"
        self.hands[name] = []
        self.book.add_actor(name)

    def lend(self) -> None:
        for lease in self.book.next_leases():
            assert isinstance(lease.actor, str)
            others = self.hands[lease.actor]
            assert not (others and lease.alone), "a suspect is alone"
            self.hands[lease.actor].append((lease, list(lease.video_ids)))

    def step(self, name: str) -> None:
        """One actor computes its next item."""
        if not self.hands[name]:
            return
        lease, left = self.hands[name][0]
        if not left:
            self.hands[name].pop(0)
            self.book.end(lease)  # type: ignore[arg-type]
            return
        video_id = left.pop(0)
        if video_id in self.poison:
            self.ends[video_id] += 1
            self.lose(name, with_node=False)
        elif self.book.settle(video_id):
            self.computed[video_id] += 1

    def lose(self, name: str, *, with_node: bool) -> None:
        del self.hands[name]
        self.blamed += self.book.lose_actor(name, with_node=with_node)
        self.start()


IDS = [f"v{n}" for n in range(40)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    poison=st.sets(st.sampled_from(IDS), max_size=4),
    moves=st.lists(st.tuples(st.integers(0, 2), st.sampled_from("sssssssssn")), max_size=120),
    size=st.integers(1, 9),
    per_actor=st.integers(1, 3),
)
def test_each_item_has_one_outcome_and_only_poison_is_blamed(
    poison: set[str], moves: list[tuple[int, str]], size: int, per_actor: int
) -> None:
    world = World(LeaseBook(IDS, size=size, per_actor=per_actor), poison)
    for _ in range(3):
        world.start()
    for number, move in moves:
        world.lend()
        name = list(world.hands)[number]
        if move == "n":
            world.lose(name, with_node=True)
        else:
            world.step(name)
    for _ in range(10_000):
        if not world.book.open:
            break
        world.lend()
        for name in list(world.hands):
            if name in world.hands:
                world.step(name)

    assert not world.book.open
    assert sorted(world.blamed) == sorted(poison)
    assert world.computed == Counter(set(IDS) - poison)
    assert all(ENDS_ALONE <= count <= ENDS_ALONE + 1 for count in world.ends.values())


def test_a_process_that_ends_for_another_reason_blames_nobody() -> None:
    book = LeaseBook(["a", "b"], size=2, per_actor=1)
    for turn in range(2):  # each is alone with one that ends, once
        book.add_actor(turn)
        book.next_leases()
        assert book.lose_actor(turn, with_node=False) == []
    book.add_actor("last")

    assert [lease.alone for lease in book.next_leases()] == [True]
    assert book.open == {"a", "b"}


def test_what_is_in_hand_on_lost_nodes_again_and_again_goes_out_alone() -> None:
    book = LeaseBook(["a", "b"], size=2, per_actor=1)
    for turn in range(3):
        book.add_actor(turn)
        [lease] = book.next_leases()
        assert not lease.alone
        assert book.lose_actor(turn, with_node=True) == []
    book.add_actor("last")

    assert [lease.alone for lease in book.next_leases()] == [True]


def test_a_second_outcome_counts_for_nothing() -> None:
    book = LeaseBook(["a"], size=2, per_actor=1)

    assert book.settle("a")
    assert not book.settle("a")
    assert not book.settle("unknown")


def test_leases_become_smaller_towards_the_end_and_no_actor_is_left_out() -> None:
    book = LeaseBook([f"v{n}" for n in range(100)], size=32, per_actor=2)
    book.add_actor("x")
    book.add_actor("y")

    sizes = [(lease.actor, len(lease.video_ids)) for lease in book.next_leases()]

    assert [actor for actor, _ in sizes] == ["x", "y", "x", "y"]
    assert [size for _, size in sizes] == [13, 11, 10, 9]
