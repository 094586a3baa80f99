"""What a run leaves behind about itself: events on the Volume, readable lines for the eye."""
