"""What may be believed and what may be told: file permissions, and secrets kept out of every output."""
