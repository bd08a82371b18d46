"""Load on a server: when requests arrive, who sends them, and what became of them."""
