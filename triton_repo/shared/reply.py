"""The way back to the clients: their events, and the news that one went away."""

import threading

import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Reply:
    """The responses to one request. The last one and an error end it; whatever comes after is dropped."""

    def __init__(self, sender):
        self._sender = sender
        self._lock = threading.Lock()
        self._ended = False

    def send(self, tensors, last=False):
        response = pb_utils.InferenceResponse(tensors)
        if last:
            self._end(response)
        elif not self._ended:
            self._sender.send(response)

    def fail(self, error):
        self._end(pb_utils.InferenceResponse(error=error))

    def end(self):
        """End without another response: the client sees no event."""
        self._end(None)

    def client_is_gone(self):
        # Triton crashes when asked about a request whose last response has been sent, hence the lock.
        with self._lock:
            return not self._ended and self._sender.is_cancelled()

    def _end(self, response):
        with self._lock:
            if self._ended:
                return
            self._ended = True
        if response is None:
            self._sender.send(flags=FINAL)
        else:
            self._sender.send(response, flags=FINAL)


class CancellationWatch:
    """One thread that looks for clients that went away, and has their requests stopped until they end.

    Again each time, as a request may not have reached tensorrt_llm when it is stopped first.
    """

    def __init__(self, period_s):
        self._watched = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(period_s,), daemon=True)
        self._thread.start()

    def add(self, reply, stop):
        self._watched[reply] = stop

    def remove(self, reply):
        del self._watched[reply]

    def end(self):
        self._over.set()
        self._thread.join()

    def _watch(self, period_s):
        while not self._over.wait(period_s):
            for reply, stop in self._watched.copy().items():
                if reply.client_is_gone():
                    stop()
