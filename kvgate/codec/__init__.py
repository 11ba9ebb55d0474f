"""Codecs: a block of bytes in fewer bytes, and back."""
