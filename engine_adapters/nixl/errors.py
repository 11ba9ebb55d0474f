"""What can go wrong between two workers."""

from kvgate.errors import KVGateError


class NixlMissing(KVGateError):
    """NIXL is not installed here, or none of its libraries can be loaded."""


class AgentFailed(KVGateError):
    """NIXL refused something that it should do; the message has its words."""


class PeerRefused(KVGateError):
    """A peer that does not prove who it is, or whose memory does not fit ours; the message names what differs."""


class MalformedMessage(KVGateError):
    """Bytes on a control connection that are not of their form, or not from the peer that proved itself."""
