"""The server's request log: one JSON line per request that ended, which is training data later."""

from lengthwise.data.request_log.groups import RowGroup, largest_group, of_group
from lengthwise.data.request_log.played import as_request, logged_workload
from lengthwise.data.request_log.reader import (
    answered,
    log_batches,
    log_to_table,
    newest_requests,
    newest_table,
    read_request_log,
)
from lengthwise.data.request_log.schema import FILE_PATTERN, ROW_KEYS, STATUSES
from lengthwise.data.request_log.writer import RequestLogWriter, limited_writer

__all__ = [
    "FILE_PATTERN",
    "ROW_KEYS",
    "STATUSES",
    "RequestLogWriter",
    "RowGroup",
    "answered",
    "as_request",
    "largest_group",
    "limited_writer",
    "log_batches",
    "log_to_table",
    "logged_workload",
    "newest_requests",
    "newest_table",
    "of_group",
    "read_request_log",
]
