"""A ZeroMQ context for a process that must end when its work is done."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import zmq

_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)


def has_mail(socket: zmq.Socket[bytes]) -> bool:
    """Return whether ``recv`` would find a message; to let it find out costs the exception, three times as much."""
    return bool(int(socket.get(_EVENTS)) & _POLLIN)


@contextmanager
def bus_context(patience_s: float = 1.0) -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """Yield a context whose end cannot keep its process from ending.

    libzmq 4.3.5 never comes back from ``zmq_ctx_term``, whatever LINGER is, about once in a few hundred times
    that a peer closes in the same moment with messages for it still queued: which is how every session ends.

    Args:
        patience_s: More than any of its sockets lingers.
    """
    context = zmq.Context()
    try:
        yield context
    finally:
        ending = threading.Thread(target=context.destroy, name="end of the bus", daemon=True)
        ending.start()
        ending.join(patience_s)
