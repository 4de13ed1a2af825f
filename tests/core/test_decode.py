"""sidecar.core.decode: a readable copy of a compressed body, bounded."""

import gzip
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.decode import Decoder
from tests.core.oracle import split

MiB = 1 << 20
TEXT = b"".join(b"data: %d\n\n" % number for number in range(200))


def packed(text, encoding=b"gzip"):
    return zlib.compress(text) if encoding == b"deflate" else gzip.compress(text, mtime=0)


def unpack(pieces, encoding=b"gzip"):
    decoder = Decoder(encoding)
    return b"".join(decoder.feed(piece) for piece in pieces), decoder.failed


@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP", b" x-gzip ", b"deflate"])
@given(data=st.data())
def test_split_anywhere(encoding, data):
    text = data.draw(st.binary(max_size=40)) * 5
    _, pieces = data.draw(split(st.just(packed(text, encoding))))
    assert unpack(pieces, encoding) == (text, False)


def test_what_was_flushed_can_be_read_at_once():
    deflate, decoder = zlib.compressobj(wbits=31), Decoder(b"gzip")
    for number in range(20):
        event = b"data: %d\n\n" % number
        assert decoder.feed(deflate.compress(event) + deflate.flush(zlib.Z_SYNC_FLUSH)) == event
    assert not decoder.failed


def test_a_body_of_two_members_is_read_to_its_end_or_not_believed():
    text, failed = unpack([packed(b"one, "), packed(b"two")])
    assert failed or text == b"one, two"


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, gzip", b""])
def test_an_unknown_encoding_is_not_readable(encoding):
    assert unpack([packed(b"x")], encoding) == (b"", True)


@given(data=st.data())
def test_damage_is_never_raised(data):
    body = bytearray(packed(TEXT, b"gzip"))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    text, failed = unpack(data.draw(split(st.just(bytes(body))))[1])
    # The checksum is the last thing to come: until it, wrong bytes may have been believed.
    assert failed or len(text) <= 2 * len(TEXT)


@pytest.mark.parametrize(
    ("encoding", "at"), [(b"gzip", 0), (b"gzip", -8), (b"gzip", -1), (b"deflate", 0), (b"deflate", -1)]
)
def test_damage_is_noticed(encoding, at):
    body = bytearray(packed(TEXT, encoding))
    body[at] ^= 1
    decoder = Decoder(encoding)
    assert decoder.feed(bytes(body)) == b""
    assert decoder.failed


def test_no_bytes_raise_and_nothing_comes_after_a_failure():
    decoder = Decoder(b"gzip")
    assert decoder.feed(b"<html>not compressed</html>") == b""
    assert decoder.failed
    assert decoder.feed(packed(b"x")) == b""


@pytest.mark.parametrize("pieces", [1, 100])
def test_a_bomb_is_given_up_on_and_not_unpacked(pieces):
    bomb = packed(bytes(64 * MiB))
    step = -(-len(bomb) // pieces)
    decoder = Decoder(b"gzip")
    tracemalloc.start()
    try:
        for at in range(0, len(bomb), step):
            decoder.feed(bomb[at : at + step])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.failed
    assert most < 20 * MiB


def test_an_ordinary_long_body_is_no_bomb():
    text = random.Random(1).randbytes(4 * MiB)
    assert unpack([packed(text)]) == (text, False)
