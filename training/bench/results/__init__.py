"""What a comparison ends in: records, the result document, the report."""
