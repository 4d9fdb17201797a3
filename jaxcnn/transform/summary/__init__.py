"""`summarize`: cost and method of the convolutions and pools of a function."""
