"""A server whose token times are known, to measure clients and load generators with.

It says beforehand when each token is due, and afterwards when it was sent. It answers like Triton over HTTP and gRPC
and like servers with OpenAI's API. It has no model, and breaks answers on demand.

    with KnownTruth(Settings(ttft_ms=200, itl_ms=20)) as truth:      # in a process of its own
        ... ask truth.http, truth.grpc ...
        for record in truth.records(count=10):
            print(record.arrived, record.token_times)                # when the tokens were really sent

Or `toolkit known-truth`; see docs/reference/known-truth.md.
"""

from toolkit.known_truth.process import KnownTruth
from toolkit.known_truth.record import Record, read_records
from toolkit.known_truth.settings import Settings

__all__ = ["KnownTruth", "Record", "Settings", "read_records"]
