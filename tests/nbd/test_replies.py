"""Answers of a server, the right ones and those that no server may give."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.errors import BrokenPeer
from cowtree.nbd import replies, wire
from cowtree.nbd.replies import Head, Question

READ, WRITE, STATUS = wire.CMD_READ, wire.CMD_WRITE, wire.CMD_BLOCK_STATUS


def reading(offset: int = 4096, length: int = 1024) -> Question:
    return Question(READ, offset, length, into=memoryview(bytearray(b"x" * length)))


def head(kind: int, payload: bytes, *, is_last: bool = True) -> Head:
    return replies.parse_chunk(wire.chunk(7, kind, payload, is_last=is_last)[: wire.CHUNK.size_bytes])


def test_heads_of_both_kinds_are_told_apart():
    simple, chunk = wire.simple_reply(7, wire.EIO), wire.chunk(7, wire.CHUNK_OFFSET_DATA, bytes(8), more_bytes=5)
    assert not replies.is_chunk(simple)
    assert replies.is_chunk(chunk)
    assert replies.parse_simple(simple) == Head(7, replies.SIMPLE, 0, True, wire.EIO)
    assert replies.parse_chunk(chunk[:20]) == Head(7, wire.CHUNK_OFFSET_DATA, 13, True)
    with pytest.raises(BrokenPeer, match="where an answer begins"):
        replies.is_chunk(bytes(16))


def test_data_goes_where_it_was_asked_for():
    whole = replies.parse_simple(wire.simple_reply(7))
    assert replies.data_range(reading(), whole) == (0, 1024)
    assert replies.data_range(reading(), replies.parse_simple(wire.simple_reply(7, wire.EIO))) is None
    assert replies.data_range(Question(WRITE, 0, 10), whole) is None
    part = Head(7, wire.CHUNK_OFFSET_DATA, 8 + 100, False)
    assert replies.data_range(reading(), part, 4096 + 50) == (50, 150)


@pytest.mark.parametrize(("offset", "length"), [(4095, 10), (4096 + 1020, 5), (0, 1), (4096, 1025), (1 << 63, 1)])
def test_data_that_nobody_asked_for_is_refused(offset: int, length: int):
    with pytest.raises(BrokenPeer, match="nobody asked for"):
        replies.data_range(reading(), Head(7, wire.CHUNK_OFFSET_DATA, 8 + length, True), offset)
    hole = wire.HOLE.pack(offset, length)
    with pytest.raises(BrokenPeer, match="nobody asked for"):
        replies.hear(reading(), head(wire.CHUNK_OFFSET_HOLE, hole), hole)


def test_a_hole_is_zeroes():
    question, hole = reading(), wire.HOLE.pack(4096 + 24, 1000)
    replies.hear(question, head(wire.CHUNK_OFFSET_HOLE, hole), hole)
    assert bytes(question.into) == b"x" * 24 + bytes(1000)
    assert question.done_bytes == 1000
    with pytest.raises(BrokenPeer, match="1000 of 1024"):
        replies.check_whole(question)
    with pytest.raises(BrokenPeer, match="the same data twice"):
        replies.count(question, 25)


def test_an_error_is_told_with_its_words_and_the_first_one_counts():
    question = reading()
    for error, words in ((wire.ENOSPC, b"it is\nfull"), (wire.EIO, b"later")):
        payload = wire.ERROR_HEAD.pack(error, len(words)) + words
        replies.hear(question, head(wire.CHUNK_ERROR, payload), payload)
    assert (question.error, question.reason) == (wire.ENOSPC, "it is full")
    replies.check_whole(question)


def test_an_unknown_error_is_one_all_the_same():
    question, payload = reading(), wire.ERROR_HEAD.pack(0, 0)
    replies.hear(question, head(0x8777, payload), payload)
    assert question.error == wire.EIO


def test_a_status_is_heard():
    question = Question(STATUS, 0, 8192)
    payload = wire.COUNT.pack(0) + wire.STATUS.pack(4096, 3) + wire.STATUS.pack(4096, 0)
    replies.hear(question, head(wire.CHUNK_BLOCK_STATUS, payload), payload)
    assert question.extents == [(4096, 3), (4096, 0)]


LIES = {
    "data for a write": (WRITE, wire.CHUNK_OFFSET_DATA, bytes(9)),
    "no data": (READ, wire.CHUNK_OFFSET_DATA, bytes(8)),
    "hole for a write": (WRITE, wire.CHUNK_OFFSET_HOLE, wire.HOLE.pack(4096, 1)),
    "short hole": (READ, wire.CHUNK_OFFSET_HOLE, bytes(11)),
    "empty hole": (READ, wire.CHUNK_OFFSET_HOLE, wire.HOLE.pack(4096, 0)),
    "status for a read": (READ, wire.CHUNK_BLOCK_STATUS, bytes(12)),
    "no status": (STATUS, wire.CHUNK_BLOCK_STATUS, bytes(4)),
    "odd status": (STATUS, wire.CHUNK_BLOCK_STATUS, bytes(13)),
    "status of nothing": (STATUS, wire.CHUNK_BLOCK_STATUS, wire.COUNT.pack(0) + wire.STATUS.pack(0, 3)),
    "short error": (READ, wire.CHUNK_ERROR, bytes(5)),
    "cut error": (READ, wire.CHUNK_ERROR, struct.pack(">IH", 5, 10) + b"short"),
    "end with data": (WRITE, wire.CHUNK_NONE, b"x"),
    "unknown": (READ, 77, b""),
}


@pytest.mark.parametrize(("asked", "kind", "payload"), LIES.values(), ids=LIES)
def test_what_no_server_may_answer_is_refused(asked: int, kind: int, payload: bytes):
    question = reading() if asked == READ else Question(asked, 4096, 1024)
    with pytest.raises(BrokenPeer):
        replies.hear(question, head(kind, payload), payload)


def test_an_end_that_goes_on_is_refused():
    with pytest.raises(BrokenPeer):
        replies.hear(reading(), head(wire.CHUNK_NONE, b"", is_last=False), b"")


KINDS = st.one_of(st.sampled_from([0, 1, 2, 5, 0x8001, 0x8002]), st.integers(0, 0xFFFF))


@given(st.sampled_from([READ, WRITE, STATUS]), KINDS, st.binary(max_size=40))
def test_whatever_is_answered_it_is_heard_or_refused(asked, kind, payload):
    question = reading() if asked == READ else Question(asked, 4096, 1024)
    with suppress(BrokenPeer):
        replies.hear(question, head(kind, payload), payload)
        replies.check_whole(question)
