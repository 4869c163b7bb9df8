"""Load tests of a deployment, on Locust: `toolkit.load.launch.run` for us, loadtest/locustfile.py for plain Locust.

Only users.py and conductor.py import Locust, and only Locust's own process imports them: that import patches
the sockets and threads of the whole process for gevent.
"""
