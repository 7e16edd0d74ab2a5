"""A name has one place in the agenda."""

from datetime import UTC, datetime, timedelta

from tlsproxy.certs.agenda import Agenda

NOW = datetime(2027, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_what_is_due_comes_in_order_and_once() -> None:
    agenda = Agenda()
    for hour, name in ((3, "c"), (1, "a"), (2, "b")):
        agenda.put(name, NOW + hour * HOUR)
    assert agenda.next_due() == NOW + HOUR
    assert list(agenda.take_due(NOW + 2 * HOUR)) == ["a", "b"]
    assert list(agenda.take_due(NOW + 2 * HOUR)) == []
    assert len(agenda) == 1


def test_a_new_place_drops_the_old() -> None:
    agenda = Agenda()
    agenda.put("a", NOW)
    agenda.put("a", NOW + 2 * HOUR)
    assert list(agenda.take_due(NOW + HOUR)) == []
    agenda.put("a", NOW + HOUR)
    assert agenda.when("a") == NOW + HOUR
    assert list(agenda.take_due(NOW + 5 * HOUR)) == ["a"]


def test_what_is_dropped_is_not_due() -> None:
    agenda = Agenda()
    agenda.put("a", NOW)
    agenda.drop("a")
    agenda.drop("never there")
    assert (agenda.next_due(), list(agenda.take_due(NOW)), len(agenda)) == (None, [], 0)


def test_moving_names_about_leaves_no_litter() -> None:
    agenda = Agenda()
    for minute in range(10_000):
        agenda.put(f"{minute % 10}", NOW + timedelta(minutes=minute))
    assert len(agenda._heap) < 150
    assert len(list(agenda.take_due(NOW + 9_999 * timedelta(minutes=1)))) == 10


def test_names_of_one_instant_keep_their_turn() -> None:
    agenda = Agenda()
    for name in ("b", "c", "a", "b"):
        agenda.put(name, NOW)
    agenda.put("d", NOW - HOUR)
    assert [agenda.take_first() for _ in range(5)] == ["d", "b", "c", "a", None]
