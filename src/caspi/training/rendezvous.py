"""Where the agents of several nodes meet: torch's c10d rendezvous, on a store that any of them can offer anew.

The agent whose machine has the address of the endpoint offers the store. When it is gone, the others keep asking at
the same endpoint, and offer the store themselves where the address is theirs (on one machine: whoever comes first; on
Kubernetes: the replacement of the first worker). The port is for the nodes of one job only: torch's agents exchange
pickled state through it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

from caspi.errors import Unanswered
from caspi.launched import Ended, World

JOIN_SECONDS = 600.0  # a node may need as long until it has a machine and an image
LAST_CALL_SECONDS = 3.0  # one that comes later costs a restart from a checkpoint, not more
KEEP_ALIVE_SECONDS, KEEP_ALIVE_TRIES = 1, 5  # a node that is silent for so long has left
STORE_SECONDS = 30.0
LINGER_SECONDS = 15.0  # how long the one who offers the store waits until all have read how the work ended
LOST_SECONDS = 8.0  # a node whose agent says nothing for so long is off, or cut off: nobody else would tell
SILENT_SECONDS = 15.0  # nobody who is still at work says so: none of them is alive
FINISH_SECONDS = 1800.0  # at most so long one that is done waits for others that are alive: the leader writes the model
GONE = (RendezvousError, dist.DistError, OSError)


class Rendezvous:
    """The meeting of `fewest` to `most` nodes with `processes` training processes each."""

    def __init__(
        self, name: str, endpoint: tuple[str, int], fewest: int, most: int, processes: int, conf: Mapping[str, float]
    ) -> None:
        # with a shared store, a node that joins later waits 60 s for an address that nobody tells it
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        for logger in ("rendezvous.dynamic_rendezvous", "rendezvous.c10d_rendezvous_backend"):
            logging.getLogger(f"torch.distributed.elastic.{logger}").setLevel(logging.CRITICAL)
        self.name, self.fewest, self.most, self.processes = name, fewest, most, processes
        self.host, self.port = endpoint
        self.patience = conf.get("join_timeout", JOIN_SECONDS)
        self.reading = timedelta(seconds=conf.get("read_timeout", STORE_SECONDS))
        self.may_offer = conf.get("is_host")
        self.last_call = conf.get("last_call_timeout", LAST_CALL_SECONDS)
        self.place: TCPStore | None = None
        self.handler: DynamicRendezvousHandler | None = None
        self.offering = False
        self.nodes, self.node = 1, 0
        self.watched = range(0)
        self.world: Store | None = None
        """Of this meeting alone: nothing of an earlier one is in it."""
        self.told = 0.0
        self.heard: dict[int, tuple[bytes, float]] = {}
        """What each node that this one watches said last, and when that was new."""

    def join(self) -> World | Ended:
        """Meet until enough nodes are there. Ended when the work has, or when nobody came in time."""
        until = time.monotonic() + self.patience
        why = ""
        while time.monotonic() < until:
            try:
                handler = self.handler or self._connected()
                found = handler.next_rendezvous()
            except (RendezvousClosedError, RendezvousGracefulExitError):
                return self._said()
            except RendezvousTimeoutError:
                why = f"fewer than {self.fewest} nodes came"
            except GONE as error:
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                self._let_go()
                time.sleep(1)
            else:
                if not found.rank < found.world_size >= self.fewest:
                    continue  # a node left this world again before this one had seen it: the next one
                self.nodes, self.world = found.world_size, found.store
                self.watched = range(1, self.nodes) if found.rank == 0 else range(1)
                self.node, self.heard = found.rank, {}
                address = found.bootstrap_store_info
                assert address is not None, "of rank 0"
                return World(
                    self.name, found.rank, self.nodes, self.processes, address.master_addr, address.master_port
                )
        return Ended(
            Unanswered.exit_code,
            f"no meeting at {self.host}:{self.port} within {self.patience:g} s ({why}); is the first node up, and the "
            "port open between the nodes? Run the same command to try again",
        )

    def changed(self) -> bool:
        if self.handler is None or self.world is None:
            return True
        try:
            return self.handler.num_nodes_waiting() > 0
        except GONE:
            self._let_go()
            return True

    def lost(self) -> bool:
        """Whether another node is silent. Node 0 watches all, and all watch node 0: who loses it breaks the exchange
        for the rest. Also says that this node is alive, so it is to be asked all the time."""
        if self.world is None or time.monotonic() - self.told < KEEP_ALIVE_SECONDS:
            return False
        try:
            self.world.add("at work", 1)
            return self._silent()
        except GONE:
            self._let_go()
            return False

    def _silent(self) -> bool:
        assert self.world is not None, "joined"
        self.told = now = time.monotonic()
        self.world.add(f"alive {self.node}", 1)
        if not self.heard:
            for node in self.watched:
                self.world.add(f"alive {node}", 0)  # from now on there is something to get
            self.heard = dict.fromkeys(self.watched, (b"", now))
        signs = self.world.multi_get([f"alive {node}" for node in self.watched]) if self.heard else []
        for node, sign in zip(self.watched, signs, strict=True):
            if sign != self.heard[node][0]:
                self.heard[node] = (sign, now)
        return any(now - when > LOST_SECONDS for _, when in self.heard.values())

    def end(self, ended: Ended) -> Ended | None:
        """The first node that says how the work ended is believed. Success is said when all nodes have come to it;
        None when they can't: one of them is gone."""
        if self.handler is None or self.place is None:
            return ended if ended.code else None
        try:
            if ended.code == 0 and not self._all_done():
                return None
            code, line = json.loads(self.place.compare_set("ended", "", json.dumps([ended.code, ended.line])))
            self.handler.set_closed()
            self._part()
        except GONE:  # whoever offered the store has left: the others meet anew, and find out by themselves
            return ended if ended.code else None
        return Ended(int(code), str(line))

    def _all_done(self) -> bool:
        """Wait for the other nodes; False when that is in vain. Also over when one of them says how all ended."""
        assert self.handler is not None and self.world is not None, "joined"
        began = heard = time.monotonic()
        done, sign = self.world.add("done", 1), -1
        while done < self.nodes and not self.handler.is_closed():
            now, last = time.monotonic(), sign
            sign = self.world.add("at work", 0)
            heard = now if sign != last else heard
            if now - self.told > KEEP_ALIVE_SECONDS:
                self._silent()  # the others have to know that this one is alive
            if self.handler.num_nodes_waiting() or now - heard > SILENT_SECONDS or now - began > FINISH_SECONDS:
                return False
            time.sleep(0.2)
            done = self.world.add("done", 0)
        return True

    def _connected(self) -> DynamicRendezvousHandler:
        address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0][4]
        self.offering = _is_here(str(address[0])) if self.may_offer is None else bool(self.may_offer)
        if self.offering:
            try:
                self.place = TCPStore(self.host, self.port, None, True, self.reading, wait_for_workers=False)
            except dist.DistNetworkError:  # another agent on this machine offers it
                self.offering = False
        if not self.offering:
            self.place = TCPStore(self.host, self.port, None, False, self.reading)
        assert self.place is not None
        with socket.create_connection((self.host, self.port), timeout=STORE_SECONDS) as connection:
            own = str(connection.getsockname()[0])  # the address under which the others reach this node
        self.handler = DynamicRendezvousHandler.from_backend(
            self.name,
            self.place,
            C10dRendezvousBackend(self.place, self.name),
            self.fewest,
            self.most,
            own,
            RendezvousTimeout(timedelta(seconds=self.patience), timedelta(seconds=self.last_call)),
            KEEP_ALIVE_SECONDS,
            KEEP_ALIVE_TRIES,
        )
        return self.handler

    def _let_go(self) -> None:
        self.handler = None
        self.place = None
        self.world = None

    def _said(self) -> Ended:
        """How another node said that the work ended."""
        try:
            assert self.place is not None
            code, line = json.loads(self.place.get("ended"))
            self._part()
        except GONE:
            return Ended(Unanswered.exit_code, "the other nodes ended the work, and were gone before they said how")
        return Ended(int(code), str(line))

    def _part(self) -> None:
        """The store lives in the agent that offers it: that one leaves last."""
        assert self.place is not None
        gone = self.place.add("parted", 1)
        until = time.monotonic() + LINGER_SECONDS
        while self.offering and gone < self.nodes and time.monotonic() < until:
            time.sleep(0.1)
            gone = self.place.add("parted", 0)


def _is_here(address: str) -> bool:
    """Whether an address is one of this machine: then something can be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
