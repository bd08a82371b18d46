"""The full network as other servers serve it; each file runs in its server's own environment."""
