"""What a worker needs to know to exchange KV with others directly."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from kvgate.config import Seconds, option


@dataclass(frozen=True)
class NixlConfig:
    """Raises ValueError for values that contradict each other."""

    host: str = option(default="127.0.0.1", help="IP address that control connections come in on, as others reach it")
    port: int = option(default=0, help="port of the first rank's control connections, the others follow; 0: any free")
    peers: tuple[str, ...] = option(
        default=("127.0.0.0/8", "::1/128"), help="networks of the prefill workers that may be called"
    )
    transports: str = option(
        default="", help="what UCX may use, as in UCX_TLS, such as rc,cuda_copy; empty: its choice"
    )
    devices: str = option(default="lo", help="network devices of UCX, as in UCX_NET_DEVICES; empty: all of them")
    checksum: bool = option(default=True, help="whether blocks are verified on arrival; off for blocks on a GPU only")
    deadline: Seconds = option(default=Seconds(30.0), help="how long a transfer may take, and an offer is held")
    heartbeat: Seconds = option(default=Seconds(1.0), help="how often a silent connection says that it is there")
    heartbeat_timeout: Seconds = option(default=Seconds(5.0), help="a peer silent for longer is taken for dead")
    confirm_within: Seconds = option(
        default=Seconds(2.0),
        help="how long a peer may take to confirm that it writes no more, before our agent is closed",
    )
    drain_within: Seconds = option(
        default=Seconds(5.0), help="how long the other transfers of an agent that must be closed may take to end"
    )
    progress_delay: Seconds = option(
        default=Seconds(0.001), help="pause of the progress thread of NIXL; 0 takes a core"
    )
    max_transfers: int = option(default=1024, help="transfers at a time in each direction; more are refused")
    max_sessions: int = option(default=256, help="control connections that may come in at a time")

    def __post_init__(self) -> None:
        try:
            host = ipaddress.ip_address(self.host)
        except ValueError:
            raise ValueError(f"host must be an IP address, got {self.host!r}") from None
        if host.is_unspecified:
            raise ValueError(f"host must be the address that others reach, not {self.host}")
        for network in self.peers:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"peers has networks such as 10.0.0.0/16: {error}") from None
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port must be 0 to 65535, got {self.port}")
        if self.heartbeat <= 0 or self.heartbeat_timeout < 2 * self.heartbeat:
            raise ValueError(f"heartbeat_timeout must be at least twice heartbeat, which is {self.heartbeat:g} s")
        if self.max_transfers < 1 or self.max_sessions < 1:
            raise ValueError("max_transfers and max_sessions must be at least 1")

    def may_call(self, host: str) -> bool:
        """Whether `peers` has this IP address. Raises ValueError for what is none."""
        address = ipaddress.ip_address(host)
        return any(address in ipaddress.ip_network(network) for network in self.peers)
