"""Load tests of a deployment, on Locust: `toolkit.load.runner.run` for us, loadtest/locustfile.py for plain Locust.

Only users.py, coordinator.py, dispatch.py, teller.py and web.py import Locust or gevent, and only Locust's own process
imports them: that import patches the sockets and threads of the whole process for gevent.
"""

LAUNCHER = "TOOLKIT_LAUNCHER"
"""In Locust's environment: the process that `toolkit loadtest` is. When that was killed, nobody could stop a test."""
