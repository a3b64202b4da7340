"""Consul without a server: how transactions are written, and what a feed makes of answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

import pytest

from pyvxlan.daemon.errors import (
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import (
    ABSENT,
    PRESENT,
    Check,
    Delete,
    Event,
    Item,
    Live,
    Put,
    Removal,
    Snapshot,
    Stale,
    Write,
)
from pyvxlan.daemon.kv.consul.feed import PAUSE_MAX_S, Feed, Listing, Pace, compare
from pyvxlan.daemon.kv.consul.verbs import read_items, refusal, to_body, to_verbs

# --- transactions -------------------------------------------------------------------------------


def verbs(*args: Check | Write | Delete, session: str | None = None) -> list[tuple[object, ...]]:
    checks = [arg for arg in args if isinstance(arg, Check)]
    ops = [arg for arg in args if not isinstance(arg, Check)]
    return [tuple(verb.values()) for verb in to_verbs("p/", checks, ops, session)]


def test_conditions_come_before_changes() -> None:
    assert verbs(
        Write("a", b"1"), Check("b", ABSENT), Delete("c"), Check("d", PRESENT), Check("e", 7)
    ) == [
        ("check-not-exists", "p/b"),
        ("get", "p/d"),
        ("check-index", "p/e", 7),
        ("delete", "p/a"),
        ("set", "p/a", "MQ=="),
        ("delete", "p/c"),
    ]


def test_key_that_must_be_absent_is_not_deleted_first() -> None:
    assert verbs(Check("a", ABSENT), Write("a", b"")) == [
        ("check-not-exists", "p/a"),
        ("set", "p/a", ""),
    ]


def test_bound_key_is_locked_and_needs_no_other_guard() -> None:
    assert verbs(Write("a", b"1", bound=True), Write("b", b"1"), session="s") == [
        ("delete", "p/a"),
        ("lock", "p/a", "s", "MQ=="),
        ("delete", "p/b"),
        ("set", "p/b", "MQ=="),
    ]


def test_session_that_binds_nothing_locks_a_key_of_its_own() -> None:
    assert verbs(Delete("b"), session="s") == [
        ("lock", "p/ sessions/s", "s"),
        ("delete", "p/b"),
    ]


def test_largest_transaction_has_at_most_65_verbs() -> None:
    ops = [Write(f"k{number}", b"x") for number in range(32)]
    assert len(to_verbs("p/", [], ops, "s")) == 65


@pytest.mark.parametrize(
    ("at", "what", "error", "said"),
    [
        (0, 'key "p/a" exists', StoreConflictError, "^a exists$"),
        (1, 'key "p/b" doesn\'t exist', StoreConflictError, "^b does not exist$"),
        (2, "is stale", StoreConflictError, "^c is not at revision 9 any more$"),
        (4, 'invalid session "s"', StoreConflictError, "^session s has expired$"),
        (4, "lock is already held", StoreConflictError, "^d: lock is already held$"),
        (4, 'failed to lock key "p/d" due to lock delay', StoreUnavailableError, "lock delay"),
        (0, "Permission denied: token lacks it", StoreUnavailableError, "^no right: Permission"),
        (99, "out of range", StoreUncertainError, "can't be read"),
    ],
)
def test_refusal_tells_conflict_from_lack_of_rights(
    at: int, what: str, error: type[StoreError], said: str
) -> None:
    checks = [Check("a", ABSENT), Check("b", PRESENT), Check("c", 9)]
    asked = to_verbs("p/", checks, [Write("d", b"x", bound=True)], "s")
    body = json.dumps({"Results": None, "Errors": [{"OpIndex": at, "What": what}]}).encode()
    with pytest.raises(error, match=said):
        raise refusal(body, asked, "p/", "no right")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"Errors": []}', b'{"Errors": null}', b"[1]"])
def test_refusal_that_is_not_readable_is_uncertain(body: bytes) -> None:
    with pytest.raises(StoreUncertainError):
        raise refusal(body, to_verbs("p/", [Check("a", ABSENT)], [], None), "p/", "no right")


def test_body_holds_each_verb() -> None:
    assert json.loads(to_body([{"Verb": "delete", "Key": "a"}])) == [
        {"KV": {"Verb": "delete", "Key": "a"}}
    ]


def test_items_leave_out_what_no_caller_sees() -> None:
    entries = [
        {"Key": "p/", "Value": None, "ModifyIndex": 1},
        {"Key": "p/ cluster", "Value": "eA==", "ModifyIndex": 2},
        {"Key": "p/ sessions/s", "Value": None, "ModifyIndex": 3},
        {"Key": "p/a", "Value": "MQ==", "ModifyIndex": 4},
        {"Key": "p/b", "Value": None, "ModifyIndex": 5},
    ]
    assert read_items(json.dumps(entries).encode(), "p/") == {
        "a": Item("a", b"1", 4),
        "b": Item("b", b"", 5),
    }


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", b"[1]", b'[{"Key": "p/a", "Value": "*", "ModifyIndex": 1}]']
)
def test_answer_that_is_not_consuls_is_refused(body: bytes) -> None:
    with pytest.raises(StoreError, match="none of Consul's"):
        read_items(body, "p/")


# --- listings -----------------------------------------------------------------------------------


def listing(index: int, **items: tuple[bytes, int]) -> Listing:
    return Listing({f"k/{key}": Item(f"k/{key}", *found) for key, found in items.items()}, index, 9)


def test_comparison_tells_changes_in_order() -> None:
    changes, is_older = compare(
        listing(9, a=(b"1", 3), b=(b"1", 9), c=(b"1", 5)),
        listing(12, a=(b"2", 12), b=(b"1", 9), d=(b"1", 11)),
    )
    assert changes == [Put(Item("k/d", b"1", 11)), Put(Item("k/a", b"2", 12)), Removal("k/c", 12)]
    assert not is_older


@pytest.mark.parametrize(
    ("after", "older"),
    [
        (listing(12, a=(b"1", 3)), False),  # b was deleted at 12
        (listing(9, a=(b"1", 3)), True),  # b vanished without that
        (listing(3, a=(b"1", 3)), True),
        (listing(14, a=(b"1", 2), b=(b"1", 9)), True),  # a stepped back
        (listing(14, a=(b"2", 3), b=(b"1", 9)), True),  # another a at the same revision
        (listing(5, a=(b"1", 3), b=(b"1", 9)), False),  # deletions of others were forgotten
        (listing(12, a=(b"1", 11), b=(b"1", 12)), False),
    ],
)
def test_comparison_finds_an_older_state(after: Listing, *, older: bool) -> None:
    assert compare(listing(9, a=(b"1", 3), b=(b"1", 9)), after)[1] is older


def test_pace_lets_a_burst_through_and_then_the_rate() -> None:
    pace = Pace(rate=5, burst=10)
    now = pace._at
    assert [pace.pay(1, now) for _ in range(12)] == pytest.approx([0] * 10 + [0.2, 0.4])
    assert pace.pay(1, now + 0.6) == pytest.approx(0.0, abs=1e-9)
    assert pace.pay(10_000, now + 100) == PAUSE_MAX_S


# --- feeds --------------------------------------------------------------------------------------


class Script:
    """A feed, its one watch, and what the store answers to it."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[Listing | StoreError] = asyncio.Queue()
        self.asked: list[int] = []
        self.verified = 0
        self.restored = 0
        self.replaced_at_verify = 0
        self.feed = Feed("k/", self.fetch, self.verify, self.restore)
        self.watch = self.feed.watch("k/")

    async def fetch(self, _: str, index: int) -> Listing:
        self.asked.append(index)
        answer = await self.answers.get()
        if isinstance(answer, StoreError):
            raise answer
        return answer

    async def verify(self) -> None:
        self.verified += 1
        if self.verified == self.replaced_at_verify:
            self.feed.begin_anew()

    def restore(self) -> None:
        self.restored += 1
        self.feed.begin_anew()

    async def told(self, *answers: Listing | StoreError) -> Event:
        """Gives answers, and what the watch says next."""
        for answer in answers:
            self.answers.put_nowait(answer)
        async with asyncio.timeout(10):
            return await anext(self.watch)

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.asked) < times:
                await asyncio.sleep(0)


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    made = Script()
    yield made
    await made.watch.aclose()
    await made.feed.close()


