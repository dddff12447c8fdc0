"""The handshake as the server sees it: bytes in, events out."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.errors import BrokenPeer
from cowtree.nbd import wire
from cowtree.nbd.export import Blocks, transmission_flags
from cowtree.nbd.negotiation import Ended, Negotiation, Opened, Send, StartTls
from tests.nbd.ram import MIB, Ram, Shelf

FLAGS = wire.CLIENT_FLAGS.pack(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES)
RAM = Ram(MIB)
SHELF = Shelf(disk=RAM, other=Ram(512, is_read_only=True, blocks=Blocks(512, 4096, MIB)))
# A flag, two magics and two numbers are the longest that can come before an option is refused for its length.
BUFFER_BYTES_MAX = wire.OPTION_BYTES_MAX + wire.NAME_BYTES_MAX + wire.OPTION.size_bytes


def begun(**how: Any) -> Negotiation:
    """A handshake whose client has sent its flags."""
    negotiation = Negotiation(SHELF, **how)
    assert not list(negotiation.receive(FLAGS))
    return negotiation


def ask(negotiation: Negotiation, number: int, data: bytes = b"") -> list[Any]:
    """What an option leads to: (reply, data) for all that is sent, and every other event as it is."""
    found = list[Any]()
    for event in negotiation.receive(wire.option(number, data)):
        if not isinstance(event, Send):
            found.append(event)
            continue
        head = wire.OPTION_REPLY.integers(event.data)
        assert (head["magic"], head["option"]) == (wire.REPLY_MAGIC, number)
        assert len(event.data) == wire.OPTION_REPLY.size_bytes + head["length"]
        found.append((head["reply"], event.data[wire.OPTION_REPLY.size_bytes :]))
    return found


def info(name: str, *wanted: int) -> bytes:
    return wire.counted(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def meta(name: str, *queries: str) -> bytes:
    return wire.counted(name) + wire.COUNT.pack(len(queries)) + b"".join(map(wire.counted, queries))


def only(events: list[Any]) -> int:
    """The one reply there is."""
    ((reply, _),) = events
    return int(reply)


ACK = (wire.REP_ACK, b"")


def test_the_greeting_offers_the_fixed_newstyle_without_zeroes():
    assert Negotiation.greeting() == b"NBDMAGICIHAVEOPT\0\3"


@pytest.mark.parametrize("flags", [0, 2, 4, 5, 1 << 31, (1 << 32) - 1])
def test_flags_that_were_not_offered_or_are_too_few_end_the_connection(flags: int):
    with pytest.raises(BrokenPeer):
        list(Negotiation(SHELF).receive(wire.CLIENT_FLAGS.pack(flags)))


def test_the_exports_are_listed():
    names = [(wire.REP_SERVER, wire.counted("disk")), (wire.REP_SERVER, wire.counted("other"))]
    assert ask(begun(), wire.OPT_LIST) == [*names, ACK]


def test_an_export_is_opened_by_go_and_what_follows_is_left_over():
    negotiation = begun()
    events = list(negotiation.receive(wire.option(wire.OPT_GO, info("disk")) + b"request"))
    assert isinstance(events[-1], Opened)
    assert events[-1] == Opened(RAM, False, ())
    assert negotiation.leftover == b"request"


def test_info_tells_the_same_and_opens_nothing():
    told = ask(begun(), wire.OPT_INFO, info("disk"))
    assert told == ask(begun(), wire.OPT_GO, info("disk"))[:-1]
    assert told[-1] == ACK
    size_and_flags = wire.INFO_EXPORT_REPLY.pack(info=0, size_bytes=MIB, flags=transmission_flags(RAM))
    assert (wire.REP_INFO, size_and_flags) in told


def test_name_and_description_are_told_when_they_are_asked_for():
    told = ask(begun(), wire.OPT_INFO, info("disk", wire.INFO_NAME, wire.INFO_DESCRIPTION, 77))
    assert (wire.REP_INFO, b"\0\1disk") in told
    assert (wire.REP_INFO, b"\0\2some memory") in told
    assert all(data[:2] not in (b"\0\1", b"\0\2") for _, data in ask(begun(), wire.OPT_INFO, info("disk")))


@pytest.mark.parametrize(("wanted", "minimum"), [((), 1), ((wire.INFO_BLOCK_SIZE,), 512)])
def test_who_does_not_ask_for_block_sizes_need_not_keep_them(wanted: tuple[int, ...], minimum: int):
    told = ask(begun(), wire.OPT_INFO, info("other", *wanted))
    blocks = wire.INFO_BLOCK_SIZE_REPLY.pack(info=3, minimum=minimum, preferred=4096, maximum=MIB)
    assert (wire.REP_INFO, blocks) in told


def test_the_empty_name_is_the_first_export():
    assert ask(begun(), wire.OPT_GO, info(""))[-1].export is RAM


def test_an_export_is_opened_in_the_old_way_with_and_without_zeroes():
    head = wire.EXPORT.pack(size_bytes=MIB, flags=transmission_flags(RAM))
    for flags, zeroes in ((3, b""), (1, bytes(124))):
        negotiation = Negotiation(SHELF)
        list(negotiation.receive(wire.CLIENT_FLAGS.pack(flags)))
        events = list(negotiation.receive(wire.option(wire.OPT_EXPORT_NAME, b"disk")))
        assert events == [Send(head + zeroes), Opened(RAM, False, ())]


def test_the_old_way_has_no_words_for_no():
    with pytest.raises(BrokenPeer):
        ask(begun(), wire.OPT_EXPORT_NAME, b"nothing")
    with pytest.raises(BrokenPeer):
        ask(begun(offers_tls=True, needs_tls=True), wire.OPT_EXPORT_NAME, b"disk")
    with pytest.raises(BrokenPeer):
        ask(begun(), wire.OPT_EXPORT_NAME, b"x" * (wire.NAME_BYTES_MAX + 1))


def test_a_client_that_aborts_is_answered_and_done():
    negotiation = begun()
    assert ask(negotiation, wire.OPT_ABORT) == [ACK, Ended()]
    assert ask(negotiation, wire.OPT_LIST) == []


@pytest.mark.parametrize("number", [0, 4, 11, 12, 99, (1 << 32) - 1])
def test_an_option_that_nobody_knows_is_refused_and_the_next_one_is_heard(number: int):
    negotiation = begun()
    assert only(ask(negotiation, number, b"whatever")) == wire.ERR_UNSUP
    assert ask(negotiation, wire.OPT_STRUCTURED_REPLY) == [ACK]


@pytest.mark.parametrize(
    ("number", "data"),
    [
        *[(wire.OPT_LIST, b"x"), (wire.OPT_STRUCTURED_REPLY, b"x"), (wire.OPT_STARTTLS, b"x")],
        *[(number, data) for number in (wire.OPT_INFO, wire.OPT_GO) for data in (b"", b"\0\0\0", b"\0\0\0\4dis")],
        *[(number, wire.counted("disk")) for number in (wire.OPT_INFO, wire.OPT_GO)],
        *[(number, info("disk") + b"x") for number in (wire.OPT_INFO, wire.OPT_GO)],
        *[(number, wire.counted("disk") + b"\0\2\0\0") for number in (wire.OPT_INFO, wire.OPT_GO)],
        *[(number, wire.counted("disk") + b"\xff\xff") for number in (wire.OPT_INFO, wire.OPT_GO)],
        *[(number, data) for number in (wire.OPT_LIST_META, wire.OPT_SET_META) for data in (b"", wire.counted("disk"))],
        *[(number, meta("disk", "a") + b"x") for number in (wire.OPT_LIST_META, wire.OPT_SET_META)],
        *[(number, meta("disk", "a")[:-1]) for number in (wire.OPT_LIST_META, wire.OPT_SET_META)],
        (wire.OPT_SET_META, wire.counted("disk") + b"\xff\xff\xff\xff" + wire.counted("a")),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_next_option_is_heard(number: int, data: bytes):
    negotiation = begun(offers_tls=True)
    ask(negotiation, wire.OPT_STRUCTURED_REPLY)
    assert only(ask(negotiation, number, data)) == wire.ERR_INVALID
    assert ask(negotiation, wire.OPT_GO, info("disk"))[-1] == Opened(RAM, True, ())


@pytest.mark.parametrize("number", [wire.OPT_INFO, wire.OPT_GO, wire.OPT_LIST_META, wire.OPT_SET_META])
def test_an_export_that_is_not_there_is_refused(number: int):
    negotiation = begun()
    ask(negotiation, wire.OPT_STRUCTURED_REPLY)
    data = info("nothing") if number in (wire.OPT_INFO, wire.OPT_GO) else meta("nothing", "base:allocation")
    assert only(ask(negotiation, number, data)) == wire.ERR_UNKNOWN


@pytest.mark.parametrize("number", [wire.OPT_INFO, wire.OPT_GO, wire.OPT_SET_META])
def test_a_name_longer_than_the_protocol_allows_is_refused(number: int):
    negotiation = begun()
    ask(negotiation, wire.OPT_STRUCTURED_REPLY)
    name = "x" * (wire.NAME_BYTES_MAX + 1)
    assert only(ask(negotiation, number, info(name) if number != wire.OPT_SET_META else meta(name))) == wire.ERR_TOO_BIG


def test_contexts_need_structured_replies():
    for number in (wire.OPT_LIST_META, wire.OPT_SET_META):
        assert only(ask(begun(), number, meta("disk", "base:allocation"))) == wire.ERR_INVALID


def context(identity: int, name: str) -> tuple[int, bytes]:
    return wire.REP_META_CONTEXT, wire.COUNT.pack(identity) + name.encode()


@pytest.mark.parametrize(
    ("queries", "listed", "chosen"),
    [
        ((), ["base:allocation", "x-tests:odd"], []),
        (("base:",), ["base:allocation"], []),
        (("base:allocation",), ["base:allocation"], ["base:allocation"]),
        (("base:allocatio",), [], []),
        (("base:none", "other:"), [], []),
        (("x-tests:odd", "base:allocation"), ["base:allocation", "x-tests:odd"], ["base:allocation", "x-tests:odd"]),
        (("",), [], []),
    ],
)
def test_contexts_are_listed_and_chosen(queries: tuple[str, ...], listed: list[str], chosen: list[str]):
    negotiation = begun()
    ask(negotiation, wire.OPT_STRUCTURED_REPLY)
    found = ask(negotiation, wire.OPT_LIST_META, meta("disk", *queries))
    assert found == [*(context(0, name) for name in listed), ACK]
    found = ask(negotiation, wire.OPT_SET_META, meta("disk", *queries))
    assert found == [*(context(number, name) for number, name in enumerate(chosen)), ACK]
    assert ask(negotiation, wire.OPT_GO, info("disk"))[-1] == Opened(RAM, True, tuple(chosen))


def test_contexts_chosen_for_one_export_do_not_count_for_another():
    negotiation = begun()
    ask(negotiation, wire.OPT_STRUCTURED_REPLY)
    ask(negotiation, wire.OPT_SET_META, meta("disk", "base:allocation"))
    assert ask(negotiation, wire.OPT_GO, info("other"))[-1].contexts == ()


@pytest.mark.parametrize("again", [meta("disk"), meta("nothing", "base:allocation"), b"x"])
def test_the_last_choice_of_contexts_counts_even_when_it_is_refused(again: bytes):
    negotiation = begun()
    ask(negotiation, wire.OPT_STRUCTURED_REPLY)
    ask(negotiation, wire.OPT_SET_META, meta("disk", "base:allocation"))
    ask(negotiation, wire.OPT_SET_META, again)
    assert ask(negotiation, wire.OPT_GO, info("disk"))[-1].contexts == ()


def test_before_tls_nothing_else_is_done_where_it_is_needed():
    negotiation = begun(offers_tls=True, needs_tls=True)
    for number, data in (
        (wire.OPT_LIST, b""),
        (wire.OPT_GO, info("disk")),
        (wire.OPT_STRUCTURED_REPLY, b""),
        (77, b""),
    ):
        assert only(ask(negotiation, number, data)) == wire.ERR_TLS_REQD
    assert ask(negotiation, wire.OPT_STARTTLS) == [ACK, StartTls()]
    negotiation.secure()
    assert ask(negotiation, wire.OPT_GO, info("disk"))[-1].export is RAM


def test_a_client_may_leave_before_tls():
    assert ask(begun(offers_tls=True, needs_tls=True), wire.OPT_ABORT) == [ACK, Ended()]


def test_what_was_sent_or_agreed_on_before_tls_does_not_count():
    negotiation = begun(offers_tls=True)
    ask(negotiation, wire.OPT_STRUCTURED_REPLY)
    ask(negotiation, wire.OPT_SET_META, meta("disk", "base:allocation"))
    smuggled = wire.option(wire.OPT_STRUCTURED_REPLY) + wire.option(wire.OPT_GO, info("other"))
    events = list(negotiation.receive(wire.option(wire.OPT_STARTTLS) + smuggled))
    assert events[-1] == StartTls()
    assert len(events) == 2
    assert list(negotiation.receive(smuggled)) == []
    negotiation.secure()
    assert list(negotiation.receive(b"")) == []
    assert ask(negotiation, wire.OPT_GO, info("disk"))[-1] == Opened(RAM, False, ())


def test_tls_begins_once_and_only_where_it_is_offered():
    assert only(ask(begun(), wire.OPT_STARTTLS)) == wire.ERR_POLICY
    negotiation = begun(offers_tls=True)
    ask(negotiation, wire.OPT_STARTTLS)
    negotiation.secure()
    assert only(ask(negotiation, wire.OPT_STARTTLS)) == wire.ERR_INVALID


def test_something_else_than_an_option_ends_the_connection():
    with pytest.raises(BrokenPeer, match="where an option begins"):
        list(begun().receive(b"GET / HTTP/1.1\r\nHost: there\r\n\r\n"))


def test_an_option_that_is_too_long_is_refused_before_it_comes():
    with pytest.raises(BrokenPeer, match="of 4294967295 bytes"):
        list(begun().receive(wire.OPTION.pack(magic=wire.OPTION_MAGIC, option=3, length=0xFFFFFFFF)))


def test_endless_options_end_the_connection():
    negotiation = begun()
    for _ in range(wire.OPTION_COUNT_MAX):
        ask(negotiation, 99)
    with pytest.raises(BrokenPeer, match="more than 64 options"):
        ask(negotiation, 99)


def test_bytes_may_come_one_by_one():
    sent = (
        FLAGS + wire.option(wire.OPT_STRUCTURED_REPLY) + wire.option(wire.OPT_SET_META, meta("disk", "base:allocation"))
    )
    sent += wire.option(wire.OPT_GO, info("disk"))
    whole = list(Negotiation(SHELF).receive(sent))
    one_by_one = Negotiation(SHELF)
    assert [event for byte in sent for event in one_by_one.receive(bytes([byte]))] == whole
    assert whole[-1] == Opened(RAM, True, ("base:allocation",))


OPTION_NUMBERS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 77])
NAMES = st.sampled_from(["", "disk", "other", "nothing", "x" * 5000, "\udcff"])
TEXTS = st.sampled_from(["base:", "base:allocation", "x-tests:odd", "", "q" * 100])
PAYLOADS = st.one_of(
    st.binary(max_size=64),
    st.builds(lambda name, wanted: info(name, *wanted), NAMES, st.lists(st.integers(0, 65535), max_size=4)),
    st.builds(lambda name, queries: meta(name, *queries), NAMES, st.lists(TEXTS, max_size=4)),
)
PIECES = st.one_of(st.binary(max_size=40), st.builds(wire.option, OPTION_NUMBERS, PAYLOADS))


@given(st.lists(PIECES, max_size=12), st.booleans(), st.booleans())
def test_whatever_comes_no_error_but_a_broken_peer_and_no_more_is_held_than_one_option(pieces, offers_tls, needs_tls):
    negotiation = Negotiation(SHELF, offers_tls=offers_tls, needs_tls=offers_tls and needs_tls)
    try:
        for piece in [FLAGS, *pieces]:
            for event in negotiation.receive(piece):
                if isinstance(event, StartTls):
                    negotiation.secure()
                if isinstance(event, Opened | Ended):
                    return
            assert len(negotiation.leftover) <= BUFFER_BYTES_MAX
    except BrokenPeer:
        pass
