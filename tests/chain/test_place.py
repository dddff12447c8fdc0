"""What addresses mean, in all spellings that QEMU knows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.chain.address import is_export
from cowtree.chain.place import Place, from_options, parse
from cowtree.errors import ChainError


@pytest.mark.parametrize(
    ("address", "place", "shown"),
    [
        ("nbd://there", Place(host="there"), "nbd://there:10809"),
        ("nbd://there/", Place(host="there"), "nbd://there:10809"),
        ("nbd://there:99/disk", Place("disk", "there", 99), "nbd://there:99/disk"),
        ("nbd+tcp://there//disk", Place("disk", "there"), "nbd://there:10809/disk"),
        ("nbd://there/a%20b/c", Place("a b/c", "there"), "nbd://there:10809/a b/c"),
        ("nbd://[::1]:99/disk", Place("disk", "::1", 99), "nbd://[::1]:99/disk"),
        ("nbds://there/disk", Place("disk", "there", is_secure=True), "nbds://there:10809/disk"),
        ("nbd+unix:///disk?socket=/run/a b", Place("disk", socket_path="/run/a b"), "nbd+unix:///disk?socket=/run/a b"),
        ("nbd+unix:///?socket=s%3F", Place(socket_path="s?"), "nbd+unix://?socket=s?"),
        ("nbd+unix://?socket=s", Place(socket_path="s"), "nbd+unix://?socket=s"),
        (
            "nbds+unix:///disk?socket=s&tls-hostname=h&tls-certificates=/pki",
            Place("disk", socket_path="s", is_secure=True, tls_name="h", certificates="/pki"),
            "nbds+unix:///disk?socket=s",
        ),
        (
            "nbd://there?tls-creds=t",
            Place(host="there", is_secure=True, credentials="t"),
            "nbds://there:10809",
        ),
        ("nbd:there:99", Place(host="there", port=99), "nbd://there:99"),
        ("nbd:there:99:exportname=a:b=c", Place("a:b=c", "there", 99), "nbd://there:99/a:b=c"),
        ("nbd:[::1]:99:exportname=", Place(host="::1", port=99), "nbd://[::1]:99"),
        ("nbd:unix:/run/s", Place(socket_path="/run/s"), "nbd+unix://?socket=/run/s"),
        ("nbd:unix:/run/s:exportname=disk", Place("disk", socket_path="/run/s"), "nbd+unix:///disk?socket=/run/s"),
    ],
)
def test_an_address_means_a_place(address: str, place: Place, shown: str):
    assert is_export(address)
    assert parse(address) == place
    assert place.address == shown
    assert parse(place.location) == place


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nbd:", "error parsing address ''"),
        ("nbd:foo", "error parsing address 'foo'"),
        ("nbd::99", "error parsing address"),
        ("nbd:there:0", "error parsing address"),
        ("nbd:there:65536", "error parsing address"),
        ("nbd:there:x", "error parsing address"),
        ("nbd:there:\u0661", "error parsing address"),
        ("nbd:unix:", "path of the unix socket"),
        ("nbd://", "No valid URL specified: the host is missing"),
        ("nbd://there:0", "no port 0"),
        ("nbd://there:65536", "[Pp]ort out of range"),
        ("nbd://there:x", "[Pp]ort"),
        ("nbd://there/disk?socket=s", "'socket' means nothing"),
        ("nbd://[::1", "Invalid IPv6"),
        ("nbd+unix:///disk", "path of the unix socket"),
        ("nbd+unix:///disk?socket=", "path of the unix socket"),
        ("nbd+unix:///disk?socket=s&x=1", "path of the unix socket"),
        ("nbd+unix://there/disk?socket=s", "no host"),
    ],
)
def test_what_is_no_address_is_refused_with_an_example(address: str, reason: str):
    with pytest.raises(ChainError, match=reason) as caught:
        parse(address)
    assert "nbd://HOST:PORT/EXPORT" in str(caught.value)


@pytest.mark.parametrize("name", ["nbd", "./nbd:there:99", "disk.qcow2", "/nbd:x", "http://there", "nbdx:there:1", ""])
def test_a_file_is_no_address(name: str):
    assert not is_export(name)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"host": "there"}, Place(host="there")),
        ({"server.type": "inet", "server.host": "there", "server.port": "9"}, Place(host="there", port=9)),
        ({"path": "s", "export": "disk"}, Place("disk", socket_path="s")),
        ({"server.type": "unix", "server.path": "s"}, Place(socket_path="s")),
        (
            {"host": "there", "tls-creds": "t", "tls-hostname": "h"},
            Place(host="there", is_secure=True, credentials="t", tls_name="h"),
        ),
        ({"filename": "nbd://there/a"}, Place("a", "there")),
        ({"filename": "nbd://there/a", "export": "b"}, Place("b", "there")),
        ({"filename": "nbd:there:9", "tls-creds": "t"}, Place(host="there", port=9, is_secure=True, credentials="t")),
    ],
)
def test_options_mean_a_place(given: dict[str, str], place: Place):
    assert from_options("name", given) == place
    again = {f"server.{key}": value for key, value in place.server.items()} | {"export": place.export}
    again |= {"tls-creds": place.credentials, "tls-hostname": place.tls_name}
    assert from_options("name", again) == place


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "NBD server address missing"),
        ({"export": "disk"}, "NBD server address missing"),
        ({"host": "there", "path": "s"}, "path and host may not be used at the same time"),
        ({"host": "there", "port": "x"}, "'x' is no port"),
        ({"filename": "nbd:x"}, "error parsing address"),
        ({"filename": "http://there/a"}, "it begins with none of nbd://"),
        ({"filename": "disk.qcow2"}, "it begins with none of nbd://"),
    ],
)
def test_options_that_mean_no_place_are_refused(given: dict[str, str], reason: str):
    with pytest.raises(ChainError, match=reason):
        from_options("name", given)


TEXTS = st.text(max_size=60)


@given(TEXTS, st.sampled_from(["nbd:", "nbd://", "nbds://", "nbd+unix:///", "nbd:unix:"]))
def test_whatever_follows_it_is_a_place_or_refused(text, begin):
    try:
        place = parse(begin + text)
    except ChainError:
        return
    assert bool(place.host) != bool(place.socket_path)
    # Addresses go by where they lead and not by their spelling.
    assert parse(place.location).address == place.address


@given(TEXTS, TEXTS.filter(bool), TEXTS)
def test_a_location_says_all_of_a_place(export, path, name):
    export = export.lstrip("/")
    place = Place(export, socket_path=path, is_secure=True, certificates=path, tls_name=name)
    assert parse(place.location) == place
