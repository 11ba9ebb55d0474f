"""One agent, and the peers whose memory it knows. While one must be closed, the next is there already."""

from __future__ import annotations

from engine_adapters.nixl.agent import Agent, Remote
from engine_adapters.nixl.errors import PeerRefused
from engine_adapters.nixl.handshake import Offer
from engine_adapters.nixl.session import Session


class Generation:
    """For the worker's thread. `retiring_since_s` is None as long as new sessions use it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.retiring_since_s: float | None = None
        self._peers: dict[str, tuple[Offer, Remote]] = {}
        self._users: dict[str, set[Session]] = {}
        self._broken: set[str] = set()

    def admit(self, session: Session) -> Remote:
        """The memory of a session's peer. Raises PeerRefused, and AgentFailed when NIXL cannot reach it."""
        offer = session.peer
        assert offer is not None
        known = self._peers.get(offer.agent)
        if known is not None and (offer.agent in self._broken or known[0] != offer):
            raise PeerRefused("the agent was here before, and writes to it have failed or it was another one")
        if known is None:
            known = (offer, self.agent.connect(offer.agent, offer.metadata, offer.layout))
            self._peers[offer.agent] = known
        self._users.setdefault(offer.agent, set()).add(session)
        return known[1]

    def leave(self, session: Session) -> None:
        """A session is no more."""
        for users in self._users.values():
            users.discard(session)

    def broke(self, remote: Remote) -> list[Session]:
        """A write to a peer has failed, so that no other can succeed. The sessions that are of no use any more."""
        self._broken.add(remote.peer)
        return list(self._users.get(remote.peer, ()))

    def unused(self) -> list[Remote]:
        """The peers that no session is for."""
        return [remote for _, remote in self._peers.values() if not self._users.get(remote.peer)]

    def forget(self, remote: Remote) -> None:
        """Give up what is kept of a peer that no write goes to. Raises AgentFailed; it is forgotten all the same."""
        del self._peers[remote.peer]
        self._users.pop(remote.peer, None)
        self._broken.discard(remote.peer)
        remote.close()
