"""The shapes that conversations, requests and responses come in, brought into one."""
