"""What a gateway hands to engines on its own host, and what it refuses: a real gateway, and the real client."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.layout import Strided
from kvgate.client.local import Attachment, Grant
from kvgate.client.sync import Client
from kvgate.errors import GatewayError, GatewayUnavailable
from kvgate.http.deadline import Deadline
from kvgate.memory import handoff
from kvgate.server.shm.connection import MAX_GRANTS
from kvgate.server.shm.listener import MAX_ENGINES
from kvgate.server.shm.reservations import MAX_RESERVATIONS
from tests.client.chunks import SPACE, chunks
from tests.gateways import ALPHA, BETA, Credential, RunningGateway
from tests.s3.clients import s3_client

BUCKET = "alpha-bucket"
MiB = 1 << 20


def client_of(gateway: RunningGateway, credential: Credential = ALPHA) -> Client:
    return Client(gateway.url, credential.access_key, credential.secret_key, deadline_s=30)


def granted(found: Grant | int) -> Grant:
    assert isinstance(found, Grant), f"no grant: {found}"
    return found


def copied(grant: Grant) -> bytes:
    buffer = bytearray(grant.nbytes)
    grant.copy_into(memoryview(buffer), Deadline(30))
    return bytes(buffer)


def put(attachment: Attachment, key: str, body: bytes, bucket: str = BUCKET) -> str:
    with attachment.reserve(bucket, key, len(body), Deadline(30)) as reservation:
        reservation.fill([memoryview(body)], Deadline(30))
        return reservation.commit(Deadline(30))


@pytest.mark.parametrize("nbytes", [1, 4096, 70_001, MiB, 3 * MiB + 5, 40 * MiB])
def test_object_is_copied_as_it_was_put(start_shm, attach, nbytes) -> None:
    gateway = start_shm()
    body = os.urandom(nbytes)
    attachment = attach(gateway)
    with client_of(gateway) as client:
        client.put(BUCKET, "over-http", body)
        with granted(attachment.get(BUCKET, "over-http", Deadline(5))) as grant:
            assert grant.nbytes == nbytes
            assert copied(grant) == body
            assert b"".join(grant.views) == body
            grant.verify()
            assert grant.holds
        assert not grant.holds
        etag = put(attachment, "over-memory", body)
        got = client.get(BUCKET, "over-memory")
        assert (got.body, got.info.etag) == (body, etag)
    assert copied(granted(attachment.get(BUCKET, "over-memory", Deadline(5)))) == body


def runs_of(data: st.DataObject, nbytes: int) -> Strided:
    """Runs within `nbytes` bytes, of any size and stride."""
    size = data.draw(st.sampled_from([3_000, 70_000, 1_500_000]))
    run_nbytes = data.draw(st.integers(1, size))
    stride = run_nbytes + data.draw(st.integers(0, size))
    start = data.draw(st.integers(0, nbytes - run_nbytes))
    most = (nbytes - start - run_nbytes) // stride + 1
    return Strided(start, run_nbytes, stride, data.draw(st.integers(1, min(most, 1000))))


def test_runs_of_an_object_are_copied_and_nothing_else_is_touched(start_shm, attach) -> None:
    gateway = start_shm(tiers={"host": {"capacity": "36MiB"}})  # segments of 4.5 MiB: blocks lie in two of them
    body = os.urandom(20 * MiB + 12_345)
    with client_of(gateway) as client:
        client.put(BUCKET, "key", body)
    attachment = attach(gateway)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        runs = runs_of(data, len(body))
        buffer = bytearray(b"\xa5") * (runs.nbytes + 64)
        with granted(attachment.get(BUCKET, "key", Deadline(30))) as grant:
            assert any(extent.nbytes % MiB for extent in grant._extents[:-1])
            grant.copy_into(memoryview(buffer)[: runs.nbytes], Deadline(30), runs)
        expected = b"".join(body[run.start : run.stop] for run in runs.runs())
        assert buffer[: runs.nbytes] == expected
        assert buffer[runs.nbytes :] == b"\xa5" * 64

    check()


def test_runs_count_only_if_every_mib_that_they_touch_is_right(start_shm, attach) -> None:
    """Whoever writes into memory that it has committed spoils its own object: also beside what is asked for."""
    gateway = start_shm()
    attachment = attach(gateway)
    body = os.urandom(4 * MiB)
    with attachment.reserve(BUCKET, "key", len(body), Deadline(30)) as reservation:
        reservation.fill([memoryview(body)], Deadline(30))
        views = reservation.views
        reservation.commit(Deadline(30))
    views[0][2 * MiB + 77] ^= 1
    buffer = memoryview(bytearray(3 * MiB))

    def load(runs: Strided) -> None:
        with granted(attachment.get(BUCKET, "key", Deadline(5))) as grant:
            grant.copy_into(buffer[: runs.nbytes], Deadline(5), runs)

    whole = Strided(2 * MiB - 100, 100, 1, 1), Strided(3 * MiB, MiB, 1, 1), Strided(0, 500, 3 * MiB + 1, 2)
    for runs in whole:
        load(runs)
        assert bytes(buffer[: runs.nbytes]) == b"".join(body[run.start : run.stop] for run in runs.runs())
    for runs in (
        *(Strided(2 * MiB + 77, 1, 1, 1), Strided(2 * MiB, 10, 1, 1), Strided(3 * MiB - 1, 1, 1, 1)),
        *(Strided(0, 1, MiB, 4), Strided(2 * MiB - 1, 2, 2, 1), Strided(0, 3 * MiB, 3 * MiB, 1)),
        *(Strided(2 * MiB - 50, 1, 10, 20), Strided(3 * MiB - 10, 1, 10, 20)),
    ):
        with pytest.raises(GatewayError) as raised:
            load(runs)
        assert raised.value.code == "BadDigest"


def test_object_that_must_be_the_first_is_refused_where_there_is_one(start_shm, attach) -> None:
    gateway = start_shm()
    attachment = attach(gateway)
    put(attachment, "key", b"body")
    with pytest.raises(GatewayError) as raised:
        attachment.reserve(BUCKET, "key", 4, Deadline(5), first=True)
    assert (raised.value.status, raised.value.code) == (412, "PreconditionFailed")
    with attachment.reserve(BUCKET, "other", 4, Deadline(5), first=True) as reservation:
        reservation.fill([memoryview(b"mine")], Deadline(5))
        put(attachment, "other", b"theirs")
        with pytest.raises(GatewayError) as raised:
            reservation.commit(Deadline(5))
    assert raised.value.code == "PreconditionFailed"
    assert copied(granted(attachment.get(BUCKET, "other", Deadline(5)))) == b"theirs"
    with attachment.reserve(BUCKET, "new", 4, Deadline(5), first=True) as reservation:
        reservation.fill([memoryview(b"mine")], Deadline(5))
        reservation.commit(Deadline(5))
    assert copied(granted(attachment.get(BUCKET, "new", Deadline(5)))) == b"mine"


def test_views_cannot_be_written(start_shm, attach) -> None:
    gateway = start_shm()
    with client_of(gateway) as client:
        client.put(BUCKET, "key", b"body" * 1000)
    grant = granted(attach(gateway).get(BUCKET, "key", Deadline(5)))
    assert grant.views[0].readonly
    with pytest.raises(TypeError):
        grant.views[0][0] = 0


def test_batch_grants_what_is_there_and_marks_what_is_not(start_shm, attach) -> None:
    gateway = start_shm()
    with client_of(gateway) as client:
        prompt = chunks(client.tenant().salt, 6)
        client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        for chunk_hash, body in prompt:
            if chunk_hash != prompt[2][0]:
                client.put(BUCKET, str(ChunkKey(SPACE.id, chunk_hash.hex())), body)
    attachment = attach(gateway)
    hashes = [chunk_hash for chunk_hash, _ in prompt]
    found = attachment.get_chunks(BUCKET, bytes.fromhex(SPACE.id), hashes, Deadline(5))
    assert found[2] == handoff.ABSENT
    for place in (0, 1, 3, 4, 5):
        assert copied(granted(found[place])) == prompt[place][1]


def test_answer_of_many_grants_comes_in_several_frames(start_shm, attach) -> None:
    gateway = start_shm(tiers={"host": {"capacity": "512MiB"}})
    body = os.urandom(40 * MiB)
    with client_of(gateway) as client:
        prompt = chunks(client.tenant().salt, 1)
        client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        client.put(BUCKET, str(ChunkKey(SPACE.id, prompt[0][0].hex())), prompt[0][1])
    attachment = attach(gateway)
    put(attachment, "large", body)
    hashes = [prompt[0][0]] * handoff.MAX_HASHES
    for _ in range(3):
        found = attachment.get_chunks(BUCKET, bytes.fromhex(SPACE.id), hashes, Deadline(5))
        assert len(found) == handoff.MAX_HASHES
        assert copied(granted(found[-1])) == prompt[0][1]
        for grant in found:
            granted(grant).release()


def test_chunk_on_disk_is_brought_to_memory_within_the_wait(start_shm, attach) -> None:
    gateway = start_shm(store={"ack": "disk"})
    bodies = {f"key-{number}": os.urandom(2 * MiB) for number in range(6)}
    with client_of(gateway) as client:
        for key, body in bodies.items():
            client.put(BUCKET, key, body)
    gateway.restart()
    attachment = attach(gateway)
    assert attachment.get(BUCKET, "key-0", Deadline(5)) == handoff.NOT_IN_MEMORY
    for key, body in bodies.items():
        assert copied(granted(attachment.get(BUCKET, key, Deadline(5), wait_s=4))) == body
    assert attachment.get(BUCKET, "absent", Deadline(5), wait_s=1) == handoff.ABSENT


def test_chunk_put_through_memory_obeys_the_rules_of_its_key(start_shm, attach) -> None:
    gateway = start_shm()
    with client_of(gateway) as client:
        prompt = chunks(client.tenant().salt, 2)
        client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    attachment = attach(gateway)
    first, second = (str(ChunkKey(SPACE.id, chunk_hash.hex())) for chunk_hash, _ in prompt)
    put(attachment, first, prompt[0][1])
    put(attachment, first, prompt[0][1])
    other = prompt[0][1][:-1] + bytes([prompt[0][1][-1] ^ 1])
    for key, body, code in ((first, other, "ImmutableConflict"), (second, prompt[0][1], "InvalidChunk")):
        with pytest.raises(GatewayError) as raised:
            put(attachment, key, body)
        assert raised.value.code == code
    put(attachment, second, prompt[1][1])


def test_refusals_have_the_codes_of_the_gateway(start_shm, attach) -> None:
    gateway = start_shm()
    attachment, reader = attach(gateway), attach(gateway, write=False)
    for call, code in (
        (lambda: attachment.get("no-such-bucket", "key", Deadline(5)), "NoSuchBucket"),
        (lambda: attachment.get("beta-bucket", "key", Deadline(5)), "NoSuchBucket"),
        (lambda: put(attachment, "kv/x", b"body"), "InvalidArgument"),
        (lambda: put(attachment, "key", b"body", "no-such-bucket"), "NoSuchBucket"),
        (lambda: put(reader, "key", b"body"), "AccessDenied"),
        (lambda: attachment.reserve(BUCKET, "key", 0, Deadline(5)), "InvalidArgument"),
        (lambda: attachment.reserve(BUCKET, "key", 1 << 50, Deadline(5)), "EntityTooLarge"),
        (lambda: attachment.reserve(BUCKET, "key", 1 << 30, Deadline(5)), "SlowDown"),
        (lambda: attachment.commit(77, Deadline(5)), "NoSuchLease"),
    ):
        with pytest.raises(GatewayError) as raised:
            call()
        assert raised.value.code == code
    attachment.ping(Deadline(5))


def test_policy_that_denies_the_owner_denies_memory_too(start_shm, attach) -> None:
    gateway = start_shm()
    with client_of(gateway) as client:
        client.put(BUCKET, "secret/key", b"body")
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{BUCKET}/secret/*",
            }
        ],
    }
    s3_client(gateway).put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
    attachment = attach(gateway)
    with pytest.raises(GatewayError) as raised:
        attachment.get(BUCKET, "secret/key", Deadline(5))
    assert raised.value.code == "AccessDenied"


def test_batch_that_is_refused_half_way_leaves_no_grant(start_shm, attach) -> None:
    gateway = start_shm()
    with client_of(gateway) as client:
        prompt = chunks(client.tenant().salt, 3)
        client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        for chunk_hash, body in prompt:
            client.put(BUCKET, str(ChunkKey(SPACE.id, chunk_hash.hex())), body)
    last = ChunkKey(SPACE.id, prompt[2][0].hex())
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{BUCKET}/{last}",
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    s3_client(gateway).put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
    hashes = [chunk_hash for chunk_hash, _ in prompt]
    with pytest.raises(GatewayError) as raised:
        attach(gateway).get_chunks(BUCKET, bytes.fromhex(SPACE.id), hashes, Deadline(5))
    assert raised.value.code == "AccessDenied"
    assert gateway.metrics()["kvgate_shm_grants"] == 0


def test_wrong_secret_unknown_key_and_other_run_are_not_attached(start_shm, attach) -> None:
    gateway = start_shm()
    for credential in (Credential(ALPHA.access_key, "not-the-secret"), Credential("unknown-key", "x" * 20)):
        with pytest.raises(GatewayError) as raised:
            attach(gateway, credential)
        assert raised.value.status == 403
    with pytest.raises(GatewayUnavailable, match="another gateway"):
        attach(gateway, boot_id=bytes(16))
    assert attach(gateway).tenant == "alpha"
    assert attach(gateway, BETA).tenant == "beta"


def test_proof_of_one_connection_is_no_proof_on_another(start_shm) -> None:
    from kvgate.auth import sigv4
    from kvgate.memory.proof import sign_attach

    gateway = start_shm()
    path = gateway.config["listen"]["shm_socket"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        one.connect(path)
        boot_id, nonce = handoff.decode_hello(one.recv(1000))
        credential = sigv4.Credential(ALPHA.access_key, ALPHA.secret_key)
        proof = sign_attach(credential, boot_id, nonce, write=False, now=time.time())
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.connect(path)
            other.recv(1000)
            other.send(handoff.encode_attach(1, *proof, write=False))
            assert handoff.decode_error(other.recv(1000))[1] == "SignatureDoesNotMatch"
            assert other.recv(1000) == b""
        one.send(handoff.encode_attach(1, *proof, write=True))
        assert handoff.decode_error(one.recv(1000))[1] == "SignatureDoesNotMatch"


def test_bytes_that_are_no_frame_end_the_connection_and_nothing_else(start_shm, attach) -> None:
    gateway = start_shm()
    good = attach(gateway)
    for frame in (
        b"x",
        b"\0" * 8,
        handoff.encode_empty(99, 1),
        handoff.encode_get(1, "b", "k", 0)[:-1],
        b"\2" * 70_000,
    ):
        attachment = attach(gateway)
        attachment._sock.send(frame)
        with pytest.raises(GatewayUnavailable):
            attachment.ping(Deadline(5))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(gateway.config["listen"]["shm_socket"])
            sock.recv(1000)
            sock.send(frame)
            assert sock.recv(1000) == b""
    good.ping(Deadline(5))


def test_grants_of_a_connection_are_bounded_and_given_back(start_shm, attach) -> None:
    gateway = start_shm()
    with client_of(gateway) as client:
        client.put(BUCKET, "key", b"body")
        attachment = attach(gateway)
        grants = [granted(attachment.get(BUCKET, "key", Deadline(5))) for _ in range(MAX_GRANTS)]
        assert attachment.get(BUCKET, "key", Deadline(5)) == handoff.TOO_MANY
        assert gateway.metrics()["kvgate_shm_grants"] == MAX_GRANTS
        grants.pop().release()
        granted(attachment.get(BUCKET, "key", Deadline(5))).release()
        for grant in grants:
            grant.release()
        time.sleep(0.6)
        assert gateway.metrics()["kvgate_shm_grants"] == 0


def test_engines_of_a_tenant_are_bounded_and_others_are_not_hindered(start_shm, attach) -> None:
    gateway = start_shm()
    attached = [attach(gateway) for _ in range(MAX_ENGINES)]
    assert gateway.metrics()["kvgate_shm_engines"] == MAX_ENGINES
    with pytest.raises(GatewayError) as raised:
        attach(gateway)
    assert raised.value.code == "SlowDown"
    attach(gateway, BETA)
    attached[0].close()
    attach(gateway)


def test_connections_that_do_not_attach_are_ended(start_shm) -> None:
    gateway = start_shm()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(gateway.config["listen"]["shm_socket"])
        sock.recv(1000)
        sock.settimeout(10)
        began = time.monotonic()
        assert sock.recv(1000) == b""
        assert 4 < time.monotonic() - began < 8


def test_reservations_are_bounded_and_return_their_memory(start_shm, attach) -> None:
    gateway = start_shm()
    attachment = attach(gateway)
    before = gateway.metrics()['kvgate_tier_used_bytes{tier="host"}']
    reserved = [attachment.reserve(BUCKET, f"key-{n}", MiB, Deadline(5)) for n in range(MAX_RESERVATIONS)]
    with pytest.raises(GatewayError) as raised:
        attachment.reserve(BUCKET, "one-more", MiB, Deadline(5))
    assert raised.value.code == "SlowDown"
    assert gateway.metrics()['kvgate_tier_used_bytes{tier="host"}'] >= before + MAX_RESERVATIONS * MiB
    for reservation in reserved:
        reservation.abort()
    attachment.ping(Deadline(5))
    assert gateway.metrics()['kvgate_tier_used_bytes{tier="host"}'] == before
    with client_of(gateway) as client:
        assert client.stats().nbytes == 0


def test_engine_that_takes_no_answers_is_cut_and_nobody_waits(start_shm, attach) -> None:
    gateway = start_shm()
    deaf, other = attach(gateway), attach(gateway)
    deaf._sock.settimeout(0.2)
    frame = handoff.encode_get(5, "no-such-bucket", "key", 0)
    with pytest.raises(OSError):
        for _ in range(200_000):
            deaf._sock.send(frame)
    other.ping(Deadline(1))


def test_socket_file_is_private_replaces_a_stale_one_and_goes_away(start_shm) -> None:
    gateway = start_shm()
    path = Path(gateway.config["listen"]["shm_socket"])
    assert path.stat().st_mode & 0o777 == 0o600
    gateway.kill()
    assert path.is_socket()
    gateway.config["listen"]["shm_mode"] = "0660"
    gateway.start()
    assert path.stat().st_mode & 0o777 == 0o660
    assert gateway.stop() == 0
    assert not path.exists()
    path.write_text("somebody's file")
    with pytest.raises(AssertionError, match="is not a socket"):
        gateway.start()
    assert path.read_text() == "somebody's file"


def test_second_gateway_does_not_take_the_socket_of_the_first(start_shm, attach) -> None:
    gateway = start_shm()
    with pytest.raises(AssertionError, match="somebody listens on"):
        start_shm()
    attach(gateway).ping(Deadline(5))
