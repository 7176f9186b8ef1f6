"""Files of one kind each, taken apart into rows: arrays, tables, columns."""
