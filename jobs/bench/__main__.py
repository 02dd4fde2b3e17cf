"""``python -m jobs.bench [NAME]``."""

from jobs.bench.run import main

if __name__ == "__main__":
    main()
