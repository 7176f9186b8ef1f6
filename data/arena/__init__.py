"""The workloads every scheduling claim is measured on, and when their requests arrive."""
