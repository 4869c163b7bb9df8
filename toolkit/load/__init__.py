"""Load tests of a deployment, on Locust: `toolkit.load.launch.run` for us, loadtest/locustfile.py for plain Locust.

Only users.py, conductor.py and dispatch.py import Locust or gevent, and only Locust's own process imports them: that
import patches the sockets and threads of the whole process for gevent.
"""
