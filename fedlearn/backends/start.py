"""What the starting of processes has in common."""

# Seconds that a new process has at least until it is ready, however short the timeout: a busy machine takes its time.
START = 60.0
