"""What a client is told of an export."""

from cowtree.nbd import wire
from cowtree.nbd.export import Blocks, transmission_flags
from tests.nbd.ram import Ram


def test_what_can_be_written_offers_all_that_writes():
    flags = transmission_flags(Ram(512))
    for each in (wire.SEND_FUA, wire.SEND_TRIM, wire.SEND_WRITE_ZEROES, wire.SEND_FAST_ZERO, wire.SEND_FLUSH):
        assert flags & each
    assert not flags & wire.READ_ONLY


def test_what_is_read_only_offers_nothing_that_writes():
    flags = transmission_flags(Ram(512, is_read_only=True))
    for each in (wire.SEND_FUA, wire.SEND_TRIM, wire.SEND_WRITE_ZEROES, wire.SEND_FAST_ZERO):
        assert not flags & each
    assert flags & wire.READ_ONLY
    assert flags & wire.HAS_FLAGS


def test_several_connections_see_the_same():
    assert transmission_flags(Ram(512)) & wire.CAN_MULTI_CONN


def test_block_sizes_are_those_of_the_protocols_custom():
    assert Blocks() == (1, 4096, 32 << 20)
