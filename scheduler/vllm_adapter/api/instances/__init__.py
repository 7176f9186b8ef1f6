"""The engines behind one API process, and our router over them."""
