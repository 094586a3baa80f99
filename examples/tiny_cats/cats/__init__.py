"""The classifier of the tiny_cats example: its pictures and its network; nothing about Modal."""
