"""The contract between jobs that write stores and code that reads them (numpy and pyarrow only)."""
