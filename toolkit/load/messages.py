"""The messages between the coordinator of a load test and its processes, by Locust's names."""

QUOTA_WANTED = "toolkit-quota-wanted"
QUOTA = "toolkit-quota"
SAMPLE = "toolkit-sample"
LOOP_LAG = "toolkit-loop-lag"
CLOCK_WANTED = "toolkit-clock-wanted"
CLOCK = "toolkit-clock"
