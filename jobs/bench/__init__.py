"""Our speed beside others', as ratios; ``python -m jobs.bench``."""
