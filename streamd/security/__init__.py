"""Which files can be trusted, and how secrets are kept out of every output."""
