"""Work on other processes and machines: Ray, isolation of what may crash, tasks side by side."""