FIRST = listing(9, a=(b"1", 5))


def values(event: Event) -> Mapping[str, bytes]:
    assert isinstance(event, Snapshot)
    return {key: item.value for key, item in event.items.items()}


async def test_feed_goes_on_from_the_index_of_an_answer(script: Script) -> None:
    assert values(await script.told(FIRST)) == {"k/a": b"1"}
    assert await script.told(listing(12, a=(b"2", 12))) == Put(Item("k/a", b"2", 12))
    await script.until_asked(3)
    assert script.asked == [0, 9, 12]
    assert script.verified == 1


async def test_index_that_goes_back_is_dropped_and_nothing_told(script: Script) -> None:
    assert values(await script.told(FIRST)) == {"k/a": b"1"}
    later = listing(12, a=(b"2", 12))
    assert await script.told(listing(5, a=(b"1", 5)), later) == Put(Item("k/a", b"2", 12))
    assert script.asked[:3] == [0, 9, 0]
    assert script.restored == 0


async def test_answer_without_anything_new_makes_the_feed_look_who_answers(script: Script) -> None:
    script.replaced_at_verify = 2
    assert values(await script.told(FIRST)) == {"k/a": b"1"}
    assert values(await script.told(FIRST, listing(3, a=(b"0", 3)))) == {"k/a": b"0"}
    assert script.asked[:3] == [0, 9, 0]


