"""What compressing cold chunks saves and costs, by the path that users have: a job of a gateway, and GETs over HTTP.

    python loadtest/compress.py --objects 16 --nbytes 16MiB --rounds 3

Stores bf16 values of the shape of KV (every channel with a scale and a mean of its own, a few outliers), compresses
them by a job, and reads them: a gateway that has just started, so that nothing is in memory, and files that are in the
page cache, so that the disk is not what is measured. Then the same after a job that decompresses, in turn, each round
once. Prints the size on disk, the pace of the jobs, the pace and the times of GETs one after the other, and the CPU
seconds a GB that the gateway took for each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy
from gateway import ACCESS_KEY, BUCKET, SECRET_KEY, Gateway
from processes import cpu_s

from kvgate.client.sync import Client
from kvgate.client.values import Chosen
from kvgate.config import MiB, format_size, parse_size

CHANNELS = 1024


def kv_like(nbytes: int, seed: int) -> bytes:
    """Values of a normal distribution for every channel, rounded to bfloat16 by leaving their low halves out."""
    generator = numpy.random.default_rng(seed)
    mean, scale = generator.standard_normal(CHANNELS), abs(generator.standard_normal(CHANNELS)) + 0.1
    scale[7::256] *= 8
    values = generator.standard_normal((-(-nbytes // 2 // CHANNELS), CHANNELS)) * scale + mean
    return bytes(values.astype("<f4").reshape(-1).view("<u2")[1::2].tobytes()[:nbytes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=16)
    parser.add_argument("--nbytes", type=parse_size, default=16 * MiB)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(Path(folder), {"host": {"capacity": 512 * MiB}, "disk": {"path": f"{folder}/disk"}}, {})
        gateway.start()
        try:
            measure(gateway, options)
        finally:
            gateway.stop()


def measure(gateway: Gateway, options: argparse.Namespace) -> None:
    bodies = {f"k{number}": kv_like(options.nbytes, number) for number in range(options.objects)}
    total = sum(map(len, bodies.values()))
    with client_of(gateway) as client:
        for key, body in bodies.items():
            client.put(BUCKET, key, body)
    print(f"{options.objects} objects of {format_size(options.nbytes)}")
    for _ in range(options.rounds):
        for kind in ("compress", "decompress"):
            gateway.stop()
            gateway.start()
            with client_of(gateway) as client:
                before_s, begun = cpu_s(gateway.process.pid), time.perf_counter()
                job = client.start_job(kind, Chosen(BUCKET, prefix=""))
                while not job.has_ended:
                    time.sleep(0.01)
                    job = client.job(job.id)
                took_s, job_cpu_s = time.perf_counter() - begun, cpu_s(gateway.process.pid) - before_s
            assert (job.state, job.done) == ("done", len(bodies)), job
            gateway.stop()
            gateway.start()
            with client_of(gateway) as client:
                before_s, times = cpu_s(gateway.process.pid), []
                for key, body in bodies.items():
                    begun = time.perf_counter()
                    assert client.get(BUCKET, key).body == body
                    times.append(time.perf_counter() - begun)
                get_cpu_s = cpu_s(gateway.process.pid) - before_s
            size = total - job.saved_nbytes if kind == "compress" else total
            print(
                f"{kind:10}  {size / total:6.1%} of the size; job {total / took_s / 1e6:6.0f} MB/s, "
                f"{job_cpu_s / total * 1e9:5.2f} s of CPU a GB; then cold GETs {total / sum(times) / 1e6:6.0f} MB/s, "
                f"p50 {statistics.median(times) * 1e3:6.1f} ms, {get_cpu_s / total * 1e9:5.2f} s of CPU a GB"
            )


def client_of(gateway: Gateway) -> Client:
    return Client(gateway.url, ACCESS_KEY, SECRET_KEY, deadline_s=120)


if __name__ == "__main__":
    main()
