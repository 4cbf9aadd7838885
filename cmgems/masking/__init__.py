"""Which tokens are masked, and what becomes of them."""
