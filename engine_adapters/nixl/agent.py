"""One NIXL agent with its UCX backend: what this worker's memory is registered with, and what writes to others'.

What was measured with NIXL 1.5.1 over UCX tcp, and what follows (docs/adr/0034-direct-transfer.md):

1. Neither releasing a request that is in progress nor removing the remote agent stops its write: both report
   success, and bytes land afterwards. So a `Write` is released when it has ended, and never before.
2. Closing an agent stops everything: no memory of ours is read for a write any more, and nothing lands that comes
   through it. `close` is therefore the only proof that needs nobody else.
3. The progress thread takes 20 to 30 % of a core when idle, unless it pauses. The class `nixl_agent` of NIXL's Python
   API leaves no choice there, so the agent is made of what lies below it.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from engine_adapters.nixl.config import NixlConfig
from engine_adapters.nixl.errors import AgentFailed, NixlMissing
from engine_adapters.nixl.layout import Layout

_log = logging.getLogger(__name__)

_environment = threading.Lock()


class Agent:
    """Registered memory and an id that no other agent has. For one thread.

    The memory of `layout` must be there until `close` has returned.
    Raises NixlMissing, and AgentFailed when NIXL cannot register the memory.
    """

    def __init__(self, layout: Layout, config: NixlConfig) -> None:
        self._nixl = _load()
        self.id = f"kvgate-{uuid.uuid4().hex}"
        self._layout = layout
        settings = self._nixl.nixlAgentConfig()
        settings.useProgThread = True
        settings.useListenThread = False
        settings.pthrDelay = round(config.progress_delay * 1e6)
        settings.syncMode = self._nixl.NIXL_THREAD_SYNC_STRICT
        with self._wrapped("start an agent"), _ucx_settings(config):
            self._agent: Any = self._nixl.nixlAgent(self.id, settings)
            self._backends = [self._agent.createBackend("UCX", {"ucx_error_handling_mode": "peer"})]
        self._kind = self._nixl.DRAM_SEG if layout.on_host else self._nixl.VRAM_SEG
        spans = [(base, nbytes, device, "") for base, nbytes, device in layout.spans()]
        with self._wrapped("register memory"):
            self._agent.registerMem(self._nixl.nixlRegDList(self._kind, spans), self._backends)
            self._local = self._prepare(self._nixl.NIXL_INIT_AGENT, layout)
            self.metadata: bytes = self._agent.getLocalMD()

    def connect(self, peer: str, metadata: bytes, layout: Layout) -> Remote:
        """The memory of a peer that has proved itself, to write to.

        Raises AgentFailed when `metadata` is not that of the agent `peer`, or that has not registered all of `layout`.
        """
        with self._wrapped("add a remote agent"):
            name = self._agent.loadRemoteMD(metadata)
            if name != peer.encode():
                self._agent.invalidateRemoteMD(name)
                raise AgentFailed("the metadata of the remote agent is another agent's")
            return Remote(self, peer, layout, self._prepare(peer, layout))

    def drop_notifications(self) -> None:
        """Forget what others have sent through NIXL: nobody should, and it would be kept for ever."""
        with self._wrapped("read notifications"):
            self._agent.getNotifs({}, self._backends)

    def close(self) -> None:
        """Returns when nothing that came through this agent reads or writes the memory. May be called twice."""
        self._agent = None

    def _prepare(self, name: str, layout: Layout) -> int:
        handle: int = self._agent.prepXferDlist(name, self._kind, layout.rows(), self._backends)
        return handle

    def _write(self, remote: Remote, source: Any, target: Any) -> Write:
        with self._wrapped("start a write"):
            handle = self._agent.makeXferReq(
                self._nixl.NIXL_WRITE, self._local, source, remote.handle, target, b"", self._backends, False
            )
            write = Write(self, handle)
            self._agent.postXferReq(handle, b"")
        return write

    def _state(self, handle: int) -> bool:
        with self._wrapped("write"):
            status = self._agent.getXferStatus(handle)
        if status == self._nixl.NIXL_IN_PROG:
            return False
        if status != self._nixl.NIXL_SUCCESS:
            raise AgentFailed(f"a write has ended as {status}")
        return True

    def _release(self, handle: int) -> None:
        with self._wrapped("release a write"):
            self._agent.releaseXferReq(handle)

    def _forget(self, remote: Remote) -> None:
        with self._wrapped("remove a remote agent"):
            self._agent.releasedDlistH(remote.handle)
            self._agent.invalidateRemoteMD(remote.peer)

    @contextmanager
    def _wrapped(self, what: str) -> Iterator[None]:
        try:
            yield
        except AgentFailed:
            raise
        except Exception as error:  # the errors of the bindings have no base class of their own
            raise AgentFailed(f"NIXL did not {what}: {error}") from error


class Remote:
    """The memory of one peer. For the thread of its agent."""

    def __init__(self, agent: Agent, peer: str, layout: Layout, handle: int) -> None:
        self._agent = agent
        self.peer = peer
        self.handle = handle
        self._layout = layout

    def write(self, source: Sequence[Sequence[int]], target: Sequence[Sequence[int]]) -> Write:
        """Start to copy our blocks `source` into the peer's blocks `target`, group by group. Raises AgentFailed."""
        return self._agent._write(self, self._agent._layout.descriptors(source), self._layout.descriptors(target))

    def close(self) -> None:
        """Forget the peer, when all writes to it have ended. Raises AgentFailed."""
        self._agent._forget(self)


class Write:
    """One write to a peer's memory, under way. For the thread of its agent."""

    def __init__(self, agent: Agent, handle: int) -> None:
        self._agent = agent
        self._handle = handle

    def poll(self) -> bool:
        """Whether all bytes have landed at the peer. Not to be called again once they have.

        Raises AgentFailed when the connection to the peer has broken. What has landed, or still will, is not known.
        """
        if not self._agent._state(self._handle):
            return False
        self._agent._release(self._handle)
        return True


def installed() -> bool:
    """Whether NIXL can be loaded here."""
    try:
        _load()
    except NixlMissing:
        return False
    return True


def _load() -> ModuleType:
    try:
        import nixl  # noqa: PLC0415 - optional, and it loads UCX

        bindings: ModuleType = nixl._bindings
    except (ImportError, AttributeError) as error:
        raise NixlMissing(f"NIXL is not installed: {error}; mend: pip install 'kvgate[nixl]'") from error
    return bindings


@contextmanager
def _ucx_settings(config: NixlConfig) -> Iterator[None]:
    """UCX reads its settings from the environment, once for each agent; what is empty here stays as it is there."""
    wanted = {"UCX_TLS": config.transports, "UCX_NET_DEVICES": config.devices}
    with _environment:
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update({name: value for name, value in wanted.items() if value})
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
