"""All that the API process and the engine process say to each other, a message a file.

Who writes a message and who reads it find both directions in its file, and what both hold it to.
"""
