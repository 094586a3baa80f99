"""Slow campaigns: real containers, killed at random moments. Run on demand, by make targets."""
