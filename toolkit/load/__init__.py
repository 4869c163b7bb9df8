"""Load tests of a deployment, on Locust: `toolkit.load.runner.run` for us, loadtest/locustfile.py for plain Locust.

Only users.py, coordinator.py, dispatch.py, reporting.py and web.py import Locust or gevent, and only Locust's process
imports them: that import patches the sockets and threads of the whole process for gevent.
"""

LAUNCHER = "TOOLKIT_LAUNCHER"
"""Environment variable of Locust: the pid of `toolkit loadtest`. Locust ends its test when that process is gone."""
