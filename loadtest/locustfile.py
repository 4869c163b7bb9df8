"""The load test for plain Locust, headless or with its web UI:

    locust -f loadtest/locustfile.py --deployment build_configs/smollm2-rehearsal.yaml --headless
    TOOLKIT_CONFIG=build_configs/smollm2-rehearsal.yaml locust -f loadtest/locustfile.py

The users are in toolkit/load/users.py, which `toolkit loadtest` runs too.
"""

from toolkit.load.users import ClosedLoop, OpenLoop

__all__ = ["ClosedLoop", "OpenLoop"]
