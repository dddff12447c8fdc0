"""The handshake as the client sees it, against our server's half and against servers that lie."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.errors import BrokenPeer, RequestFailed
from cowtree.nbd import negotiation, wire
from cowtree.nbd.export import Blocks, transmission_flags
from cowtree.nbd.opening import REPLY_BYTES_MAX, Opened, Opening, Send, StartTls
from tests.nbd.ram import MIB, Ram, Shelf

RAM = Ram(MIB)
SHELF = Shelf(disk=RAM, other=Ram(8192, is_read_only=True, blocks=Blocks(512, 4096, MIB)))
GREETING = negotiation.Negotiation.greeting()
FLAGS = wire.HAS_FLAGS | wire.SEND_FLUSH


def talk(export: str, *, wants_tls: bool = False, **how: Any) -> Any:
    """Both halves, until the client has opened something."""
    server, client = negotiation.Negotiation(SHELF, **how), Opening(export, wants_tls=wants_tls)
    to_client: list[bytes] = [server.greeting()]
    while to_client:
        events = [*client.receive(to_client.pop(0))]
        while events:
            event = events.pop(0)
            if isinstance(event, Opened):
                return event
            if isinstance(event, StartTls):
                server.secure()
                events += client.secure()
                continue
            to_client += [each.data for each in server.receive(event.data) if isinstance(each, negotiation.Send)]
    return None


def test_both_halves_understand_each_other():
    flags = transmission_flags(RAM)
    assert talk("disk") == Opened(MIB, flags, Blocks(), True, 0)
    assert talk("") == talk("disk")
    assert talk("other").blocks == Blocks(512, 4096, MIB)


def test_tls_comes_first_when_it_is_wanted():
    assert talk("disk", wants_tls=True, offers_tls=True, needs_tls=True).size_bytes == MIB
    with pytest.raises(RequestFailed, match="there is no TLS here"):
        talk("disk", wants_tls=True)


def test_a_server_that_needs_tls_says_so():
    with pytest.raises(RequestFailed, match="the server wants TLS first") as caught:
        talk("disk", offers_tls=True, needs_tls=True)
    assert caught.value.facts["reply"] == wire.ERR_TLS_REQD


def test_an_export_that_is_not_there_is_refused():
    with pytest.raises(RequestFailed, match="Requested export not available") as caught:
        talk("third")
    assert caught.value.facts["reply"] == wire.ERR_UNKNOWN


def reply(number: int, kind: int, data: bytes = b"") -> bytes:
    return wire.option_reply(number, kind, data)


def begun(greeting: bytes = GREETING, export: str = "disk") -> Opening:
    client = Opening(export)
    (sent,) = client.receive(greeting)
    assert isinstance(sent, Send)
    assert sent.data.endswith(wire.option(wire.OPT_STRUCTURED_REPLY))
    return client


def going() -> Opening:
    """A handshake that waits for the answer to GO."""
    client = begun()
    (sent,) = client.receive(reply(wire.OPT_STRUCTURED_REPLY, wire.ERR_UNSUP))
    assert sent == Send(wire.option(wire.OPT_GO, wire.counted("disk") + b"\0\1\0\3"))
    return client


EXPORT = wire.INFO_EXPORT_REPLY.pack(info=0, size_bytes=MIB, flags=FLAGS)


def blocks(minimum: int, preferred: int, maximum: int) -> bytes:
    return wire.INFO_BLOCK_SIZE_REPLY.pack(info=3, minimum=minimum, preferred=preferred, maximum=maximum)


def test_what_a_server_cannot_do_is_done_without():
    client = going()
    told = reply(wire.OPT_GO, wire.REP_INFO, EXPORT) + reply(wire.OPT_GO, wire.REP_INFO, b"\0\1disk")
    events = list(client.receive(told + reply(wire.OPT_GO, wire.REP_ACK) + b"more"))
    assert events == [Opened(MIB, FLAGS, Blocks(), False, None)]
    assert client.leftover == b"more"


def test_contexts_that_are_refused_are_done_without():
    client = begun()
    list(client.receive(reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ACK)))
    (sent,) = client.receive(reply(wire.OPT_SET_META, wire.ERR_UNSUP))
    assert isinstance(sent, Send)
    told = reply(wire.OPT_GO, wire.REP_INFO, EXPORT) + reply(wire.OPT_GO, wire.REP_ACK)
    assert list(client.receive(told)) == [Opened(MIB, FLAGS, Blocks(), True, None)]


def test_the_context_of_ours_is_found_among_others():
    client = begun()
    list(client.receive(reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ACK)))
    list(client.receive(reply(wire.OPT_SET_META, wire.REP_META_CONTEXT, b"\0\0\0\7base:allocation")))
    list(client.receive(reply(wire.OPT_SET_META, wire.REP_META_CONTEXT, b"\0\0\0\x09other:one")))
    list(client.receive(reply(wire.OPT_SET_META, wire.REP_ACK)))
    told = reply(wire.OPT_GO, wire.REP_INFO, EXPORT) + reply(wire.OPT_GO, wire.REP_ACK)
    assert list(client.receive(told)) == [Opened(MIB, FLAGS, Blocks(), True, 7)]


@pytest.mark.parametrize(("flags", "zeroes"), [(1, bytes(124)), (3, b"")])
def test_an_old_server_is_asked_in_the_old_way(flags: int, zeroes: bytes):
    client = begun(GREETING[:16] + struct.pack(">H", flags))
    list(client.receive(reply(wire.OPT_STRUCTURED_REPLY, wire.ERR_UNSUP)))
    (sent,) = client.receive(reply(wire.OPT_GO, wire.ERR_UNSUP))
    assert sent == Send(wire.option(wire.OPT_EXPORT_NAME, b"disk"))
    told = wire.EXPORT.pack(size_bytes=MIB, flags=FLAGS) + zeroes + b"more"
    events = [event for byte in told for event in client.receive(bytes([byte]))]
    assert events == [Opened(MIB, FLAGS, Blocks(), False, None)]
    assert client.leftover == b"more"


LIES = {
    "no server": (None, b"HTTP/1.1 400 Bad Request"),
    "oldstyle": (None, b"NBDMAGIC" + bytes.fromhex("00420281861253") + bytes(9)),
    "not fixed": (None, GREETING[:16] + b"\0\0"),
    "no answer": (begun, bytes(20)),
    "another option": (begun, reply(wire.OPT_LIST, wire.REP_ACK)),
    "long": (begun, reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ACK)[:16] + struct.pack(">I", REPLY_BYTES_MAX + 1)),
    "odd answer": (begun, reply(wire.OPT_STRUCTURED_REPLY, wire.REP_SERVER)),
    "no size": (going, reply(wire.OPT_GO, wire.REP_ACK)),
    "short info": (going, reply(wire.OPT_GO, wire.REP_INFO, EXPORT[:-1])),
    "no info": (going, reply(wire.OPT_GO, wire.REP_INFO, b"\0")),
    "no blocks": (going, reply(wire.OPT_GO, wire.REP_INFO, blocks(0, 4096, MIB))),
    "odd blocks": (going, reply(wire.OPT_GO, wire.REP_INFO, blocks(513, 4096, MIB))),
    "huge blocks": (going, reply(wire.OPT_GO, wire.REP_INFO, blocks(MIB, MIB, MIB))),
    "small blocks": (going, reply(wire.OPT_GO, wire.REP_INFO, blocks(512, 4096, 0))),
    "endless": (going, reply(wire.OPT_GO, wire.REP_INFO, b"\0\1disk") * 300),
    "huge export": (
        going,
        reply(wire.OPT_GO, wire.REP_INFO, EXPORT[:2] + b"\xff" * 8 + EXPORT[10:]) + reply(wire.OPT_GO, wire.REP_ACK),
    ),
}


@pytest.mark.parametrize(("begin", "data"), LIES.values(), ids=LIES)
def test_a_server_that_lies_is_left(begin: Any, data: bytes):
    client = begin() if begin else Opening("disk")
    with pytest.raises(BrokenPeer):
        list(client.receive(data))


def test_a_server_that_speaks_before_tls_begins_is_left():
    client = Opening("disk", wants_tls=True)
    list(client.receive(GREETING))
    events = list(client.receive(reply(wire.OPT_STARTTLS, wire.REP_ACK)))
    assert events == [StartTls()]
    client = Opening("disk", wants_tls=True)
    list(client.receive(GREETING))
    heard = client.receive(reply(wire.OPT_STARTTLS, wire.REP_ACK) + b"smuggled")
    assert next(heard) == StartTls()
    with pytest.raises(BrokenPeer, match="before TLS"):
        list(client.secure())


def test_what_a_server_says_of_a_refusal_is_one_line():
    client = going()
    with pytest.raises(RequestFailed, match=r"\(it says: no such disk here\)"):
        list(client.receive(reply(wire.OPT_GO, wire.ERR_UNKNOWN, b"no such\n\n  disk here")))


KINDS = st.sampled_from([wire.REP_ACK, wire.REP_INFO, wire.REP_META_CONTEXT, wire.ERR_UNSUP, wire.ERR_UNKNOWN, 99])
OPTIONS = st.sampled_from([1, 5, 7, 8, 10])
DATA = st.one_of(st.binary(max_size=40), st.just(EXPORT), st.builds(blocks, *[st.integers(0, 1 << 20)] * 3))


@given(st.lists(st.one_of(st.binary(max_size=30), st.builds(reply, OPTIONS, KINDS, DATA)), max_size=12), st.booleans())
def test_whatever_a_server_says_it_opens_is_refused_or_is_left(pieces, wants_tls):
    client = Opening("disk", wants_tls=wants_tls)
    try:
        for piece in [GREETING, *pieces]:
            for event in client.receive(piece):
                if isinstance(event, StartTls):
                    list(client.secure())
            assert len(client.leftover) <= REPLY_BYTES_MAX + 20
    except (BrokenPeer, RequestFailed):
        pass
