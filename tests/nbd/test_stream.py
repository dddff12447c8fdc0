"""Bytes that come in other pieces than they are taken in, and go out whole."""

import random
import socket
import threading

import pytest

from cowtree.nbd.stream import INBOX_BYTES, LARGE_KEPT_BYTES_MAX, Gone, Inbox, send


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()


def test_what_came_before_is_taken_first(pair):
    left, right = pair
    inbox = Inbox(right, b"abc")
    left.sendall(b"defghi")
    assert bytes(inbox.take(5)) == b"abcde"
    assert inbox.has(4)
    assert not inbox.has(5)
    assert bytes(inbox.take(4)) == b"fghi"


def test_a_piece_is_taken_into_memory_of_its_own(pair):
    left, right = pair
    left.sendall(b"abcdefgh")
    inbox, own = Inbox(right), bytearray(6)
    assert bytes(inbox.take(1)) == b"a"
    inbox.take_into(memoryview(own))
    assert own == b"bcdefg"
    assert bytes(inbox.take(1)) == b"h"


def test_the_end_is_told(pair):
    left, right = pair
    left.sendall(b"abc")
    left.close()
    for act in (lambda inbox: inbox.take(4), lambda inbox: inbox.take_into(memoryview(bytearray(4)))):
        with pytest.raises(Gone):
            act(Inbox(right))


def test_pieces_of_all_lengths_come_whole_and_in_order(pair, seed: int):
    left, right = pair
    rng = random.Random(seed)
    lengths = [rng.choice((rng.randrange(100), rng.randrange(INBOX_BYTES), rng.randrange(3 << 20))) for _ in range(20)]
    data = rng.randbytes(sum(lengths))
    sender = threading.Thread(target=send, args=(left, [data[:100], memoryview(data)[100:5000], data[5000:]]))
    sender.start()
    inbox, offset = Inbox(right), 0
    for length in lengths:
        if rng.random() < 0.5:
            piece = bytes(inbox.take(length))
        else:
            own = bytearray(length)
            inbox.take_into(memoryview(own))
            piece = bytes(own)
        assert piece == data[offset : offset + length]
        offset += length
    sender.join()


def test_memory_for_what_is_huge_is_not_kept(pair):
    left, right = pair
    inbox, data = Inbox(right), bytes(LARGE_KEPT_BYTES_MAX)
    for length in (LARGE_KEPT_BYTES_MAX, LARGE_KEPT_BYTES_MAX * 4):
        sender = threading.Thread(target=send, args=(left, [data] * (length // len(data))))
        sender.start()
        assert len(inbox.take(length)) == length
        sender.join()
    assert len(inbox._large) == LARGE_KEPT_BYTES_MAX


def test_nothing_is_sent_well(pair):
    left, right = pair
    send(left, [])
    send(left, [b"", b"a"])
    assert right.recv(10) == b"a"