async def test_older_state_is_a_snapshot(script: Script) -> None:
    old = listing(3, a=(b"0", 3))
    assert values(await script.told(FIRST)) == {"k/a": b"1"}
    assert values(await script.told(old, old)) == {"k/a": b"0"}
    assert script.restored == 1


async def test_loss_of_most_keys_is_believed_of_the_same_store(script: Script) -> None:
    assert values(await script.told(FIRST)) == {"k/a": b"1"}
    assert await script.told(listing(12)) == Removal("k/a", 12)
    assert script.verified == 2


async def test_loss_of_most_keys_is_not_believed_of_another_store(script: Script) -> None:
    script.replaced_at_verify = 2
    assert values(await script.told(FIRST)) == {"k/a": b"1"}
    assert values(await script.told(listing(12), listing(13))) == {}
    assert script.asked[:3] == [0, 9, 0]


async def test_outage_is_told_once_and_its_end_after_what_was_missed(script: Script) -> None:
    away = StoreUnavailableError("away")
    assert values(await script.told(FIRST)) == {"k/a": b"1"}
    assert await script.told(away, away) == Stale("away")
    assert await script.told(listing(12, a=(b"2", 12))) == Put(Item("k/a", b"2", 12))
    assert await script.told() == Live()
    assert script.asked[:4] == [0, 9, 0, 0]


async def test_feed_that_never_got_an_answer_says_why(script: Script) -> None:
    assert await script.told(StoreUnavailableError("away")) == Stale("away")
    assert values(await script.told(FIRST)) == {"k/a": b"1"}
    assert await script.told() == Live()


async def test_interrupted_question_is_asked_anew_from_the_start(script: Script) -> None:
    assert values(await script.told(FIRST)) == {"k/a": b"1"}
    await script.until_asked(2)
    script.feed.interrupt()
    assert await script.told(listing(12, a=(b"2", 12))) == Put(Item("k/a", b"2", 12))
    assert script.asked[:3] == [0, 9, 0]
