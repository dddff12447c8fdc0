"""What a rule keeps: by picture, and by what must hold of any moments whatever the calendar does."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from cowtree.catalog.keep import COUNT_MAX, UNITS, Part, Stamp, choose, parse, spell
from cowtree.errors import WrongUse

BERLIN = ZoneInfo("Europe/Berlin")
# It has half an hour of daylight saving time.
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")


def in_zone(zone):
    return lambda seconds: datetime.fromtimestamp(seconds, zone)


def kept(whens: list[datetime], rule: str, zone=UTC) -> list[int]:
    """Which of these moments are kept, by their places."""
    stamps = [Stamp(number, int(when.timestamp()) * 10**9) for number, when in enumerate(whens)]
    return sorted(choose(stamps, parse(rule), in_zone(zone)))


@pytest.mark.parametrize("text", ["24h", "24h:7d:4w", "1y:12m:5last"])
def test_a_rule_is_spelled_as_it_was_given(text):
    assert spell(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "there is nothing between two colons or at an end"),
        ("24h:", "there is nothing"),
        ("h", "'h' is no count"),
        ("-1h", "'-1h' is no count"),
        ("1.5h", "'1.5h' is no count"),
        ("٣h", "'٣h' is no count"),
        ("24", "ends with none of h, d, w, m, y, last"),
        ("24H", "ends with none of"),
        ("0d", "0 is no count from 1 to 99999"),
        ("9" * 5000 + "d", "is no count from 1 to 99999"),
        ("1h:2d:3h", "it says twice how many of 'h' are kept"),
    ],
)
def test_what_is_no_rule_is_said_in_a_sentence(text, sentence):
    with pytest.raises(WrongUse, match="is no rule for what is kept") as caught:
        parse(text)
    assert sentence in str(caught.value)
    assert "--keep 24h:7d:4w" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_newest_of_each_day_is_kept():
    day = datetime(2024, 2, 28, 6, tzinfo=UTC)
    whens = [day + timedelta(hours=12 * number) for number in range(6)]
    # 28th, the leap day, and the first of March.
    assert kept(whens, "3d") == [1, 3, 5]
    assert kept(whens, "2d") == [3, 5]
    assert kept(whens, "2m") == [3, 5]
    assert kept(whens, "1y:2last") == [4, 5]


def test_days_without_a_snapshot_do_not_count():
    whens = [datetime(2020, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)]
    assert kept(whens, "2d") == [0, 1]


def test_the_hour_that_comes_twice_is_two_hours():
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    whens = [first, first + timedelta(hours=1)]
    assert [when.astimezone(BERLIN).hour for when in whens] == [2, 2]
    assert kept(whens, "2h", BERLIN) == [0, 1]
    assert kept(whens, "2d", BERLIN) == [1]


def test_a_day_ends_at_midnight_where_the_guest_is():
    whens = [datetime(2026, 7, 1, 21, 30, tzinfo=UTC), datetime(2026, 7, 1, 22, 30, tzinfo=UTC)]
    assert kept(whens, "2d", UTC) == [1]
    assert kept(whens, "2d", BERLIN) == [0, 1]


def test_weeks_go_across_the_turn_of_the_year():
    whens = [datetime(2024, 12, 30, tzinfo=UTC), datetime(2025, 1, 5, tzinfo=UTC), datetime(2025, 1, 6, tzinfo=UTC)]
    assert kept(whens, "2w") == [1, 2]


def test_of_equal_times_the_one_that_was_noted_last_is_the_newest():
    when = datetime(2026, 1, 1, tzinfo=UTC)
    assert kept([when, when, when], "1d") == [2]


def test_a_clock_that_was_set_back_makes_nothing_go_that_is_new_for_it():
    whens = [datetime(2026, 1, 10, tzinfo=UTC), datetime(2026, 1, 9, tzinfo=UTC)]
    assert kept(whens, "2d") == [0, 1]


MOMENTS = some.lists(some.integers(0, 2**32), max_size=40)
RULES = some.lists(some.sampled_from([*UNITS]), min_size=1, unique=True).flatmap(
    lambda units: some.tuples(*(some.builds(Part, some.integers(1, 30), some.just(unit)) for unit in units))
)
ZONES = some.sampled_from([UTC, BERLIN, LORD_HOWE])


@settings(max_examples=150, deadline=None)
@given(MOMENTS, RULES, ZONES)
def test_whatever_the_rule_the_newest_stays_and_no_part_keeps_more_than_it_says(seconds, rule, zone):
    stamps = [Stamp(number, second * 10**9) for number, second in enumerate(seconds)]
    found = choose(stamps, rule, in_zone(zone))
    if stamps:
        newest = max(stamps, key=lambda stamp: (stamp.created_ns, stamp.number))
        assert found[newest.number] == [*rule]
    for part in rule:
        own = [number for number, parts in found.items() if part in parts]
        periods = {part.period(stamp.number, in_zone(zone)(stamp.created_ns // 10**9)) for stamp in stamps}
        assert len(own) == min(part.limit, len(periods))


@settings(max_examples=150, deadline=None)
@given(MOMENTS, RULES, ZONES)
def test_to_tidy_twice_takes_no_more_than_to_tidy_once(seconds, rule, zone):
    stamps = [Stamp(number, second * 10**9) for number, second in enumerate(seconds)]
    once = choose(stamps, rule, in_zone(zone))
    left = [stamp for stamp in stamps if stamp.number in once]
    assert choose(left, rule, in_zone(zone)).keys() == once.keys()


@settings(max_examples=100, deadline=None)
@given(MOMENTS, RULES, ZONES, some.randoms())
def test_the_order_of_the_rows_means_nothing_and_more_is_kept_by_a_longer_rule(seconds, rule, zone, source):
    stamps = [Stamp(number, second * 10**9) for number, second in enumerate(seconds)]
    mixed = source.sample(stamps, len(stamps))
    assert choose(mixed, rule, in_zone(zone)) == choose(stamps, rule, in_zone(zone))
    larger = tuple(part._replace(limit=min(part.limit + 1, COUNT_MAX)) for part in rule)
    assert choose(stamps, rule, in_zone(zone)).keys() <= choose(stamps, larger, in_zone(zone)).keys()
