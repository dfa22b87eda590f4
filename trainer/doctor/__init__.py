"""One look at a machine before anybody queues a job: what is there, whether it fits together, what to do if not."""
