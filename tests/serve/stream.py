"""A client of the trivial models (tests/serve/models)."""

import http.client
import json
import threading


class Stream(threading.Thread):
    """Reads one answer of 0.2 s a token over HTTP, and says how much of it arrived."""

    def __init__(self, deployment, tokens):
        super().__init__(daemon=True)
        self._port, self._tokens = deployment.serving.http_port, tokens
        self.received = []
        self.start()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        body = json.dumps({"text_input": "slow", "max_tokens": self._tokens})
        connection.request("POST", "/v2/models/tensorrt_llm_bls/generate_stream", body)
        try:
            for line in connection.getresponse():
                if line.startswith(b"data: "):
                    self.received.append(json.loads(line[6:])["text_output"])
        except (OSError, http.client.HTTPException):
            pass
