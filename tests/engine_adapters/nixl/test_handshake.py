from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapters.nixl import handshake, wire
from engine_adapters.nixl.errors import MalformedMessage, PeerRefused
from engine_adapters.nixl.handshake import DecodeSide, Key, Offer, PrefillSide
from kvgate.config import Secret
from tests.engine_adapters.nixl.layouts import LAYOUT, with_group

SECRET = "a tenant's secret"
KEY = Key("AKID", Secret(SECRET))
DECODE = Offer("agent-d", b"how to reach it", LAYOUT, True, 1000, 5000)
PREFILL = replace(DECODE, agent="agent-p")


def sides(
    decode: Offer = DECODE, prefill: Offer = PREFILL, decode_key: Key = KEY, prefill_key: Key = KEY
) -> tuple[DecodeSide, PrefillSide]:
    return DecodeSide(decode_key, decode), PrefillSide(prefill_key, prefill)


def shake(decode: DecodeSide, prefill: PrefillSide) -> list[bytes]:
    """The four frames."""
    frames = [decode.hello()]
    frames.append(prefill.receive(frames[-1]))
    frames.append(decode.receive(frames[-1]) or b"")
    frames.append(prefill.receive(frames[-1]))
    assert decode.receive(frames[-1]) is None
    return frames


def test_both_sides_learn_what_the_other_offers() -> None:
    decode, prefill = sides()
    shake(decode, prefill)
    assert (decode.theirs, prefill.theirs) == (PREFILL, DECODE)


def test_what_is_sealed_afterwards_opens_at_the_other_side_only() -> None:
    decode, prefill = sides()
    shake(decode, prefill)
    (seal_d, open_d), (seal_p, open_p) = decode.seals(), prefill.seals()
    assert open_p.open(seal_d.seal(b"want")) == b"want"
    assert open_d.open(seal_p.seal(b"landed")) == b"landed"
    with pytest.raises(MalformedMessage):
        open_d.open(seal_d.seal(b"my own words"))


def test_neither_the_secret_nor_what_it_gives_is_sent() -> None:
    decode, prefill = sides()
    everything = b"".join(shake(decode, prefill))
    assert SECRET.encode() not in everything
    assert KEY._key not in everything


def test_prefill_without_the_key_learns_nothing_of_our_memory() -> None:
    decode, prefill = sides(prefill_key=Key("AKID", Secret("another")))
    with pytest.raises(PeerRefused, match="does not have the tenant's key"):
        decode.receive(prefill.receive(decode.hello()))


def test_decode_without_the_key_learns_nothing_of_our_memory() -> None:
    _, prefill = sides()
    mallory = DecodeSide(Key("AKID", Secret("another")), DECODE)
    prefill.receive(mallory.hello())
    offer = handshake._offer_as_wire(DECODE)
    for proof in (b"", b"\0" * 32, None, mallory._key.prove("decode offer", mallory._note(offer))):
        with pytest.raises(PeerRefused, match="does not have the tenant's key"):
            prefill.receive(wire.pack([offer, proof]))
    assert prefill.theirs is None


def test_another_access_key_is_refused_at_once() -> None:
    decode, prefill = sides(decode_key=Key("AKID2", Secret(SECRET)))
    with pytest.raises(PeerRefused, match="access keys differ"):
        prefill.receive(decode.hello())


def test_recorded_handshake_is_of_no_use_to_whoever_replays_it() -> None:
    decode, prefill = sides()
    frames = shake(decode, prefill)
    again = PrefillSide(KEY, PREFILL)
    again.receive(frames[0])
    with pytest.raises(PeerRefused, match="does not have the tenant's key"):
        again.receive(frames[2])
    decode_again = DecodeSide(KEY, DECODE)
    decode_again.hello()
    with pytest.raises(PeerRefused, match="does not have the tenant's key"):
        decode_again.receive(frames[1])


def test_our_own_words_do_not_prove_a_peer() -> None:
    """A peer that has no key sends back what it got."""
    decode = DecodeSide(KEY, DECODE)
    hello = decode.hello()
    with pytest.raises((PeerRefused, MalformedMessage)):
        decode.receive(hello)
    _, prefill = sides()
    answer = prefill.receive(DecodeSide(KEY, DECODE).hello())
    with pytest.raises((PeerRefused, MalformedMessage)):
        prefill.receive(answer)


@given(st.integers(0, 3), st.integers(0, 10_000), st.integers(1, 255))
def test_changed_byte_in_any_frame_ends_the_handshake_or_changes_nothing(number: int, at: int, change: int) -> None:
    decode, prefill = sides()
    frame = decode.hello()
    try:
        for turn in range(4):
            if turn == number:
                changed = bytearray(frame)
                changed[at % len(frame)] ^= change
                frame = bytes(changed)
            receiver: DecodeSide | PrefillSide = decode if turn % 2 else prefill
            frame = receiver.receive(frame) or b""
    except (PeerRefused, MalformedMessage):
        return
    assert (decode.theirs, prefill.theirs) == (PREFILL, DECODE)
    assert prefill.seals()[1].open(decode.seals()[0].seal(b"want")) == b"want"


@pytest.mark.parametrize(
    ("offer", "words"),
    [
        (replace(DECODE, layout=with_group(space="ee" * 32)), "the space of group 0 differs"),
        (replace(DECODE, layout=with_group(packing="HND")), "'NHD' here, 'HND' there"),
        (replace(DECODE, checksum=False), "checksum differs: True here, False there"),
        (replace(DECODE, heartbeat_ms=4000), "less than twice the other's heartbeat of 4000 ms"),
        (replace(DECODE, agent="agent-p"), "our own agent's id"),
    ],
)
def test_offer_that_does_not_fit_is_refused_by_name_and_the_caller_is_told(offer: Offer, words: str) -> None:
    decode, prefill = sides(decode=offer)
    answer = decode.receive(prefill.receive(decode.hello()))
    assert answer is not None
    with pytest.raises(PeerRefused) as raised:
        prefill.receive(answer)
    assert words in str(raised.value)
    with pytest.raises(PeerRefused) as told:
        decode.receive(handshake.refusal(raised.value))
    assert words in str(told.value)


def test_another_version_is_refused_by_name() -> None:
    _, prefill = sides()
    with pytest.raises(PeerRefused, match="version differs: 1 here, 2 there"):
        prefill.receive(wire.pack([handshake.NAME, 2, "AKID", b"n" * 32]))


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=2))
def test_any_bytes_are_refused_in_the_words_of_the_domain(frames: list[bytes]) -> None:
    for side in sides():
        if isinstance(side, DecodeSide):
            side.hello()
        with pytest.raises((PeerRefused, MalformedMessage)):
            for frame in frames:
                side.receive(frame)
