"""What ``train-teacher`` and ``train-student`` share: the run, its checks, its workers."""
